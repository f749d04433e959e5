"""Freezing by pattern on any parallel layout.

A frozen parameter has `requires_grad = False` before Megatron wraps the model.  From there Megatron itself leaves it
out: no gradient buffer (DistributedDataParallel collects trainable parameters only), no optimizer state, no weight
decay, no part in the gradient norm, and no weight-gradient product (`LinearWithFrozenWeight`).  This module decides
which parameters those are, the same on all ranks, and says so.

With the embedding frozen, activation recomputation needs one more thing: Megatron's checkpoint function gives its
output no gradient when its input has none, so the layers above a frozen embedding would not train.  The embedding's
output is then made to require a gradient, which nothing below it uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_growth.errors import RecipeError
from megatron_growth.layout.model_names import named_parameters, unwrapped
from megatron_growth.layout.names import parse_key
from megatron_growth.layout.rules import decide, near, takes
from megatron_growth.patterns import Rule


@dataclass(frozen=True)
class Match:
    """What one rule took, over the whole model.

    Attributes:
        rule: the rule.
        names: layout-free names of its parameters, sorted.
    """

    rule: Rule
    names: tuple[str, ...]


@dataclass(frozen=True)
class Assignment:
    """Which rule each parameter of the whole model follows.

    Attributes:
        matches: one entry a rule, in order.
        unmatched: names that no rule matched, sorted.
    """

    matches: tuple[Match, ...]
    unmatched: tuple[str, ...]

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of all frozen parameters, sorted."""
        return tuple(sorted(name for match in self.matches if match.rule.frozen for name in match.names))

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of all trainable parameters, sorted."""
        matched = [name for match in self.matches if not match.rule.frozen for name in match.names]
        return tuple(sorted([*matched, *self.unmatched]))

    @property
    def splits_layers(self) -> bool:
        """Whether some layer's parameter is frozen while the same parameter of another layer is trained."""
        frozen, trainable = ({parse_key(name).name for name in names} for names in (self.frozen, self.trainable))
        return bool(frozen & trainable)

    def table(self) -> str:
        """Rules and what each matched, as lines for a log."""
        lines = ["learning-rate and freezing rules (first match wins):"]
        for match in self.matches:
            lines.append(f"  {match.rule.pattern} = {match.rule.schedule}: {len(match.names)} parameters")
            lines.extend(f"      {name}" for name in match.names)
        lines.append(f"  (no rule): {len(self.unmatched)} parameters train with the run's schedule")
        return "\n".join(lines)


def all_names(chunks: Sequence[torch.nn.Module], group: dist.ProcessGroup | None = None) -> tuple[str, ...]:
    """Layout-free names of the parameters of the whole model, sorted.

    Args:
        chunks: this rank's model chunks.
        group: the pipeline-parallel group, whose ranks hold different layers; None for a model that is whole here.
    """
    names = {name for name, _ in named_parameters(chunks)}
    if group is not None and group.size() > 1:
        gathered: list[set[str] | None] = [None] * group.size()
        dist.all_gather_object(gathered, names, group=group)
        names = set().union(*(part or set() for part in gathered))
    return tuple(sorted(names))


def assign(rules: Sequence[Rule], names: Sequence[str]) -> Assignment:
    """Give every parameter its rule.

    Args:
        rules: in order of precedence.
        names: the layout-free names of the whole model.

    Raises:
        RecipeError: a rule matches no parameter at all, or nothing is left to train.
    """
    by_rule: dict[int, list[str]] = {i: [] for i in range(len(rules))}
    unmatched: list[str] = []
    for name in names:
        rule = decide(rules, name)
        (by_rule[rules.index(rule)] if rule is not None else unmatched).append(name)
    for rule in rules:
        if not any(takes(rule, name) for name in names):
            raise RecipeError(
                f"the pattern {rule.pattern!r} matches no parameter of the model",
                fix=near(rule.pattern, names),
            )
    matches = tuple(Match(rule, tuple(by_rule[i])) for i, rule in enumerate(rules))
    assignment = Assignment(matches, tuple(unmatched))
    if not assignment.trainable:
        raise RecipeError(
            "every parameter of the model is frozen; nothing is left to train",
            where=", ".join(rule.pattern for rule in rules if rule.frozen),
            fix="leave at least one parameter out of --growth-freeze",
        )
    return assignment


def freeze(chunks: Sequence[torch.nn.Module], assignment: Assignment) -> int:
    """Take the frozen parameters of this rank out of training.

    Args:
        chunks: this rank's model chunks, before they are wrapped.
        assignment: of the whole model.

    Returns:
        The number of frozen elements on this rank.
    """
    frozen = set(assignment.frozen)
    elements = 0
    for name, parameter in named_parameters(chunks):
        if name in frozen:
            parameter.requires_grad_(False)
            elements += parameter.numel()
    for chunk in chunks:
        _keep_recomputation_trainable(unwrapped(chunk))
    return elements


def _keep_recomputation_trainable(model: torch.nn.Module) -> None:
    """Let gradients reach recomputed parts above an embedding that is frozen as a whole."""
    embedding = getattr(model, "embedding", None)
    if embedding is None or not _recomputes_weights(getattr(model, "config", None)):
        return
    if not any(parameter.requires_grad for parameter in embedding.parameters()):
        embedding.register_forward_hook(_require_gradient)


def _recomputes_weights(config: object) -> bool:
    """Whether the recomputed parts of the model hold parameters."""
    granularity = getattr(config, "recompute_granularity", None)
    modules = set(getattr(config, "recompute_modules", None) or ())
    return granularity == "full" or (granularity == "selective" and modules != {"core_attn"})


def _require_gradient(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor | None:
    """Forward hook: the output of a frozen module as a leaf that takes part in autograd."""
    if torch.is_grad_enabled() and not output.requires_grad:
        return output.requires_grad_(True)
    return None
