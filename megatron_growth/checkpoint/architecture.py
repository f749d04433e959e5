"""Refuse to grow a model into another function: everything that decides it, compared between source and target.

Sizes are compared by `operators.build.build_map`; this compares what no size shows (`layout/architecture.py`), and
the norm epsilon, which an operator that pads the residual stream rescales.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from megatron_growth.errors import GrowthPlanError, UnsupportedError
from megatron_growth.layout.architecture import BY_NUMBER, NORM_EPSILON, SETTINGS, UNSUPPORTED, differences
from megatron_growth.operators import GrowthMap

EPSILON_TOLERANCE = 1e-4


def refuse_unsupported(args: argparse.Namespace, where: str) -> None:
    """Refuse an architecture that growth does not know, before anything is planned.

    Raises:
        UnsupportedError: some argument asks for it.
    """
    for name, what in UNSUPPORTED.items():
        if getattr(args, name, None):
            raise UnsupportedError(
                f"this is a model with {what}",
                where=where,
                fix="growth supports dense GPT models: fused QKV attention, SwiGLU or plain FFN, RMSNorm or LayerNorm",
            )


def check_step(source: argparse.Namespace, target: argparse.Namespace, growth: GrowthMap, *, where: str) -> None:
    """Refuse a growth step that would change the function although all settings are kept.

    Raises:
        UnsupportedError: as `check_map`.
        GrowthPlanError: the norm epsilon is not the source's, as the operator rescales it; names the flag to use.  The
            run has to keep it, so it is not set silently.
    """
    check_map(source, growth, where=where)
    given, needed = NORM_EPSILON.of(target), growth.norm_epsilon(NORM_EPSILON.of(source))
    if not abs(given - needed) <= EPSILON_TOLERANCE * needed:
        why = "growth keeps the norm epsilon"
        if growth.width.epsilon_scale != 1.0:
            why = f"{growth.provenance['width']} pads the residual stream"
        raise GrowthPlanError(
            f"{why}, so the target's norm epsilon must be {needed!r}; it is {given!r}",
            fix=f"train the target with --norm-epsilon {needed!r} (in a recipe: model.norm_epsilon of the first stage)",
        )


def check_same(saved: argparse.Namespace, args: argparse.Namespace, *, where: str) -> None:
    """Refuse to load a model that was grown offline into another function.

    Raises:
        GrowthPlanError: names every difference, the norm epsilon included, and the flags to give.
    """
    check(saved, args, where=where)
    needed, given = NORM_EPSILON.of(saved), NORM_EPSILON.of(args)
    if abs(given - needed) > EPSILON_TOLERANCE * needed:
        raise GrowthPlanError(
            f"the model was grown for a norm epsilon of {needed!r}; it is {given!r}",
            where=where,
            fix=f"train it with --norm-epsilon {needed!r}",
        )


def check(source: argparse.Namespace, target: argparse.Namespace, *, where: str) -> list[str]:
    """Refuse a target that computes another function than its source's weights were trained for.

    Args:
        source: saved arguments, of any version of Megatron.
        target: this run's arguments.
        where: the source, for messages here and below.

    Returns:
        Names of settings that the source does not say; they could not be compared.

    Raises:
        GrowthPlanError: names every difference, and the flags to give.
        UnsupportedError: the target is of a kind that growth does not know.
    """
    refuse_unsupported(target, "the model to be trained")
    found, unknown = differences(source, target)
    if found:
        flags = ", ".join(difference.setting.written(difference.source) for difference in found)
        keys = ", ".join(difference.setting.in_recipe() for difference in found)
        raise GrowthPlanError(
            "the grown model would compute another function: " + "; ".join(map(str, found)),
            where=where,
            fix=f"train the target with {flags} (in a recipe: {keys})",
        )
    return unknown


def check_map(source: argparse.Namespace, growth: GrowthMap, *, where: str) -> None:
    """Refuse a growth step of a model that computes by what the step changes: a layer's number, or the norm epsilon.

    Raises:
        UnsupportedError: a layer that moves, or norms of queries and keys, would compute something else.
    """
    deeper = growth.source.layers != growth.target.layers
    for name, flag in BY_NUMBER.items() if deeper else ():
        if getattr(source, name, None):
            raise UnsupportedError(
                f"the source's layers differ by their number ({flag} {getattr(source, name)}), so growth in depth "
                "would change what they compute",
                where=where,
                fix=f"grow it in width only, or train a source without {flag}",
            )
    if growth.width.epsilon_scale != 1.0 and getattr(source, "qk_l2_norm", None):
        raise UnsupportedError(
            "the source norms queries and keys without weights (--qk-l2-norm), with the norm epsilon that "
            f"{growth.provenance['width']} rescales for the residual stream",
            where=where,
            fix="grow it with an operator that does not pad the residual stream, such as fpi or aki",
        )


def arguments_of_modules(chunks: Sequence[Any], source: argparse.Namespace) -> argparse.Namespace:
    """The arguments that a built Megatron model shows; the rest is taken to be as in the source.

    For callers without Megatron's arguments; the plugin compares with those of the run.
    """
    module, config = chunks[0], chunks[0].config
    known = {
        "layernorm_epsilon": config.layernorm_epsilon,
        "position_embedding_type": module.position_embedding_type,
        "rotary_percent": module.rotary_percent,
        "rotary_base": module.rotary_base,
        "use_rope_scaling": module.rotary_scaling,
        "swiglu": config.gated_linear_unit and config.activation_func.__name__ == "silu",
        "bias_gelu_fusion": config.bias_activation_fusion,
        "bias_swiglu_fusion": config.bias_activation_fusion,
        "untie_embeddings_and_output_weights": not module.share_embeddings_and_output_weights,
    }
    names = {setting.name for setting in SETTINGS} - known.keys()
    known |= {name: getattr(config, name) for name in names if hasattr(config, name)}
    return argparse.Namespace(**{**vars(source), **known})
