"""config.json and Megatron's saved arguments: the same architecture in two forms.

`families/` has the architectures that are known on both sides.  What one side has and the other cannot express is
refused by name, never left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

from megatron_growth.errors import CheckpointError, UnsupportedError, nearest
from megatron_growth.exchange.families import FAMILIES, Family, named, of_shape
from megatron_growth.layout.architecture import (
    NORM_EPSILON,
    ROPE_FACTOR,
    SWITCHES,
    arguments_of,
    flags_beyond,
    settings_of,
)
from megatron_growth.shape import ModelShape

# Megatron has Llama 3's rule with these numbers built in (rotary_pos_embedding.py); only the factor can be chosen.
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
DTYPES = ("bfloat16", "float16", "float32")


# --------------------------------------------------------------------------------------------------------------- export


def to_config(
    shape: ModelShape, args: argparse.Namespace, *, vocab: int, dtype: str, eod: int | list[int] | None
) -> dict[str, Any]:
    """The config.json of a Megatron model, from its sizes and saved arguments.

    Args:
        vocab: rows of the exported embedding.
        dtype: of the exported weights, as torch names it.
        eod: id that ends a document (a model that came from transformers may have several), None when not known.

    Raises:
        UnsupportedError: no family of transformers has this architecture.
    """
    family = family_of(shape, args)
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "dtype": dtype,
        "vocab_size": vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.query_groups,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _positions(args),
        "rms_norm_eps": float(NORM_EPSILON.of(args)),
        "rope_parameters": _rope_out(args),
        "tie_word_embeddings": shape.tied_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": float(getattr(args, "init_method_std", 0.02)),
        "bos_token_id": None,
        "eos_token_id": eod,
        "pad_token_id": None,
        "use_cache": True,
    }
    return config | family.config()


def family_of(shape: ModelShape, args: argparse.Namespace) -> Family:
    """The family as which a Megatron model is exported.

    Raises:
        UnsupportedError: there is none; names what no family has.
    """
    told = settings_of(args)
    position = told["position_embedding_type"]
    wrong = [
        name
        for name, is_wrong in (
            (f"--normalization {shape.norm} (they have RMSNorm)", shape.norm != "RMSNorm"),
            ("a feed-forward block without SwiGLU", not shape.gated),
            ("biases in all linear layers", shape.bias),
            ("layers without a feed-forward block", shape.sublayers != "full"),
            ("no layers", not shape.layers),
            (f"positions by {position!r}", position != "rope"),
            ("interleaved rotary embeddings", bool(getattr(args, "rotary_interleaved", False))),
            ("partial rotary embeddings", float(getattr(args, "rotary_percent", 1.0)) != 1.0),
            ("attention windows", bool(getattr(args, "window_size", None))),
        )
        if is_wrong
    ]
    wrong += flags_beyond(_SAID, args)
    if wrong:
        raise UnsupportedError(
            f"no family that is known ({', '.join(FAMILIES.names())}) has a counterpart of: {', '.join(wrong)}",
            fix="only models that one of them can express are exported",
        )
    family = of_shape(shape)
    family.check(shape)
    return family


# Settings that a configuration says or that are refused above; any other must be at its default.
_SAID = (
    *(*SWITCHES, "untie_embeddings_and_output_weights", "position_embedding_type", "rotary_base", "rotary_percent"),
    *("rotary_interleaved", "use_rope_scaling", "rope_scaling_factor", "window_size", "window_attn_skip_freq"),
)


def _rope_out(args: argparse.Namespace) -> dict[str, Any]:
    told = settings_of(args)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(told["rotary_base"])}
    if told["use_rope_scaling"]:
        rope |= {"rope_type": "llama3", "factor": float(told["rope_scaling_factor"]), **LLAMA3_ROPE}
    return rope


def _positions(args: argparse.Namespace) -> int:
    found = getattr(args, "max_position_embeddings", None) or getattr(args, "seq_length", None)
    if not found:
        raise CheckpointError("the saved arguments do not say how long a sequence may be (--max-position-embeddings)")
    return int(found)


# --------------------------------------------------------------------------------------------------------------- import


def from_config(config: dict[str, Any], where: str) -> tuple[ModelShape, argparse.Namespace]:
    """Sizes and Megatron arguments of a config.json of transformers 4 or 5; `where` is its path, for messages.

    Raises:
        UnsupportedError: names what has no counterpart in Megatron.
        CheckpointError: a value that decides the model is missing, or sizes contradict each other.
    """
    family = imported_family(config, where)
    config = _checked(config, _KINDS, where)
    _refuse(config, family, where)
    need = _Needed(config, where)
    heads = need.integer("num_attention_heads")
    shape = ModelShape(
        hidden=need.integer("hidden_size"),
        ffn=need.integer("intermediate_size"),
        layers=need.integer("num_hidden_layers"),
        heads=heads,
        vocab=need.integer("vocab_size"),
        query_groups=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or 0),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
    )
    return shape, _arguments(config, shape, need, where)


def imported_family(config: dict[str, Any], where: str) -> Family:
    """The family of a config.json.

    Raises:
        UnsupportedError: it is not known.
    """
    name = config.get("model_type")
    if name not in FAMILIES.names():
        raise UnsupportedError(
            f"models of type {name!r} cannot be imported", where=where, fix=nearest(str(name), FAMILIES.names())
        )
    return named(name)


# What a value may be where it is given; null is the same as not given.
_NUMBER, _SWITCH, _BLOCK = ("a number", (int, float)), ("true or false", (bool,)), ("an object", (dict,))
_KINDS = {
    **dict.fromkeys(("rope_theta", "partial_rotary_factor", "initializer_range"), _NUMBER),
    **dict.fromkeys(("num_key_value_heads", "head_dim"), ("a whole number", (int,))),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), _SWITCH),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _BLOCK),
    "layer_types": ("a list", (list,)),
    "eos_token_id": ("a token's id, or a list of them", (int, list)),
}
_ROPE_KINDS = dict.fromkeys(("rope_theta", "partial_rotary_factor", "factor", *LLAMA3_ROPE), _NUMBER)


def _checked(values: dict[str, Any], kinds: Mapping[str, tuple[str, tuple[type, ...]]], where: str) -> dict[str, Any]:
    """The values without nulls, each of its kind; CheckpointError names one that is not."""
    given = {name: value for name, value in values.items() if value is not None or name not in kinds}
    for name, (what, types) in kinds.items():
        value = given.get(name, types[0]())
        if type(value) not in types or (isinstance(value, float) and not math.isfinite(value)):
            raise CheckpointError(f"{name} is {value!r}; it must be {what}", where=where, fix="restore config.json")
    return given


class _Needed:
    """Reads the values of config.json that must not be missing."""

    def __init__(self, config: dict[str, Any], where: str) -> None:
        self._config, self._where = config, where

    def number(self, name: str) -> float:
        value = self._config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._wrong(name, "a number above 0")
        return float(value)

    def integer(self, name: str) -> int:
        if not (value := self.number(name)).is_integer():
            raise self._wrong(name, "a whole number")
        return int(value)

    def _wrong(self, name: str, wanted: str) -> CheckpointError:
        what = f"{name} is {self._config.get(name)!r}; it must be {wanted}"
        return CheckpointError(what, where=self._where, fix="restore config.json")


def _refuse(config: dict[str, Any], family: Family, where: str) -> None:
    rope = _rope_of(config, where)
    scaling = rope.get("rope_type", rope.get("type", "default"))
    wrong = {
        "rotary settings of their own for each kind of layer": any(isinstance(value, dict) for value in rope.values()),
        **family.refused(config),
        f"hidden_act {config.get('hidden_act')!r}": config.get("hidden_act", "silu") != "silu",
        f"rope scaling {scaling!r}": scaling not in ("default", "llama3"),
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1) != 1,
        "quantization_config": bool(config.get("quantization_config")),
    }
    if scaling == "llama3":
        rope = {"original_max_position_embeddings": config.get("max_position_embeddings"), **rope}  # as transformers
        wrong |= {
            f"rope scaling with {name} {rope.get(name)} (Megatron has {value})": rope.get(name) != value
            for name, value in LLAMA3_ROPE.items()
        }
        wrong["rope scaling without a factor"] = "factor" not in rope
    found = [name for name, is_wrong in wrong.items() if is_wrong]
    if found:
        raise UnsupportedError(f"Megatron has no counterpart of: {', '.join(found)}", where=where)


def _rope_of(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Rotary settings: transformers 5 has one block of them, transformers 4 a base and an optional scaling.

    Where there are both, the older one counts, as in transformers; what the block does not have stands beside it.
    """
    beside = {name: config[name] for name in ("rope_theta", "partial_rotary_factor") if name in config}
    block = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return {"rope_theta": 10000.0} | beside | _checked(block, _ROPE_KINDS, where)


