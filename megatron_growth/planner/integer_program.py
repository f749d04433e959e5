"""STEP's integer linear program: how many layers each stage adds, so that the peak of memory is smallest.

STEP (arXiv 2504.04151), eq. 2 and 3.  With P weights of one layer, E adapter weights of one layer and
N_i = n_1 + ... + n_i, stage i takes 16 n_i P + 2 N_{i-1} P + 16 N_{i-1} E bytes (Adam, mixed precision).  Minimise the
maximum over the stages, subject to N_K = L and n_i >= 0 whole; equivalently, minimise z with each stage's bytes <= z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from megatron_growth.errors import RecipeError
from megatron_growth.records.human import plural, size

TRAINED_BYTES = 16  # weight 2, gradient 2, master 4, two moments 8
FROZEN_BYTES = 2


@dataclass(frozen=True)
class Program:
    """The solver's tuple beside the paper's.

    Attributes:
        solver: layers that each stage adds, by the solver.
        paper: the same as the paper prints them, or empty.
        solver_stage_bytes: memory of each stage under the solver's tuple.
        layer_parameters, adapter_parameters: P and E.
        vanilla_bytes: memory without stages, 16 L P.
        printed_peak_bytes, printed_vanilla_bytes: as the paper prints them.
    """

    solver: tuple[int, ...]
    paper: tuple[int, ...]
    solver_peak_bytes: int
    paper_peak_bytes: int | None
    solver_stage_bytes: tuple[int, ...]
    paper_stage_bytes: tuple[int, ...]
    layer_parameters: int
    adapter_parameters: int
    vanilla_bytes: int
    printed_peak_bytes: float | None = None
    printed_vanilla_bytes: float | None = None


def stage_bytes(added: Sequence[int], layer_parameters: int, adapter_parameters: int) -> tuple[int, ...]:
    """Memory of each stage in bytes (STEP, eq. 2).

    Args:
        added: n_i, layers that stage i adds.
        layer_parameters, adapter_parameters: P and E.
    """
    frozen, found = 0, []
    per_frozen = FROZEN_BYTES * layer_parameters + TRAINED_BYTES * adapter_parameters
    for count in added:
        found.append(TRAINED_BYTES * count * layer_parameters + frozen * per_frozen)
        frozen += count
    return tuple(found)


@lru_cache(maxsize=64)
def solve(layers: int, stages: int, layer_parameters: int, adapter_parameters: int) -> tuple[int, ...]:
    """The tuple (n_1, ..., n_K) with the smallest peak; among several, one with a source before every stage.

    Args:
        layers: L, layers of the final model.
        stages: K.
        layer_parameters, adapter_parameters: P and E.

    Raises:
        RecipeError: K or L is not positive, or K is more than L.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes longer than all other imports of a plan

    if stages < 1 or layers < stages:
        raise RecipeError(
            f"{plural(layers, 'layer')} cannot be trained in {plural(stages, 'stage')}",
            where="integer program",
            fix=f"ask for 1 to {max(1, layers)} stages",
        )
    # Unknowns n_1..n_K and z, in units of one layer's weights so that the numbers are near 1.
    frozen = FROZEN_BYTES + TRAINED_BYTES * adapter_parameters / layer_parameters
    rows = np.tril(np.full((stages, stages), frozen), -1) + TRAINED_BYTES * np.eye(stages)
    under_peak = np.hstack([rows, -np.ones((stages, 1))])
    all_layers = np.append(np.ones(stages), 0.0)
    result = milp(
        c=np.append(np.zeros(stages), 1.0),
        constraints=[LinearConstraint(under_peak, ub=0.0), LinearConstraint(all_layers, layers, layers)],
        integrality=np.append(np.ones(stages), 0),
        bounds=Bounds(np.append(np.ones(stages), 0.0), np.append(np.full(stages, layers), np.inf)),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise RecipeError(f"the integer program has no solution: {result.message}", where="integer program")
    return tuple(int(n) for n in np.rint(result.x[:stages]))


def smallest_stages(
    layers: int, layer_parameters: int, adapter_parameters: int, memory_bytes: float
) -> tuple[int, tuple[int, ...]]:
    """The inverse question: the smallest K whose best tuple fits a memory, and that tuple.

    Raises:
        RecipeError: no number of stages fits; names the smallest peak.
    """
    best = float("inf")
    for stages in range(1, layers + 1):
        added = solve(layers, stages, layer_parameters, adapter_parameters)
        peak = max(stage_bytes(added, layer_parameters, adapter_parameters))
        if peak <= memory_bytes:
            return stages, added
        best = min(best, peak)
    raise RecipeError(
        f"no number of stages fits {size(memory_bytes)}; the smallest peak is {size(best)}",
        where="integer program",
        fix="lower the adapters' rank, shard the optimizer, or take GPUs with more memory",
    )


def program(
    layers: int,
    stages: int,
    layer_parameters: int,
    adapter_parameters: int,
    paper: Sequence[int] = (),
    printed: float | None = None,
    printed_vanilla: float | None = None,
) -> Program:
    """Solve, and set the paper's tuple and its printed peaks beside the solution."""
    solver = solve(layers, stages, layer_parameters, adapter_parameters)
    solver_bytes = stage_bytes(solver, layer_parameters, adapter_parameters)
    paper_bytes = stage_bytes(paper, layer_parameters, adapter_parameters)
    return Program(
        solver=solver,
        paper=tuple(paper),
        solver_peak_bytes=max(solver_bytes),
        paper_peak_bytes=max(paper_bytes) if paper_bytes else None,
        solver_stage_bytes=solver_bytes,
        paper_stage_bytes=paper_bytes,
        layer_parameters=layer_parameters,
        adapter_parameters=adapter_parameters,
        vanilla_bytes=TRAINED_BYTES * layers * layer_parameters,
        printed_peak_bytes=printed,
        printed_vanilla_bytes=printed_vanilla,
    )
