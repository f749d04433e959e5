"""What GaLore would lose if every tensor-parallel rank projected its own part of a matrix: nano-step in N parts.

    python benchmarks/galore_local.py --work DIR --lr 40e-3 [--cuts 1 2 4] [--seeds 0 1 2] [--iterations 200 --batch 8]

One process: matrices are cut as N tensor-parallel ranks cut them, and every part has a projector of its own; 1 is the
method as it is.  DIR is that of `benchmarks/step.py`, whose dataset and runs are used; what is finished is only read.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import statistics
import sys
from pathlib import Path
from typing import Any

CUTS = "GALORE_CUTS"


def cut_projections(cuts: int) -> None:
    """In a training process: GaLore's matrices in `cuts` parts."""
    import torch

    from megatron_growth.layout.parameters import PARAMETERS
    from megatron_growth.methods.galore import build
    from megatron_growth.methods.galore.matrices import Matrix
    from megatron_growth.methods.galore.projection import Place, Places

    whole = build._places

    @dataclasses.dataclass(frozen=True)
    class Parts(Places):
        axis: int = 0

        def take(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
            names = dict.fromkeys(name.rpartition(".")[0] for name in self.places)
            parts = Places(dict.fromkeys(names), self.groups).take(weight)  # type: ignore[arg-type]
            return {
                f"{n}.{i}": part for n, found in parts.items() for i, part in enumerate(found.chunk(cuts, self.axis))
            }

        def join(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
            names = dict.fromkeys(name.rpartition(".")[0] for name in parts)
            joined = {n: torch.cat([parts[f"{n}.{i}"] for i in range(cuts)], self.axis) for n in names}
            return Places(dict.fromkeys(names), self.groups).join(joined)  # type: ignore[arg-type]

    def places(name: str, shape: Any, rank: int, tp: int, number: int) -> Places:
        found = whole(name, shape, rank, tp, number)
        axis = {"column": 0, "row": 1}[PARAMETERS[name].split]
        made = {}
        for place in found.places.values():
            m, n = place.matrix.rows, place.matrix.columns
            for i in range(cuts):
                part = f"{place.matrix.name}.{i}"
                matrix = Matrix(part, m // cuts, n) if axis == 0 else Matrix(part, m, n // cuts)
                made[part] = Place(matrix, rank, None, 1, place.number * cuts + i)
        return Parts(made, found.groups, axis)

    build._places = places


def main() -> None:
    """Train what is missing, and print a line for each number of parts."""
    sys.path.insert(0, str(Path(__file__).parent))
    import step

    from megatron_growth.run import torchrun

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--cuts", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only-read", action="store_true")
    options = parser.parse_args()
    torchrun.ENTRY = "benchmarks.galore_local"
    for cuts in options.cuts:
        os.environ[CUTS] = str(cuts)
        name = "galore" if cuts == 1 else f"galore/{cuts}"
        found = [step.train(step.Cell(name, options.lr, seed), options) for seed in options.seeds]
        losses = [result.loss for result in found if result]
        if losses:
            perplexities = [math.exp(loss) for loss in losses]
            spread = f" ± {statistics.stdev(perplexities):.2f}" if len(losses) > 1 else ""
            print(
                f"{cuts} parts: perplexity {statistics.mean(perplexities):.2f}{spread}, {len(losses)} seeds", flush=True
            )


if __name__ == "__main__":
    if "RANK" in os.environ:
        from megatron_growth.run import pretrain

        if (number := int(os.environ[CUTS])) > 1:
            cut_projections(number)
        sys.exit(pretrain.main())
    main()
