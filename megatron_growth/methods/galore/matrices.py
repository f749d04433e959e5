"""The separate matrices inside Megatron's fused weights, and what GaLore's state of each takes; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_growth.layout.parameters import PARAMETERS, dimensions, fused_rows
from megatron_growth.shape import ModelShape


@dataclass(frozen=True)
class Matrix:
    """One matrix: M rows (out), N columns (in)."""

    name: str
    rows: int
    columns: int

    @property
    def projects_columns(self) -> bool:
        """The projector stands on the right, P r x N; otherwise on the left, P M x r (galore-torch's rule)."""
        return self.rows >= self.columns

    def state_numbers(self, rank: int, tp: int = 1, split: str = "none") -> int:
        """Numbers of projector and two moments on one of `tp` ranks.

        What lies along the cut axis is cut with it, the rest is whole on every rank.
        """
        rank = min(rank, self.rows, self.columns)
        rows = -(-self.rows // tp) if split == "column" else self.rows
        columns = -(-self.columns // tp) if split == "row" else self.columns
        if self.projects_columns:
            return rank * columns + 2 * rows * rank
        return rank * rows + 2 * rank * columns

    def projection_flops(self, rank: int, gap: int) -> float:
        """FLOPs a step: into the subspace and back, and an SVD (about 4 M N min(M, N)) spread over the gap."""
        size = self.rows * self.columns
        return 4.0 * rank * size + 4.0 * size * min(self.rows, self.columns) / gap


def matrices_of(name: str, shape: ModelShape) -> list[Matrix]:
    """The matrices of a parameter family (its name is without layer number): one, or those that Megatron fused."""
    parameter = PARAMETERS[name]
    _, columns = dimensions(parameter, shape)
    return [Matrix(part, rows, columns) for part, rows in fused_rows(parameter, shape).items()]
