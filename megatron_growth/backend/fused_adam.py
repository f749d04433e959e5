"""AdamW with the interface of Apex's and Transformer Engine's FusedAdam, on torch's fused kernel.

Megatron's distributed optimizer takes one of two paths when it saves and loads: FusedAdam's, where `step` is a number
in the parameter group, and torch's, where `step` is a tensor per parameter.  In 0.19 the second cannot resume, so
without Transformer Engine and Apex the first is used, with this class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adam import adam

from megatron_growth.errors import UnsupportedError


class FusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2), `step` kept in the parameter group.

    Args:
        params: parameters or parameter groups.
        lr, betas, eps, weight_decay: as of torch's Adam, for groups that do not give their own.
        adam_w_mode: decay the weights (AdamW); otherwise add the decay to the gradient (Adam with L2).
        capturable: must be False.

    State per parameter: `exp_avg` and `exp_avg_sq`, of the parameter's shape and type.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        if capturable:  # a graph would repeat the bias correction of the step that it was made from
            raise UnsupportedError(
                "--optimizer-cuda-graph needs the Adam of Transformer Engine or Apex",
                where="--optimizer-cuda-graph",
                fix="leave it out, or install Transformer Engine (docs/gpu.md)",
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.adam_w_mode = adam_w_mode

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        fused_update(
            parameters,
            [p.grad for p in parameters],
            [self.state[p]["exp_avg"] for p in parameters],
            [self.state[p]["exp_avg_sq"] for p in parameters],
            step=group["step"],
            decoupled=self.adam_w_mode,
            **{name: group[name] for name in ("lr", "betas", "eps", "weight_decay")},
        )


def fused_update(
    parameters: list[torch.Tensor],
    gradients: list[torch.Tensor | None],
    first: list[torch.Tensor],
    second: list[torch.Tensor],
    *,
    step: int,
    decoupled: bool,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One update of parameters and moments in place, by torch's fused kernel; `step` counts from 1."""
    adam(
        parameters,
        gradients,
        first,
        second,
        [],
        _steps(parameters, step - 1),
        fused=True,
        amsgrad=False,
        maximize=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        decoupled_weight_decay=decoupled,
    )


def _steps(parameters: list[torch.Tensor], steps: int) -> list[torch.Tensor]:
    """A counter for each parameter, on its device; the kernel adds one to each before it uses it."""
    return list(torch.full((len(parameters),), float(steps), device=parameters[0].device).unbind())
