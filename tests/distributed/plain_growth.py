"""bert2BERT growth on whole tensors, written from the paper's formulas with loops; imports nothing of the package.

A model is a dict of numpy float32 arrays: embed (V, H), head (V, H), norm (H,), and per layer a dict with
q [A](D, H), k, v [G](D, H), o (H, A, D), gate, up (F, H), down (H, F), norm_1, norm_2 (H,).
Every new value is float32(old) * float32(1 / C), rounded once, where C counts the copies of the old input index.
"""

import numpy as np


def random_model(rng, V, H, F, L, A, G, D):  # noqa: N803
    def normal(*size):
        return rng.standard_normal(size).astype(np.float32)

    layers = [
        {
            "q": normal(A, D, H),
            "k": normal(G, D, H),
            "v": normal(G, D, H),
            "o": normal(H, A, D),
            "gate": normal(F, H),
            "up": normal(F, H),
            "down": normal(H, F),
            "norm_1": normal(H),
            "norm_2": normal(H),
        }
        for _ in range(L)
    ]
    return {"embed": normal(V, H), "head": normal(V, H), "norm": normal(H), "layers": layers}


def inverse_counts(g, old):
    """1 / C(g(i)) for every new index i (equation 5)."""
    counts = [list(g).count(i) for i in range(old)]
    return np.array([np.float32(1.0 / counts[i]) for i in g], dtype=np.float32)


def first_copies(g):
    """Which new indices carry the old model on: the first of every old index."""
    seen = set()
    return [not (i in seen or seen.add(i)) for i in g]


def grow(model, hidden, heads, groups, ffn, variant, order):
    """Width, then depth.

    Args:
        hidden: g of the residual stream; heads, groups, ffn: g for every old layer.
        variant: "fpi", "aki", or "aki+residual" (new rows of the output projections from the next layer too).
        order: the old layer of each new layer.
    """
    h, inverse = list(hidden), inverse_counts(hidden, len(model["norm"]))
    wide = [widen(model, layer, h, inverse, heads, groups, ffn, variant) for layer in range(len(model["layers"]))]
    return {
        "embed": model["embed"][:, h],
        "head": model["head"][:, h] * inverse,
        "norm": model["norm"][h],
        "layers": [wide[layer] for layer in order],
    }


def widen(model, layer, h, inverse, heads, groups, ffn, variant):
    layers = model["layers"]
    top = layer == len(layers) - 1
    new_head = [variant != "fpi" and not top and not kept for kept in first_copies(heads[layer])]
    new_unit = [variant != "fpi" and not top and not kept for kept in first_copies(ffn[layer])]
    new_row = [variant == "aki+residual" and not top and not kept for kept in first_copies(h)]
    per_group = len(heads[layer]) // len(groups[layer])
    new_group = [all(new_head[g * per_group : (g + 1) * per_group]) for g in range(len(groups[layer]))]

    def unit(name, maps, fresh):
        out = []
        for i, is_new in enumerate(fresh):
            at = layer + 1 if is_new else layer
            out.append(layers[at][name][maps[at][i]][..., h] * inverse)
        return np.stack(out)

    def output(name, maps, old):
        out = []
        for j, is_new in enumerate(new_row):
            at = layer + 1 if is_new else layer
            share = inverse_counts(maps[at], old)
            row = layers[at][name][h[j]][list(maps[at])]
            out.append(row * share.reshape(-1, *[1] * (row.ndim - 1)))
        return np.stack(out)

    old = layers[layer]
    return {
        "q": unit("q", heads, new_head),
        "k": unit("k", groups, new_group),
        "v": unit("v", groups, new_group),
        "gate": unit("gate", ffn, new_unit),
        "up": unit("up", ffn, new_unit),
        "o": output("o", heads, old["o"].shape[1]),
        "down": output("down", ffn, old["down"].shape[1]),
        "norm_1": old["norm_1"][h],
        "norm_2": old["norm_2"][h],
    }


def fuse(model):
    """Megatron's tensors {(name, layer): array}: q heads of a group, then its k, then its v; gate above up."""
    out = {
        ("embedding.word_embeddings.weight", None): model["embed"],
        ("output_layer.weight", None): model["head"],
        ("decoder.final_layernorm.weight", None): model["norm"],
    }
    for n, layer in enumerate(model["layers"]):
        per_group = len(layer["q"]) // len(layer["k"])
        rows = []
        for g in range(len(layer["k"])):
            rows += [*layer["q"][g * per_group : (g + 1) * per_group], layer["k"][g], layer["v"][g]]
        attention, mlp = "decoder.layers.self_attention.", "decoder.layers.mlp."
        out[attention + "linear_qkv.weight", n] = np.concatenate(rows)
        out[attention + "linear_proj.weight", n] = layer["o"].reshape(len(layer["o"]), -1)
        out[attention + "linear_qkv.layer_norm_weight", n] = layer["norm_1"]
        out[mlp + "linear_fc1.weight", n] = np.concatenate([layer["gate"], layer["up"]])
        out[mlp + "linear_fc2.weight", n] = layer["down"]
        out[mlp + "linear_fc1.layer_norm_weight", n] = layer["norm_2"]
    return out
