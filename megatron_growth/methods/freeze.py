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

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from megatron_growth.methods.fewer_layers import FewerLayers
from megatron_growth.methods.registry import register
from megatron_growth.methods.rules import Patterns, RuleMethod
from megatron_growth.patterns import Rule

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class Freeze(RuleMethod):
    """Parameters that match a pattern do not train.

    Attributes:
        patterns: over layout-free names, see `megatron_growth.patterns`.
    """

    name: ClassVar[str] = "freeze"
    paper: ClassVar[str] = "Reuse, sec. 3.2; STEP (2025), sec. 3"

    patterns: Patterns

    @property
    def as_rules(self) -> tuple[Rule, ...]:
        """One rule a pattern."""
        return tuple(Rule(pattern) for pattern in self.patterns)

    def on_fewer_layers(self, left: FewerLayers) -> Self | None:
        """With the patterns that take something there."""
        patterns = left.patterns(self.patterns)
        return replace(self, patterns=patterns) if patterns else None


def take_out_of_training(chunks: Sequence[torch.nn.Module], frozen: Collection[str]) -> int:
    """Freeze the parameters of these layout-free names on this rank, before Megatron wraps it; how many elements."""
    from megatron_growth.layout.model_names import named_parameters, unwrapped

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
    import torch

    if torch.is_grad_enabled() and not output.requires_grad:
        return output.requires_grad_(True)
    return None
