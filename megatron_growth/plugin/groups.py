"""The rules of --growth-freeze and --growth-schedule, applied to Megatron's model, optimizer and scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import ParamKey
from megatron.training import print_rank_0

from megatron_growth.plugin import rebind
from megatron_growth.training.freeze import Assignment, all_names, assign, freeze
from megatron_growth.training.names import named_parameters
from megatron_growth.training.patterns import Rule

Chunks = list[torch.nn.Module]


class ParameterRules:
    """One list of (pattern, schedule) that freezes parameters and sets the learning rate of the others.

    Args:
        rules: in order of precedence.

    Attributes:
        assignment: which rule each parameter follows; None until the model is built.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.assignment: Assignment | None = None

    def plug_into(self, model_cfg: Any) -> None:
        """Add the hook that freezes, and replace what builds the parameter groups when a rule sets a rate."""
        model_cfg.pre_wrap_hooks.append(self.apply)
        if any(not rule.frozen for rule in self.rules):
            rebind.bind("get_megatron_optimizer_config", self.around_optimizer_config)

    def apply(self, chunks: Chunks) -> Chunks:
        """A `pre_wrap_hook`: give each parameter its rule, freeze what is frozen, and log every match once."""
        names = all_names(chunks, parallel_state.get_pipeline_model_parallel_group())
        self.assignment = assign(self.rules, names)
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
            overrides = dict(overrides or {})
            for number, rule in enumerate(self.rules):
                if not rule.frozen:
                    multiple = float(rule.schedule)
                    overrides[ParamKey(attr=_mark(number))] = {
                        "max_lr": config.lr * multiple,
                        "min_lr": config.min_lr * multiple,
                    }
            return config, overrides

        return get_megatron_optimizer_config


def _mark(number: int) -> str:
    """Name of the attribute that marks the parameters of a rule for Megatron's `ParamKey`."""
    return f"growth_rule_{number}"
