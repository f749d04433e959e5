"""The rules of --growth-freeze and --growth-schedule, applied to Megatron's model and its parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import ParamKey
from megatron.training import get_args, print_rank_0

from megatron_growth.layout.model_names import named_parameters
from megatron_growth.methods.freeze import Assignment, all_names, assign, freeze
from megatron_growth.methods.rates import multiple
from megatron_growth.patterns import Rule
from megatron_growth.plugin.scheduler import GROUP_KEY

Chunks = list[torch.nn.Module]


class ParameterRules:
    """One list of (pattern, schedule) that freezes parameters and sets the learning rate of the others.

    Args:
        rules: in order of precedence; none leaves everything trainable at the run's rate.

    Attributes:
        names: layout-free names of the whole model's parameters, sorted; empty until the model is built.
        assignment: which rule each follows.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.names: tuple[str, ...] = ()
        self.assignment = Assignment((), ())

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the frozen parameters of the whole model, sorted."""
        return self.assignment.frozen

    def apply(self, chunks: Chunks) -> Chunks:
        """A `pre_wrap_hook`: give each parameter its rule, freeze what is frozen, and log every match once."""
        self.names = all_names(chunks, parallel_state.get_pipeline_model_parallel_group())
        self.assignment = assign(self.rules, self.names)
        if not self.rules:
            return chunks
        print_rank_0(self.assignment.table())
        freeze(chunks, self.assignment)
        numbers = {name: i for i, match in enumerate(self.assignment.matches) for name in match.names}
        for name, parameter in named_parameters(chunks):
            if name in numbers:
                setattr(parameter, _mark(numbers[name]), True)
        return chunks

    def around_optimizer_config(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Give each rule's parameters a group of their own, through Megatron's own overrides."""

        def get_megatron_optimizer_config(args: Any) -> Any:
            config, overrides = original(args)
            trained = ((i, rule) for i, rule in enumerate(self.rules) if not rule.frozen)
            own = {ParamKey(attr=_mark(i)): _override(rule, config) for i, rule in trained}
            return config, {**(overrides or {}), **own}

        return get_megatron_optimizer_config

    def around_metadata(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Save layers under a key each when only some of them have optimizer state.

        Megatron stacks the layers of a parameter into one global tensor, which must be complete.  The checkpoint
        says how its layers are stored, so a later run loads it with or without the plugin.
        """

        def _build_sharded_state_dict_metadata(*args: Any, **kwargs: Any) -> dict[str, Any]:
            metadata = original(*args, **kwargs)
            flat = metadata.get("distrib_optim_sharding_type") == "dp_reshardable"
            if self.assignment.splits_layers and not flat and not get_args().no_save_optim:
                metadata["non_homogeneous_layers"] = True
            return metadata

        return _build_sharded_state_dict_metadata


def _override(rule: Rule, config: Any) -> dict[str, Any]:
    """What a rule changes in Megatron's parameter group."""
    factor = multiple(rule.schedule)
    if factor is None:
        return {GROUP_KEY: rule.schedule}
    return {"max_lr": config.lr * factor, "min_lr": (config.min_lr or 0.0) * factor}


def _mark(number: int) -> str:
    """Name of the attribute that marks the parameters of a rule for Megatron's `ParamKey`."""
    return f"growth_rule_{number}"
