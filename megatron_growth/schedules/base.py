"""What a schedule is: linear warm-up to a peak, then a share of the peak at every step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron_growth.errors import GrowthError, RecipeError, unexpected

_ROUNDING = 1e-9  # a share that ends at 0 may miss it


@dataclass(frozen=True)
class Schedule(ABC):
    """Linear warm-up to the peak, then `after_warmup`; the fields that a subclass adds are its parameters.

    Attributes:
        name: what a recipe and the command line call it.
        paper: where it comes from.
        peak: eta, the highest learning rate.
        iterations: T, steps over which the schedule is defined; later steps keep its last value.
        warmup_iterations: T_w, steps of linear warm-up from 0; not necessarily whole.

    Raises:
        RecipeError: a value is out of range.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    peak: float
    iterations: int | float
    warmup_iterations: int | float = 0

    def __post_init__(self) -> None:
        require(self.peak > 0, f"the learning rate is {self.peak}; it must be above 0")
        require(self.iterations >= 1, f"the schedule has {self.iterations} iterations; it needs at least 1")
        require(self.warmup_iterations >= 0, f"the warm-up has {self.warmup_iterations} iterations")
        require(
            self.warmup_iterations <= self.iterations,
            f"the warm-up of {self.warmup_iterations} iterations is longer than the stage of {self.iterations}",
            "shorten warmup_iterations, or give warmup_fraction",
        )

    def lr(self, step: float) -> float:
        """The learning rate at `step`; RecipeError when a schedule of an outside package gives none."""
        step = min(step, self.iterations)
        if step <= self.warmup_iterations and self.warmup_iterations:
            return self.peak * step / self.warmup_iterations
        share = self.after_warmup(step)
        self._require_rate(share, f"{share} of the peak", step)
        return self.peak * share

    def check_rates(self, steps: int, unit: int = 1) -> None:
        """Compute every learning rate of a stage before it trains, with a schedule of an outside package.

        Ours are formulas that tests hold to the papers; half a million steps of one take a second.

        Args:
            steps: optimizer steps of the stage, which may be fewer or more than the schedule's.
            unit: what the schedule counts a step as; Megatron's counts samples.

        Raises:
            RecipeError: one of them is none, with its step.
            GrowthError: the schedule raised something.
        """
        if type(self).__module__.partition(".")[0] == __name__.partition(".")[0]:
            return
        for step in range(0, steps * unit + 1, unit):
            try:
                rate = self.lr(step)
            except GrowthError:
                raise
            except Exception as error:
                found = unexpected(error)
                raise GrowthError(f"{found.what} (at step {step:g})", where=found.where, fix=found.fix) from error
            self._require_rate(rate, f"a learning rate of {rate}", step)

    def _require_rate(self, value: Any, gives: str, step: float) -> None:
        """Refuse what is no number from 0."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        require(
            -_ROUNDING <= number < math.inf,
            f"the schedule {self.name!r} gives {gives} at step {step:g}",
            f"correct {type(self).__module__}.{type(self).__qualname__}, or take another schedule",
        )

    @abstractmethod
    def after_warmup(self, step: float) -> float:
        """Share of the peak at a step after warm-up; `step` is at most `iterations`."""

    def progress(self, step: float) -> float:
        """(t - T_w) / (T - T_w): 0 at the end of warm-up, 1 at the end of the stage."""
        after = self.iterations - self.warmup_iterations
        return (step - self.warmup_iterations) / after if after else 0.0


@dataclass(frozen=True)
class Decaying(Schedule):
    """A schedule that ends at `min_lr_ratio` (alpha) times the peak."""

    min_lr_ratio: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.min_lr_ratio <= 1, f"min_lr_ratio (alpha) is {self.min_lr_ratio}; it must lie in 0 to 1")


def require(condition: bool, what: str, fix: str = "") -> None:
    """Raise a RecipeError about a schedule unless the condition holds."""
    if not condition:
        raise RecipeError(what, where="schedule", fix=fix)