def _arguments(config: dict[str, Any], shape: ModelShape, need: _Needed, where: str) -> argparse.Namespace:
    """What Megatron would have saved: the arguments that decide the function, and counters at zero."""
    rope = _rope_of(config, where)
    base = float(rope["rope_theta"])
    if base != int(base):
        raise UnsupportedError(f"rope_theta is {base}; Megatron's --rotary-base is a whole number", where=where)
    dtype = config.get("dtype", config.get("torch_dtype", "float32"))
    return argparse.Namespace(
        **arguments_of(shape),
        encoder_num_layers=shape.layers,
        layernorm_epsilon=need.number("rms_norm_eps"),
        apply_layernorm_1p=False,
        position_embedding_type="rope",
        rotary_base=int(base),
        rotary_percent=1.0,
        rotary_interleaved=False,
        use_rope_scaling=rope.get("rope_type", rope.get("type")) == "llama3",
        rope_scaling_factor=float(rope.get("factor", ROPE_FACTOR)),
        max_position_embeddings=need.integer("max_position_embeddings"),
        seq_length=need.integer("max_position_embeddings"),
        vocab_size=shape.vocab,
        padded_vocab_size=shape.vocab,
        make_vocab_size_divisible_by=1,
        null_tokenizer_eod_id=config.get("eos_token_id"),
        growth_vocabulary=None,  # only the rows are known; the tokenizer may have fewer tokens
        init_method_std=float(config.get("initializer_range", 0.02)),
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        iteration=0,
        consumed_train_samples=0,
        consumed_valid_samples=0,
        skipped_train_samples=0,
    )
