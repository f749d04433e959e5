"""All variants of a recipe in one folder, each an ordinary run directory, on one dataset.

RUN/VARIANT/        as in `directory.py`; the dataset's files are hard links to those of the first variant
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from megatron_growth.errors import RunError
from megatron_growth.recipes import Recipe
from megatron_growth.run.directory import RunDirectory
from megatron_growth.run.screen import Screen
from megatron_growth.run.train import TrainRequest, train


def train_variants(
    load: Callable[[str], Recipe], names: Sequence[str], path: Path, request: TrainRequest, screen: Screen
) -> list[RunDirectory]:
    """Train every variant of a recipe that is not finished yet.

    Args:
        names: of the variants, in the order of training.
        request: as for one run; it must not name a stage.

    Raises:
        RunError: `path` is the run directory of one recipe, or a stage is named.
        GrowthError: as `train`.
    """
    if request.stage:
        raise RunError("a stage belongs to one variant", fix=f"add --variant, one of {', '.join(names)}")
    if RunDirectory(path).recipe.is_file():
        raise RunError(f"{path} is the run of one variant", where=str(path), fix="name another folder with --run")
    runs: list[RunDirectory] = []
    for name in names:
        screen.message(f"variant {name}")
        shared = replace(request, dataset_of=runs[0] if runs else None)
        runs.append(train(load(name), path / name, shared, screen))
    return runs
