"""`plug_into`: give a Megatron model configuration what the --growth-* arguments ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from megatron_growth import mistakes
from megatron_growth.errors import UnsupportedError
from megatron_growth.plugin import rebind
from megatron_growth.plugin.addition import Addition
from megatron_growth.plugin.arguments import PluginOptions

if TYPE_CHECKING:
    from megatron_growth.plugin.events import Events


def plug_into(
    model_cfg: Any,
    args: argparse.Namespace,
    *,
    after_setup: Sequence[Callable[..., None]] = (),
    after_iteration: Sequence[Callable[..., None]] = (),
) -> Any:
    """Add the behaviour that the --growth-* arguments ask for; without any of them, add nothing.

    In either case --rope-scaling-factor is handed on, which Megatron 0.19 forgets: the stages of a chain must compute
    the same function whether they grow or not.

    Args:
        model_cfg: what `gpt_config_from_args(args)` returned.
        args: what `parse_and_validate_args` returned.
        after_setup: your functions, called with (model chunks, optimizer, scheduler) when all three exist and the
            run's checkpoint, if there is one, is loaded.
        after_iteration: your functions, called with (model chunks, optimizer, scheduler, iteration) after the
            optimizer's step, the log and the evaluation, and before the checkpoint.

    Returns:
        The same `model_cfg`.

    Raises:
        UserError: flags contradict each other.
        UnsupportedError: this Megatron, or this kind of model, is not supported.
    """
    mistakes.install()
    options = PluginOptions.from_args(args)
    rebind.unbind_all()
    _keep_rope_factor(model_cfg, args)
    if not (options.wanted or after_setup or after_iteration):
        return model_cfg
    rebind.check_version()
    if not hasattr(model_cfg, "pre_wrap_hooks") or not hasattr(model_cfg, "transformer_layer_spec"):
        raise UnsupportedError(
            f"{type(model_cfg).__name__} is not a GPT model configuration of Megatron",
            fix="call plug_into(gpt_config_from_args(args), args)",
        )
    from megatron_growth.plugin.events import Events

    for addition in _additions(options, Events(options, after_setup, after_iteration)):
        _add(model_cfg, addition)
    return model_cfg


def unplug() -> None:
    """Put back every function of Megatron, and the exception hook, that plug_into() replaced.

    Hooks that were added to a `model_cfg` stay with that `model_cfg`.
    """
    rebind.unbind_all()
    mistakes.uninstall()


def _keep_rope_factor(model_cfg: Any, args: argparse.Namespace) -> None:
    """Give the model the factor of --use-rope-scaling; a value that the script has set stays."""
    asked = getattr(args, "rope_scaling_factor", None)
    if not getattr(args, "use_rope_scaling", False) or asked is None:
        return
    forgotten = getattr(type(model_cfg), "rope_scaling_factor", None)
    if forgotten is None or model_cfg.rope_scaling_factor != forgotten or asked == forgotten:
        return
    model_cfg.rope_scaling_factor = asked
    if mistakes.rank() == 0:
        print(f"growth: rotary embeddings are scaled by {asked:g}; Megatron alone would scale them by {forgotten:g}")


def _additions(options: PluginOptions, events: Events) -> Iterator[Addition]:
    """What every part of the plugin adds to this run, in the order in which the parts act."""
    from megatron_growth.plugin import anew, datasets, growing, layers, loading, memory, reshardable, scheduler
    from megatron_growth.plugin.active import ActiveMethods

    active = ActiveMethods(options.methods, events.record)
    yield layers.addition(options)
    yield growing.addition(options, events.record)
    yield memory.addition(options, events.record)  # before `active`, whose methods may change what is held
    yield reshardable.addition(options)  # before `active`, which asks for the form that it chooses
    yield active.addition()
    yield scheduler.addition(active)
    yield loading.addition(active)
    yield anew.addition(options)
    yield datasets.addition(options)
    yield events.addition()


def _add(model_cfg: Any, addition: Addition) -> None:
    if addition.configure:
        addition.configure(model_cfg)
    if addition.before_wrap:
        model_cfg.pre_wrap_hooks.append(addition.before_wrap)
    for name, wrap in addition.bind.items():
        rebind.bind(name, wrap)
