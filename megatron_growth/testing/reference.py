"""Dense reference growth: one process, whole tensors, no shards, no files.  The standard for engine and operators.

A state is a dict of numpy arrays under Megatron's per-layer names (`decoder.layers.3.mlp.linear_fc1.weight`), in
Megatron's order (QKV fused per query group, SwiGLU as [gate; up]).  An operator of an outside package can be checked
with four calls: `random_state`, `grow`, `to_transformers` (twice), then compare the logits.

Shape legend: H hidden, F ffn, A query heads, G query groups, D head dim, V vocabulary; T tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from megatron_growth.axes import INIT, MEAN, ZERO, LayerTake, Side
from megatron_growth.checkpoint.sides import sides
from megatron_growth.errors import UnsupportedError
from megatron_growth.layout import Parameter, full_name, lookup, parameters_of, parse_key
from megatron_growth.layout.parameters import ATTENTION, FINAL_NORM, MLP, dimensions
from megatron_growth.operators import GrowthMap
from megatron_growth.shape import ModelShape

Array = NDArray[np.floating[Any]]
State = dict[str, Array]

_KINDS = {"one": 1.0, "zero": 0.0}


def keys_of(parameter: Parameter, shape: ModelShape) -> list[str]:
    """The per-layer keys of one parameter family, bottom to top; one key for a parameter outside the layers."""
    if not parameter.layered:
        return [parameter.name]
    return [full_name(parameter.name, layer) for layer in range(shape.layers)]


def random_state(
    shape: ModelShape, seed: int = 0, *, trained: bool = True, std: float = 0.2, dtype: DTypeLike = np.float64
) -> State:
    """Random weights of a whole model.

    Args:
        trained: norms and biases are random too, as after training; otherwise every parameter is drawn as Megatron
            initialises it: N(0, std), output projections N(0, std / sqrt(2 L)), norms one, biases zero.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for parameter in parameters_of(shape):
        for key in keys_of(parameter, shape):
            noise = rng.standard_normal(dimensions(parameter, shape))
            if parameter.init in _KINDS:
                value = _KINDS[parameter.init] + (0.3 * noise if trained else 0.0 * noise)
            else:
                scaled = parameter.init == "output" and not trained
                value = noise * (std / np.sqrt(2 * shape.layers) if scaled else std)
            state[key] = value.astype(dtype)
    return state


# ---------------------------------------------------------------------------------------------------------- growth


def grow(old: State, growth: GrowthMap, initial: State, *, init_std: float = 0.02) -> State:
    """The grown model, whole; `old` are the weights that it grows from.

    Args:
        initial: the target's own initial weights; their keys are the target's parameters.
        init_std: the std of the model's init, in which cancelling noise is measured.
    """
    return {key: _grow_one(key, old, growth, initial[key], init_std) for key in initial}


def _grow_one(key: str, old: State, growth: GrowthMap, initial: Array, init_std: float) -> Array:
    parsed = parse_key(key)
    parameter = lookup(parsed.name)
    if parsed.layer is None:
        if key.startswith(FINAL_NORM) and not growth.layers.final_norm:
            return initial
        rows, columns = sides(parameter, growth, None)
        return fill(old[key], rows, columns, initial, _noise(key, growth, None, rows, columns, init_std))
    take = growth.layers.takes[parsed.layer]
    taken = take.attention if parameter.sublayer == "attention" else take.ffn
    if not taken or not take.sources:
        return initial
    if take.zero_output and parameter.is_output_projection:
        return np.zeros_like(initial)
    return _layer_sum(parameter, parsed.layer, take, old, growth, initial, init_std)


def _layer_sum(
    parameter: Parameter, new: int, take: LayerTake, old: State, growth: GrowthMap, initial: Array, init_std: float
) -> Array:
    """The weighted sum over the source layers of one new layer."""
    keys = keys_of(parameter, growth.source)
    total = np.zeros(initial.shape)
    for layer, weight in take.sources:
        rows, columns = sides(parameter, growth, layer)
        noise = _noise(parameter.name, growth, new, rows, columns, init_std)
        value = fill(old[keys[layer]], rows, columns, initial, noise)
        if rows.from_next.any():
            upper = min(layer + 1, growth.source.layers - 1)
            _, columns = sides(parameter, growth, upper)
            noise = _noise(parameter.name, growth, new, rows, columns, init_std)
            above = fill(old[keys[upper]], rows, columns, initial, noise)
            value = np.where(rows.from_next.reshape(-1, *[1] * (value.ndim - 1)), above, value)
        total += weight * value
    return total.astype(initial.dtype)


