"""The papers' learning-rate schedules as pure functions of the optimizer step; no torch, no Megatron.

Symbols: t step (the rate used for the t-th update, from 1; 0 is before the first), T steps of the stage, T_w warm-up
steps, eta peak rate, alpha minimum rate as a share of the peak, rho share of the steps after warm-up at the peak.

Sources: WSO (arXiv 2603.16127), appendix A, for Constant, WSD, Cosine and Linear; the body's eq. 3 has a slip in T_d.
ReLoRA (arXiv 2307.05695) for the jagged cosine.  STEP (arXiv 2504.04151), appendix B, for the re-raise: every stage has
a warm-up of its own to the same peak, so a stage's schedule begins anew at its first step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from megatron_growth.errors import RecipeError, nearest

_registry: dict[str, type[Schedule]] = {}


def register[T: type[Schedule]](cls: T) -> T:
    """Class decorator: make a schedule known by its `name`."""
    _registry[cls.name] = cls
    return cls


@dataclass(frozen=True)
class Schedule(ABC):
    """Linear warm-up to the peak, then `after_warmup`.

    Attributes:
        peak: eta, the highest learning rate.
        iterations: T, steps over which the schedule is defined; later steps keep its last value.
        warmup_iterations: T_w, steps of linear warm-up from 0.

    Raises:
        RecipeError: a value is out of range.
    """

    name: ClassVar[str] = ""
    peak: float
    iterations: int
    warmup_iterations: int = 0

    def __post_init__(self) -> None:
        _require(self.peak > 0, f"the learning rate is {self.peak}; it must be above 0")
        _require(self.iterations >= 1, f"the schedule has {self.iterations} iterations; it needs at least 1")
        _require(self.warmup_iterations >= 0, f"the warm-up has {self.warmup_iterations} iterations")
        _require(
            self.warmup_iterations <= self.iterations,
            f"the warm-up of {self.warmup_iterations} iterations is longer than the stage of {self.iterations}",
            "shorten warmup_iterations, or give warmup_fraction",
        )

    def lr(self, step: float) -> float:
        """The learning rate at `step`."""
        step = min(step, self.iterations)
        if step <= self.warmup_iterations and self.warmup_iterations:
            return self.peak * step / self.warmup_iterations
        return self.peak * self.after_warmup(step)

    @abstractmethod
    def after_warmup(self, step: float) -> float:
        """Share of the peak at a step after warm-up; `step` is at most `iterations`."""

    def progress(self, step: float) -> float:
        """(t - T_w) / (T - T_w): 0 at the end of warm-up, 1 at the end of the stage."""
        return (step - self.warmup_iterations) / max(1, self.iterations - self.warmup_iterations)

    @property
    def last(self) -> float:
        """The learning rate at the last step."""
        return self.lr(self.iterations)


@register
@dataclass(frozen=True)
class Constant(Schedule):
    """WSO, warm-up-stable-only: the peak until the end (WSO, eq. 4)."""

    name: ClassVar[str] = "wso"

    def after_warmup(self, step: float) -> float:  # noqa: ARG002
        """Always 1."""
        return 1.0


@dataclass(frozen=True)
class Decaying(Schedule):
    """A schedule that ends at `min_lr_ratio` (alpha) times the peak."""

    min_lr_ratio: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.min_lr_ratio <= 1, f"min_lr_ratio (alpha) is {self.min_lr_ratio}; it must lie in 0 to 1")


@register
@dataclass(frozen=True)
class Cosine(Decaying):
    """alpha + (1 - alpha) / 2 (1 + cos(pi (t - T_w) / (T - T_w))) (WSO, appendix A)."""

    name: ClassVar[str] = "cosine"

    def after_warmup(self, step: float) -> float:
        """Half a cosine from 1 to alpha."""
        alpha = self.min_lr_ratio
        return alpha + (1 - alpha) / 2 * (1 + math.cos(math.pi * self.progress(step)))


@register
@dataclass(frozen=True)
class Linear(Decaying):
    """(1 - alpha) (T - t) / (T - T_w) + alpha (WSO, appendix A)."""

    name: ClassVar[str] = "linear"

    def after_warmup(self, step: float) -> float:
        """A line from 1 to alpha."""
        return (1 - self.min_lr_ratio) * (1 - self.progress(step)) + self.min_lr_ratio


@register
@dataclass(frozen=True)
class WSD(Decaying):
    """Warm-up, stable, linear decay: (1 - alpha) (T - t) / (T - T_s) + alpha after T_s = T_w + rho (T - T_w)."""

    name: ClassVar[str] = "wsd"
    stable_fraction: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            0 <= self.stable_fraction <= 1, f"stable_fraction (rho) is {self.stable_fraction}; it must lie in 0 to 1"
        )

    @property
    def stable_until(self) -> float:
        """T_s, the last step at the peak; not necessarily whole."""
        return self.warmup_iterations + self.stable_fraction * (self.iterations - self.warmup_iterations)

    def after_warmup(self, step: float) -> float:
        """1 until T_s, then a line to alpha."""
        decay = self.iterations - self.stable_until
        if step <= self.stable_until or not decay:
            return 1.0
        return (1 - self.min_lr_ratio) * (self.iterations - step) / decay + self.min_lr_ratio


@register
@dataclass(frozen=True)
class JaggedCosine(Cosine):
    """ReLoRA: a cosine that falls to 0 at every restart and warms up linearly to the value it has there.

    Attributes:
        restart_iterations: a restart every so many steps; none in the warm-up.
        restart_warmup_iterations: steps from 0 back to the cosine.
    """

    name: ClassVar[str] = "relora"
    restart_iterations: int = 0
    restart_warmup_iterations: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.restart_iterations >= 1, "the relora schedule needs restart_iterations")
        _require(
            self.restart_warmup_iterations < self.restart_iterations,
            f"the restart warm-up of {self.restart_warmup_iterations} iterations is not shorter than the "
            f"{self.restart_iterations} iterations between restarts",
        )

    def after_warmup(self, step: float) -> float:
        """The cosine, times a line from 0 at a restart to 1 at the end of its warm-up (at the cosine's value there)."""
        since = step % self.restart_iterations
        restart = step - since
        if restart <= self.warmup_iterations or since >= self.restart_warmup_iterations:
            return super().after_warmup(step)
        end = min(restart + self.restart_warmup_iterations, self.iterations)
        return super().after_warmup(end) * since / self.restart_warmup_iterations


def names() -> list[str]:
    """Names of all schedules."""
    return sorted(_registry)


def parameters_of(name: str) -> list[str]:
    """The parameters that a schedule takes besides peak, iterations and warmup_iterations."""
    return [f.name for f in fields(_class(name)) if f.name not in {g.name for g in fields(Schedule)}]


def make(name: str, peak: float, iterations: int, warmup_iterations: int = 0, **parameters: Any) -> Schedule:
    """A schedule by name.

    Raises:
        RecipeError: an unknown name or parameter, or a value out of range.
    """
    cls, known = _class(name), parameters_of(name)
    for key in parameters:
        if key not in known:
            raise RecipeError(f"the {name} schedule has no parameter {key!r}", fix=nearest(key, known))
    return cls(peak, iterations, warmup_iterations, **parameters)


def to_dict(schedule: Schedule) -> dict[str, Any]:
    """The written form, for `from_dict`."""
    return {"name": schedule.name} | {f.name: getattr(schedule, f.name) for f in fields(schedule)}


def from_dict(document: Mapping[str, Any]) -> Schedule:
    """The schedule that `to_dict` wrote."""
    parameters = dict(document)
    return make(parameters.pop("name"), **parameters)


def _class(name: str) -> type[Schedule]:
    if name not in _registry:
        raise RecipeError(f"no schedule is called {name!r}", fix=nearest(name, _registry))
    return _registry[name]


def _require(condition: bool, what: str, fix: str = "") -> None:
    if not condition:
        raise RecipeError(what, where="schedule", fix=fix)
