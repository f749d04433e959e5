"""bert2BERT written out in loops, from the paper's equations (x W with W shaped in x out); shares no code with axes.py.

    in axis    U~[i, :] = W[g_in(i), :] / C(g_in(i))
    out axis   U[:, j] = U~[:, g_out(j)]
    AKI        U^l[:, j] = U~^(l+1)[:, g_out^(l+1)(j)]  for new j, where a layer l+1 exists

Shape legend: H hidden, F ffn, A query heads, G query groups, D head dim, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Maps:
    """Index maps g of one source layer."""

    heads: list[int]
    groups: list[int]
    ffn: list[int]


def expand_in(weight, g):
    """Rows of an (in, out) matrix."""
    out = np.zeros((len(g), weight.shape[1]))
    for i in range(len(g)):
        for o in range(weight.shape[1]):
            out[i, o] = weight[g[i], o] / g.count(g[i])
    return out


def expand_out(weight, g):
    """Columns of an (in, out) matrix."""
    out = np.zeros((weight.shape[0], len(g)))
    for i in range(weight.shape[0]):
        for j in range(len(g)):
            out[i, j] = weight[i, g[j]]
    return out


def units_out(layers, upper_layers, old, block=1):
    """Columns of an (in, out) matrix in blocks, new ones from the layer above when there is one.

    Args:
        layers, upper_layers: (matrix with its in axis expanded, its index map) of this layer and of the one above.
        old: number of old blocks; block: columns of one.
    """
    matrix, g = layers
    columns = []
    for j in range(len(g)):
        own, source = (matrix, g[j]) if j < old or upper_layers is None else (upper_layers[0], upper_layers[1][j])
        columns += [own[:, source * block + d] for d in range(block)]
    return np.stack(columns, axis=1)


def blocks(g, block):
    """An index map of heads as one of their rows."""
    return [i * block + d for i in g for d in range(block)]


def split_qkv(fused, groups, per_group, head_dim):
    """(in, out) matrices of query, key and value from Megatron's fused rows."""
    query, key, value = [], [], []
    step = (per_group + 2) * head_dim
    for g in range(groups):
        start = g * step
        query += [fused[start + r] for r in range(per_group * head_dim)]
        key += [fused[start + per_group * head_dim + r] for r in range(head_dim)]
        value += [fused[start + (per_group + 1) * head_dim + r] for r in range(head_dim)]
    return np.stack(query).T, np.stack(key).T, np.stack(value).T


def fuse_qkv(query, key, value, groups, per_group, head_dim):
    """The reverse of `split_qkv`."""
    rows = []
    for g in range(groups):
        rows += [query.T[g * per_group * head_dim + r] for r in range(per_group * head_dim)]
        rows += [key.T[g * head_dim + r] for r in range(head_dim)]
        rows += [value.T[g * head_dim + r] for r in range(head_dim)]
    return np.stack(rows)


def grow_layer(old, layer, source, target, hidden, maps, aki_units, aki_residual):
    """One grown layer as {name without prefix: tensor}; heads are multi-head (groups = heads)."""
    top = layer + 1 >= len(maps)
    dim = source.head_dim

    def get(index, name):
        return old[f"decoder.layers.{index}.{name}"]

    def norm(name):
        return get(layer, f"{name}.layer_norm_weight")[hidden]

    def qkv_in(index):
        fused = get(index, "self_attention.linear_qkv.weight")
        return [expand_in(m, hidden) for m in split_qkv(fused, source.query_groups, source.heads_per_group, dim)]

    def halves_in(index):
        return [expand_in(half.T, hidden) for half in np.split(get(index, "mlp.linear_fc1.weight"), 2)]

    upper = None if top or not aki_units else layer + 1
    own_qkv, up_qkv = qkv_in(layer), qkv_in(upper) if upper else [None] * 3
    grown = []
    for part in range(3):
        above = (up_qkv[part], maps[upper].heads) if upper else None
        grown.append(units_out((own_qkv[part], maps[layer].heads), above, source.heads, dim))
    own_halves, up_halves = halves_in(layer), halves_in(upper) if upper else [None] * 2
    fc1 = []
    for half in range(2):
        above = (up_halves[half], maps[upper].ffn) if upper else None
        fc1.append(units_out((own_halves[half], maps[layer].ffn), above, source.ffn).T)

    def heads_of(g):
        return blocks(g.heads, dim)

    def output(name, g_of):
        own = (expand_in(get(layer, name).T, g_of(maps[layer])), hidden)
        above = None
        if aki_residual and not top:
            above = (expand_in(get(layer + 1, name).T, g_of(maps[layer + 1])), hidden)
        return units_out(own, above, source.hidden).T

    return {
        "self_attention.linear_qkv.layer_norm_weight": norm("self_attention.linear_qkv"),
        "self_attention.linear_qkv.weight": fuse_qkv(*grown, target.query_groups, target.heads_per_group, dim),
        "self_attention.linear_proj.weight": output(
            "self_attention.linear_proj.weight", lambda m: blocks(m.heads, dim)
        ),
        "mlp.linear_fc1.layer_norm_weight": norm("mlp.linear_fc1"),
        "mlp.linear_fc1.weight": np.concatenate(fc1),
        "mlp.linear_fc2.weight": output("mlp.linear_fc2.weight", lambda m: m.ffn),
    }


def grow_model(old, source, target, hidden, maps, *, aki_units, aki_residual):
    """The whole model: width first, then whole stacks and the remainder from the top layers."""
    order = []
    while len(order) + source.layers <= target.layers:
        order += list(range(source.layers))
    remainder = target.layers - len(order)
    order += [source.layers - remainder + i for i in range(remainder)]
    new = {
        "embedding.word_embeddings.weight": expand_out(old["embedding.word_embeddings.weight"], hidden),
        "decoder.final_layernorm.weight": old["decoder.final_layernorm.weight"][hidden],
        "output_layer.weight": expand_in(old["output_layer.weight"].T, hidden).T,
    }
    for t, layer in enumerate(order):
        grown = grow_layer(old, layer, source, target, hidden, maps, aki_units, aki_residual)
        new |= {f"decoder.layers.{t}.{name}": value for name, value in grown.items()}
    return new