def fill(old: Array, rows: Side, columns: Side | None, initial: Array, noise: Array | float = 0.0) -> Array:
    """One new tensor from one old tensor: zero overrides init, and init overrides copies and means."""
    value = _gather(old.astype(np.float64), rows)
    codes = [rows.source]
    if columns is not None:
        value = _gather(value.T, columns).T
        codes = [rows.source[:, None], columns.source[None, :]]
    value = value + noise
    for code, filled in ((INIT, initial), (ZERO, np.zeros_like(initial))):
        mask = np.zeros(value.shape, dtype=np.bool_)
        for source in codes:
            mask |= source == code
        value = np.where(mask, filled, value)
    return value.astype(initial.dtype)


def _gather(old: Array, side: Side) -> Array:
    """Rows of `old` as a side takes them; the mean over all old rows is appended as a last row."""
    extended = np.concatenate([old, old.mean(axis=0, keepdims=True)])
    index = np.where(side.source == MEAN, len(old), np.maximum(side.source, 0))
    return extended[index] * side.coefficient.reshape(-1, *[1] * (old.ndim - 1))


def _noise(
    name: str, growth: GrowthMap, layer: int | None, rows: Side, columns: Side | None, init_std: float
) -> Array | float:
    """Noise of one tensor: one value for each (row, old column), times the column's noise weight."""
    if columns is None or not columns.noise.any():
        return 0.0
    rng = growth.seed.stream("noise", name, -1 if layer is None else layer)
    values = rng.standard_normal((len(rows), int(columns.source.max()) + 1))
    return values[:, np.maximum(columns.source, 0)] * columns.noise * init_std


# ------------------------------------------------------------------------------------------------- transformers' models


def to_transformers(state: State, shape: ModelShape, *, epsilon: float = 1e-5) -> torch.nn.Module:
    """The same model in transformers: Llama, Qwen 2 (QKV bias) or Qwen 3 (query and key norms) for RMSNorm with SwiGLU,
    Starcoder2 for LayerNorm with GELU.

    Norms compute in the weights' own precision, so that a float64 model is float64 throughout.

    Args:
        epsilon: of every norm; of a grown model `growth.norm_epsilon` of the source's.

    Raises:
        UnsupportedError: transformers has no model with this norm and feed-forward block.
    """
    common = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied_embeddings,
        "max_position_embeddings": 128,
        "attn_implementation": "sdpa",
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config, build = _transformers_model(shape, epsilon, common)
    # Set afterwards: LlamaConfig refuses a hidden size that the heads do not divide, and Qwen2Config knows no head_dim;
    # their models take both.
    config.num_attention_heads, config.num_key_value_heads = shape.heads, shape.query_groups
    config.head_dim = shape.head_dim
    model: torch.nn.Module = build(config)
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in _renamed(state, shape).items()}
    model.to(next(iter(tensors.values())).dtype)
    _norms_in_own_precision(model)
    missing = model.load_state_dict(tensors, strict=False)
    unexpected = [*missing.unexpected_keys, *(k for k in missing.missing_keys if k != "lm_head.weight")]
    if unexpected or (missing.missing_keys and not shape.tied_embeddings):
        raise UnsupportedError(f"the conversion to transformers is incomplete: {missing}")
    return model.eval()


def _transformers_model(shape: ModelShape, epsilon: float, common: dict[str, Any]) -> tuple[Any, Any]:
    """Configuration and class of the transformers model with this architecture."""
    import transformers as hf

    family = (shape.norm, shape.gated, shape.bias, shape.qkv_bias, shape.qk_norm)
    if family[:2] == ("RMSNorm", True):
        common = common | {"rms_norm_eps": epsilon}
        if shape.bias == shape.qkv_bias and not shape.qk_norm:
            return hf.LlamaConfig(attention_bias=shape.bias, mlp_bias=shape.bias, **common), hf.LlamaForCausalLM
        if family[2:] == (False, True, False):
            return hf.Qwen2Config(**common), hf.Qwen2ForCausalLM
        if family[2:] == (False, False, True):
            return hf.Qwen3Config(attention_bias=False, **common), hf.Qwen3ForCausalLM
    if family[:2] == ("LayerNorm", False) and shape.bias == shape.qkv_bias and not shape.qk_norm:
        config = hf.Starcoder2Config(norm_epsilon=epsilon, use_bias=shape.bias, **common)
        return config, hf.Starcoder2ForCausalLM
    raise UnsupportedError(
        f"transformers has no model of this architecture: {shape}",
        fix="use RMSNorm with SwiGLU (and a QKV bias or query and key norms), or LayerNorm without gating",
    )


