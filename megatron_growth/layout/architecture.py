"""The one table of Megatron's arguments that decide what function a dense GPT model computes.

A shape is written as arguments and as flags from here.  Two models of the same shape may still be different functions:
another rotary base, another activation.  Growth keeps the function only where all of these agree.  They can be read
from the arguments that any version of Megatron saved: each setting knows its older names, and what a Megatron without
it did.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from megatron_growth.shape import ModelShape

UNKNOWN = "unknown"
ROPE_FACTOR = 8.0  # of --use-rope-scaling: Llama 3.1's, which Megatron takes where nothing else is said
Values = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One argument.

    Attributes:
        name: attribute of Megatron's arguments.
        absent: its value in arguments of a Megatron without it; a function of these arguments, or the value.
        unset: what Megatron takes where it was not given, which is saved as None.
        as_unset: values that mean the same as not giving it.
        recipe: the key of a recipe that sets it; "" where only the recipe's `megatron` block does.
        flag: the flag that sets it, or turns it on or off; made of the name where it is not given.
        older: names that it had in other versions.
        turns_off: whether the flag turns the switch off (--disable-bias-linear).
        counts: whether it matters, given the other settings.
    """

    name: str
    absent: Any = False
    recipe: str = ""
    flag: str = ""
    unset: Any = None
    as_unset: tuple[Any, ...] = ()
    older: tuple[str, ...] = ()
    turns_off: bool = False
    counts: Callable[[Values], bool] = lambda _: True

    def __post_init__(self) -> None:
        made = f"--{'no-' if self.turns_off else ''}{self.name.replace('_', '-')}"
        object.__setattr__(self, "flag", self.flag or made)

    def of(self, args: Namespace) -> Any:
        """Its value in some arguments."""
        for name in (self.name, *self.older):
            if hasattr(args, name):
                value = getattr(args, name)
                value = tuple(value) if isinstance(value, list) else value
                return self.unset if value is None or value in self.as_unset else value
        return self.absent(args) if callable(self.absent) else self.absent

    def written(self, value: Any) -> str:
        """The words of a command line that give it this value."""
        if isinstance(value, bool) or value is None:
            return self.flag if bool(value) != self.turns_off else f"no {self.flag}"
        words = value if isinstance(value, tuple) else (value,)
        return f"{self.flag} {' '.join(str(word) for word in words)}"

    def in_recipe(self) -> str:
        """Where a recipe sets it."""
        return self.recipe or f"megatron: {{{self.flag.removeprefix('--')}: ...}}"


def _position(args: Namespace) -> str:
    return "rope" if getattr(args, "use_rotary_position_embeddings", False) else UNKNOWN


def _rotary(values: Values) -> bool:
    return values["position_embedding_type"] in ("rope", "yarn", "mrope", UNKNOWN)


def _scaled_rotary(values: Values) -> bool:
    return bool(values.get("use_rope_scaling"))


def _yarn(values: Values) -> bool:
    return values["position_embedding_type"] == "yarn"


def _gelu(values: Values) -> bool:
    return not (values["swiglu"] or values["squared_relu"] or values["quick_geglu"])


def _fused_gelu(values: Values) -> bool:
    return _gelu(values) and bool(values["add_bias_linear"])  # without biases Megatron turns the fusion off


def _clamped_swiglu(values: Values) -> bool:
    return bool(values["swiglu"]) and values["activation_func_clamp_value"] is not None


def _module(values: Values) -> bool:
    return _gelu(values) or _clamped_swiglu(values)


SETTINGS = (
    Setting("normalization", "LayerNorm", "model.norm"),
    Setting("layernorm_zero_centered_gamma", flag="--apply-layernorm-1p", older=("apply_layernorm_1p",)),
    Setting("position_embedding_type", _position, "model.position"),
    Setting("rotary_base", 10000, "model.rope_base", counts=_rotary),
    Setting("rotary_percent", 1.0, counts=_rotary),
    Setting("rotary_interleaved", counts=_rotary),
    Setting("rotary_seq_len_interpolation_factor", None, counts=_rotary),
    Setting("use_rope_scaling", False, "model.rope_scaling", counts=_rotary),
    Setting("rope_scaling_factor", ROPE_FACTOR, "model.rope_scaling.factor", counts=_scaled_rotary),
    Setting("no_rope_freq", None, counts=_rotary),
    Setting("mrope_section", None, counts=_rotary),
    Setting("rotary_scaling_factor", 1.0, counts=_yarn),
    Setting("yarn_original_max_position_embeddings", UNKNOWN, unset=4096, counts=_yarn),
    Setting("yarn_beta_fast", UNKNOWN, unset=32.0, counts=_yarn),
    Setting("yarn_beta_slow", UNKNOWN, unset=1.0, counts=_yarn),
    Setting("yarn_correction_range_round_to_int", UNKNOWN, unset=True, turns_off=True, counts=_yarn),
    Setting("mscale", 1.0, counts=_yarn),
    Setting("mscale_all_dim", 0.0, counts=_yarn),
    Setting("swiglu", False, "model.gated"),
    Setting("squared_relu"),
    Setting("quick_geglu"),
    Setting("openai_gelu"),
    Setting("glu_linear_offset", 0.0),
    Setting("activation_func_clamp_value", None),
    Setting("add_bias_linear", True, "model.bias", flag="--disable-bias-linear", turns_off=True),
    # Fused, and as Transformer Engine's module, GELU is its tanh approximation and SwiGLU is not clamped (`_FUSED`);
    # else GELU is exact, by erf, and SwiGLU is clamped.
    Setting("bias_gelu_fusion", True, turns_off=True, counts=_fused_gelu),
    Setting("use_te_activation_func", counts=_module),
    Setting("bias_swiglu_fusion", True, turns_off=True, counts=_clamped_swiglu),
    Setting("add_qkv_bias", lambda args: getattr(args, "add_bias_linear", True), "model.qkv_bias"),
    Setting("qk_layernorm", False, "model.qk_norm"),
    Setting("qk_l2_norm"),
    Setting("softmax_type", "vanilla"),
    Setting("window_size", None),
    Setting("window_attn_skip_freq", None, counts=lambda values: values.get("window_size") is not None),
    Setting("apply_residual_connection_post_layernorm"),
    # Layers of the user's own; "local" are Megatron's without Transformer Engine, which compute the same.
    Setting("spec", None, as_unset=(("local",), ())),
    Setting("untie_embeddings_and_output_weights", False, "model.tied_embeddings"),
)
# Megatron's argument -> the field of ModelShape that it says; `arguments_of` has the two that are not one of them.
SIZES = {
    "num_layers": "layers",
    "hidden_size": "hidden",
    "ffn_hidden_size": "ffn",
    "num_attention_heads": "heads",
    "num_query_groups": "query_groups",
    "kv_channels": "head_dim",
}
SWITCHES = {
    "normalization": "norm",
    "swiglu": "gated",
    "add_bias_linear": "bias",
    "add_qkv_bias": "qkv_bias",
    "qk_layernorm": "qk_norm",
}
_GROUPS = Setting("num_query_groups", counts=lambda values: values["group_query_attention"])
NORM_EPSILON = Setting("layernorm_epsilon", 1e-5, "model.norm_epsilon", "--norm-epsilon", older=("norm_epsilon",))
# One of them is as good as another: they compute the same activation.
_FUSED = ("bias_gelu_fusion", "bias_swiglu_fusion", "use_te_activation_func")

