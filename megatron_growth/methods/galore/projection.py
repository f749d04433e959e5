"""One matrix under GaLore on one rank: where it lies in its fused weight and over tensor-parallel ranks, its projector.

Shape legend: M x N the whole matrix, m x n this rank's part of it, r the rank of the projector P.
    on the right (M >= N)    P r x N, moments M x r, low-rank gradient G P^T
    on the left  (M < N)     P M x r, moments r x N, low-rank gradient P^T G
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_growth.methods.galore.matrices import Matrix

MARK = "growth_galore"  # attribute of a parameter: its Places


@dataclass(frozen=True)
class Place:
    """One matrix on this rank.

    Attributes:
        matrix: the whole one.
        rank: of its projector.
        cut: the axis that tensor-parallel ranks share, None when it is whole here.
        tp: their number.
        number: of the matrix among all that this pipeline stage projects; ranks take turns at the SVDs by it.
    """

    matrix: Matrix
    rank: int
    cut: int | None
    tp: int
    number: int

    @property
    def right(self) -> bool:
        """P stands on the right."""
        return self.matrix.projects_columns

    @property
    def local(self) -> tuple[int, int]:
        """(m, n), this rank's part."""
        rows, columns = self.matrix.rows, self.matrix.columns
        return rows // self.tp if self.cut == 0 else rows, columns // self.tp if self.cut == 1 else columns

    @property
    def sums(self) -> bool:
        """The low-rank gradient of a rank is a partial sum over tensor-parallel ranks: they share the axis P spans."""
        return self.cut == (1 if self.right else 0)

    def shape(self, kind: str) -> tuple[int, int]:
        """Shape on this rank of "proj" or of a moment."""
        m, n = self.local
        return (self.rank, n) if self.right == (kind == "proj") else (m, self.rank)

    def axis(self, kind: str) -> int | None:
        """The axis of "proj" or of a moment that tensor-parallel ranks share; None when each holds all of it."""
        return self.cut if self.sums == (kind == "proj") else None

    def project(self, gradient: Tensor, projector: Tensor) -> Tensor:
        """The gradient in the subspace; a partial sum where `sums`."""
        return gradient @ projector.t() if self.right else projector.t() @ gradient

    def back(self, update: Tensor, projector: Tensor) -> Tensor:
        """An update of the subspace as one of the matrix."""
        return update @ projector if self.right else projector @ update


@dataclass(frozen=True)
class Places:
    """All matrices of one parameter on this rank.

    Attributes:
        places: by the matrix' name.
        groups: (queries, key, value) rows of one query group of a fused QKV weight, None for other weights.
    """

    places: dict[str, Place]
    groups: tuple[int, int, int] | None = None

    def take(self, weight: Tensor) -> dict[str, Tensor]:
        """The matrices of a fused weight (or gradient), each (m, n)."""
        if self.groups:
            parts = weight.view(-1, sum(self.groups), weight.size(-1)).split(self.groups, dim=1)
            return dict(zip(self.places, (part.reshape(-1, weight.size(-1)) for part in parts), strict=True))
        return dict(zip(self.places, weight.chunk(len(self.places)), strict=True))

    def join(self, parts: dict[str, Tensor]) -> Tensor:
        """The fused weight of its matrices, the inverse of `take`."""
        values = list(parts.values())
        if self.groups:
            width = values[0].size(-1)
            grouped = [v.view(-1, size, width) for v, size in zip(values, self.groups, strict=True)]
            return torch.cat(grouped, dim=1).view(-1, width)
        return torch.cat(values)


@dataclass(frozen=True)
class Ranks:
    """The process groups that share a matrix: over tensor and over data parallelism."""

    tensor: Any
    data: Any

    def projector(self, gradient: Tensor, place: Place) -> Tensor:
        """This rank's part of the new projector: the top r singular vectors of the whole gradient.

        One rank computes it and the others receive it, so that no two ranks ever hold projectors that differ by a bit;
        the ranks take turns over the matrices.
        """
        turn = place.number % self.data.size()
        owner = (place.number // self.data.size()) % place.tp
        found = torch.empty(place.shape("proj"), dtype=torch.float32, device=gradient.device)
        if self.data.rank() == turn:
            found.copy_(self._over_tensor(gradient, place, owner))
        if self.data.size() > 1:
            dist.broadcast(found, src=dist.get_global_rank(self.data, turn), group=self.data)
        return found

    def _over_tensor(self, gradient: Tensor, place: Place, owner: int) -> Tensor:
        """The projector, computed by one tensor-parallel rank; this rank's part of it."""
        if place.cut is None:
            return singular_vectors(gradient, place)
        mine, source = self.tensor.rank() == owner, dist.get_global_rank(self.tensor, owner)
        parts = [torch.empty_like(gradient) for _ in range(place.tp)] if mine else None
        dist.gather(gradient.contiguous(), parts, dst=source, group=self.tensor)
        if parts is not None:
            whole = singular_vectors(torch.cat(parts, dim=place.cut), place)
        else:
            shape = replace(place, cut=None).shape("proj")
            whole = torch.empty(shape, dtype=torch.float32, device=gradient.device)
        dist.broadcast(whole, src=source, group=self.tensor)
        axis = place.axis("proj")
        return whole if axis is None else whole.chunk(place.tp, dim=axis)[self.tensor.rank()]


def singular_vectors(gradient: Tensor, place: Place) -> Tensor:
    """The top r right (r x N) or left (M x r) singular vectors of a whole gradient."""
    u, _, vh = torch.linalg.svd(gradient.float(), full_matrices=False)
    return (vh[: place.rank] if place.right else u[:, : place.rank]).contiguous()