def _norms_in_own_precision(model: torch.nn.Module) -> None:
    """Replace norms that go through float32 by torch's."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=child.weight.dtype)
                setattr(parent, name, norm)


def _renamed(state: State, shape: ModelShape) -> State:
    """Megatron's names and fused tensors as transformers' names and separate ones."""
    out = {}
    for key, value in state.items():
        parsed = parse_key(key)
        prefix = f"model.layers.{parsed.layer}."
        for name, part in _parts(parsed.name, value, shape).items():
            out[name if parsed.layer is None else prefix + name] = part
    return out


def _parts(name: str, value: Array, shape: ModelShape) -> State:
    """The transformers names, without the layer's prefix, that one Megatron tensor becomes."""
    stem, _, kind = name.rpartition(".")
    kind = kind.removeprefix("layer_norm_")
    if name.startswith(ATTENTION + "linear_qkv.layer_norm"):
        return {f"input_layernorm.{kind}": value}
    if name.startswith(MLP + "linear_fc1.layer_norm"):
        return {f"post_attention_layernorm.{kind}": value}
    if stem in (ATTENTION + "q_layernorm", ATTENTION + "k_layernorm"):
        return {f"self_attn.{stem.removeprefix(ATTENTION)[0]}_norm.{kind}": value}
    if stem == ATTENTION + "linear_qkv":
        grouped = value.reshape(shape.query_groups, shape.heads_per_group + 2, shape.head_dim, *value.shape[1:])
        split = {"q": grouped[:, :-2], "k": grouped[:, -2], "v": grouped[:, -1]}
        return {f"self_attn.{x}_proj.{kind}": part.reshape(-1, *value.shape[1:]) for x, part in split.items()}
    if stem == MLP + "linear_fc1" and shape.gated:
        gate, up = np.split(value, 2)
        return {f"mlp.gate_proj.{kind}": gate, f"mlp.up_proj.{kind}": up}
    plain = {
        "embedding.word_embeddings": "model.embed_tokens",
        "decoder.final_layernorm": "model.norm",
        "output_layer": "lm_head",
        ATTENTION + "linear_proj": "self_attn.o_proj",
        MLP + "linear_fc1": "mlp.c_fc",
        MLP + "linear_fc2": "mlp.down_proj" if shape.gated else "mlp.c_proj",
    }
    return {f"{plain[stem]}.{kind}": value}


def logits(state: State, shape: ModelShape, tokens: NDArray[np.int64], *, epsilon: float = 1e-5) -> Array:
    """Logits (batch, T, V) of a state, computed by transformers."""
    with torch.no_grad():
        model = to_transformers(state, shape, epsilon=epsilon)
        return model(torch.from_numpy(tokens), use_cache=False).logits.numpy()


def loss(state: State, shape: ModelShape, tokens: NDArray[np.int64], *, epsilon: float = 1e-5) -> float:
    """Mean next-token cross-entropy in nats of a state on tokens (batch, T)."""
    scores = torch.from_numpy(logits(state, shape, tokens, epsilon=epsilon))[:, :-1]
    return float(torch.nn.functional.cross_entropy(scores.flatten(0, 1), torch.from_numpy(tokens)[:, 1:].flatten()))


def loss_jump(old: State, growth: GrowthMap, tokens: NDArray[np.int64]) -> float:
    """Change of the loss at growth, in nats: zero up to rounding for exact operators."""
    initial = random_state(growth.target, trained=False, std=0.02, dtype=next(iter(old.values())).dtype)
    grown = grow(old, growth, initial)
    after = loss(grown, growth.target, tokens, epsilon=growth.norm_epsilon(1e-5))
    return after - loss(old, growth.source, tokens)


def relative_difference(ours: Array, theirs: Array) -> float:
    """Largest absolute difference over the largest absolute value of `theirs`."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
