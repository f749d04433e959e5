"""Adam that steps marked parameters in their subspaces, and all others as the class that it is made from."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_growth.methods.galore.projection import MARK, Place, Places, Ranks

STATE = ("proj", "exp_avg", "exp_avg_sq")


def places_of(parameter: Tensor) -> Places | None:
    """The matrices that are projected in a parameter; None for one that trains with plain Adam."""
    return getattr(parameter, MARK, None)


def init_low_rank(optimizer: torch.optim.Optimizer, parameter: Tensor, places: Places) -> None:
    """Zero state of a projected parameter, where there is none: `KIND.MATRIX` for each matrix."""
    state = optimizer.state[parameter]
    for name, place in places.places.items():
        for kind in STATE:
            if f"{kind}.{name}" not in state:
                shape = place.shape(kind)
                state[f"{kind}.{name}"] = torch.zeros(shape, dtype=torch.float32, device=parameter.device)


class Projecting:
    """Stands in front of an Adam and projects marked parameters.

    The builder sets `gap`, `scale`, `ranks`, and `anew`: parameters that have no projector yet.
    """

    param_groups: list[dict[str, Any]]
    state: Any
    gap: int
    scale: float
    ranks: Ranks
    anew: set[Tensor]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        groups = self.param_groups
        projected = [g for g in groups if any(places_of(p) for p in g["params"])]
        numbers = {id(g) for g in projected}
        try:
            self.param_groups = [g for g in groups if id(g) not in numbers]
            loss: float | None = super().step(closure)  # type: ignore[misc]  # of the Adam behind
        finally:
            self.param_groups = groups
        for group in projected:
            step = group.get("step", 0)
            group["step"] = step + 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._galore_step(parameter, group, step)
        return loss

    # Transformer Engine's Adam asks these for every state that it saves and loads; it knows the types of its own only.

    def get_unscaled_state(self, param: Tensor, state_name: str) -> Tensor:
        """A state in fp32, as low-rank state is kept."""
        if "." in state_name:
            return self.state[param][state_name]
        return super().get_unscaled_state(param, state_name)  # type: ignore[misc]

    def set_scaled_state(self, param: Tensor, state_name: str, unscaled_state: Tensor) -> None:
        """Take a state that was loaded in fp32."""
        if "." in state_name:
            self.state[param][state_name] = unscaled_state
        else:
            super().set_scaled_state(param, state_name, unscaled_state)  # type: ignore[misc]

    def _galore_step(self, parameter: Tensor, group: dict[str, Any], step: int) -> None:
        """galore-torch 1.0's arithmetic after `step` steps: eps before the bias correction, decay after the update."""
        places = places_of(parameter)
        assert places is not None
        init_low_rank(self, parameter, places)
        state, updates = self.state[parameter], {}
        for name, gradient in places.take(parameter.grad.float()).items():
            place = places.places[name]
            if step % self.gap == 0 or parameter in self.anew:
                state[f"proj.{name}"].copy_(self.ranks.projector(gradient, place))
            updates[name] = self._galore_update(gradient, place, [state[f"{kind}.{name}"] for kind in STATE], group)
        self.anew.discard(parameter)
        beta1, beta2 = group["betas"]
        size = group["lr"] * math.sqrt(1 - beta2 ** (step + 1)) / (1 - beta1 ** (step + 1))
        parameter.add_(places.join(updates), alpha=-size * self.scale)
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])

    def _galore_update(self, gradient: Tensor, place: Place, state: list[Tensor], group: dict[str, Any]) -> Tensor:
        """Adam in the subspace, projected back; (m, n)."""
        projector, first, second = state
        beta1, beta2 = group["betas"]
        low = place.project(gradient, projector)
        if place.sums:
            dist.all_reduce(low, group=self.ranks.tensor)
        first.mul_(beta1).add_(low, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(low, low, value=1 - beta2)
        return place.back(first / second.sqrt().add_(group["eps"]), projector)


@cache
def galore_adam(adam: Any) -> Any:
    """A subclass of Megatron's Adam (FusedAdam's interface: `step` in the group) that projects marked parameters."""
    return type("GaLoreAdam", (Projecting, adam), {})
