"""`plug_into`: give a Megatron model configuration what the --growth-* arguments ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from megatron_growth.errors import UnsupportedError
from megatron_growth.plugin import rebind
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

    Args:
        model_cfg: what `gpt_config_from_args(args)` returned.
        args: what `parse_and_validate_args` returned.
        after_setup: functions of yours, called with (model chunks, optimizer, scheduler) when all three exist and the
            run's checkpoint, if there is one, is loaded.
        after_iteration: functions of yours, called with (model chunks, optimizer, scheduler, iteration) after the
            optimizer's step, the log and the evaluation, and before the checkpoint.

    Returns:
        The same `model_cfg`.

    Raises:
        UserError: flags contradict each other.
        UnsupportedError: this Megatron, or this kind of model, is not supported.
    """
    options = PluginOptions.from_args(args)
    unplug()
    if not (_wanted(options) or after_setup or after_iteration):
        return model_cfg
    rebind.check_version()
    if not hasattr(model_cfg, "pre_wrap_hooks") or not hasattr(model_cfg, "transformer_layer_spec"):
        raise UnsupportedError(
            f"{type(model_cfg).__name__} is not a GPT model configuration of Megatron",
            fix="call plug_into(gpt_config_from_args(args), args)",
        )
    from megatron_growth.plugin.events import Events

    events = Events(options, after_setup, after_iteration)
    _plug(model_cfg, options, events)
    return model_cfg


def unplug() -> None:
    """Put back every function of Megatron that plug_into() replaced.

    Hooks that were added to a `model_cfg` stay with that `model_cfg`.
    """
    rebind.unbind_all()


def _wanted(options: PluginOptions) -> bool:
    return bool(
        options.source
        or options.rules
        or options.windowed
        or options.metrics
        or options.evaluate_at_start
        or options.stop_below is not None
        or options.reshardable_end
        or options.layer_spec != "stock"
        or options.sublayers != "full"
    )


def _plug(model_cfg: Any, options: PluginOptions, events: Events) -> None:
    from megatron_growth.plugin import reshardable, scheduler
    from megatron_growth.plugin.datasets import around_build
    from megatron_growth.plugin.groups import ParameterRules
    from megatron_growth.plugin.growing import grow_hook
    from megatron_growth.plugin.layers import choose_layer_spec
    from megatron_growth.plugin.loading import around_load

    rules = ParameterRules(options.rules)
    if options.layer_spec != "stock" or options.sublayers != "full":
        choose_layer_spec(model_cfg, options)
    if options.source:
        model_cfg.pre_wrap_hooks.append(grow_hook(options, events.record))
    model_cfg.pre_wrap_hooks.append(rules.apply)
    rebind.bind("get_optimizer_param_scheduler", lambda original: scheduler.around_build(original, options.rules))
    rebind.bind("load_checkpoint", lambda original: around_load(original, rules))
    if options.rules:
        rebind.bind("get_megatron_optimizer_config", rules.around_optimizer_config)
        rebind.bind("_build_sharded_state_dict_metadata", rules.around_metadata)
    if options.reshardable_end:
        rebind.bind("_build_sharded_state_dict_metadata", reshardable.around_metadata)
    if options.windowed or options.evaluate_at_start:
        rebind.bind("build_train_valid_test_datasets", lambda original: around_build(original, options))
    if options.metrics or options.evaluate_at_start:
        rebind.bind("train", events.around_train)
    if options.metrics:
        rebind.bind("training_log", events.around_training_log)
        rebind.bind("save_checkpoint_and_time", events.around_save)
    if options.metrics or options.stop_below is not None:
        rebind.bind("evaluate", events.around_evaluate)
        rebind.bind("evaluate_and_print_results", events.around_evaluate_and_print)
    if events.after_setup:
        rebind.bind("setup_model_and_optimizer", events.around_setup)
    if events.after_iteration:
        rebind.bind("post_training_step_callbacks", events.around_callbacks)