# What growth does not know, by the argument that asks for it.
UNSUPPORTED = {
    "num_experts": "mixture of experts",
    "multi_latent_attention": "multi-latent attention",
    "mtp_num_layers": "multi-token prediction",
    "layernorm_zero_centered_gamma": "zero-centred norm weights (--apply-layernorm-1p)",
    "apply_layernorm_1p": "zero-centred norm weights (--apply-layernorm-1p)",
    "use_mup": "maximal update parametrisation (--use-mup), which scales by the width",
    "attention_output_gate": "a gate on the output of attention",
    "experimental_attention_variant": "experimental attention",
    "heterogeneous_layers_config_path": "layers that differ from each other",
    "is_hybrid_model": "state-space layers",
    "hybrid_layer_pattern": "layers of several kinds (--hybrid-layer-pattern)",
}
# Layers of which every n-th is another kind: a layer that moves in depth would become another function.
BY_NUMBER = {"no_rope_freq": "--no-rope-freq", "window_attn_skip_freq": "--window-attn-skip-freq"}


@dataclass(frozen=True)
class Difference:
    """A setting in which two models differ: what one has, and what the other one has."""

    setting: Setting
    source: Any
    target: Any

    def __str__(self) -> str:
        return f"{self.setting.name} is {self.source} in the source and {self.target} here"


def arguments_of(shape: ModelShape) -> Values:
    """What Megatron's arguments say of a model of this shape, by their names; not its vocabulary."""
    return {name: getattr(shape, field) for name, field in (SIZES | SWITCHES).items()} | {
        "group_query_attention": shape.query_groups != shape.heads,
        "untie_embeddings_and_output_weights": not shape.tied_embeddings,
    }


def flags_of(values: Values) -> Values:
    """The flags, without dashes, that give arguments these values; without those that do not matter beside the rest."""
    settings = {setting.name: setting for setting in (*SETTINGS, NORM_EPSILON, _GROUPS)}
    found: Values = {}
    for name, value in values.items():
        setting = settings.get(name, Setting(name))
        if setting.counts(values):
            found[setting.flag.removeprefix("--")] = not value if setting.turns_off else value
    return found


def settings_of(args: Namespace) -> Values:
    """The settings that matter to the model of these arguments, by name."""
    values: Values = {}
    for setting in SETTINGS:
        value = setting.of(args)
        if setting.counts(values):
            values[setting.name] = value
    return values


def flags_beyond(known: Collection[str], args: Namespace) -> list[str]:
    """Flags of settings that matter to the model of these arguments, are not at their default, and are not `known`."""
    values, defaults = settings_of(args), Namespace()
    found = [setting for setting in SETTINGS if setting.name in values and setting.name not in known]
    return [s.written(values[s.name]) for s in found if (values[s.name] or None) != (s.of(defaults) or None)]


def differences(source: Namespace, target: Namespace) -> tuple[list[Difference], list[str]]:
    """Settings in which two models differ, and the names of those that one side does not say.

    Args:
        source: arguments that some Megatron saved.
        target: arguments of this run, or the part of them that is known.
    """
    old, new = settings_of(source), settings_of(target)
    skipped = _FUSED if any(map(old.get, _FUSED)) == any(map(new.get, _FUSED)) else ()
    found, unknown = [], []
    for setting in SETTINGS:
        if setting.name not in old or setting.name not in new or setting.name in skipped:
            continue
        one, other = old[setting.name], new[setting.name]
        if UNKNOWN in (one, other):
            unknown.append(setting.name)
        elif (one or None) != (other or None):  # a switch may be saved as None, a list as nothing
            found.append(Difference(setting, one, other))
    return found, unknown
