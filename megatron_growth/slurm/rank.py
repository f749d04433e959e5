"""One rank of a stage under Slurm: `python -m megatron_growth.slurm.rank RUN STAGE`, with torchrun's variables set.

Every rank works out the stage's Megatron arguments from the run directory by itself, which is the same in all of them,
and then is `megatron_growth.run.pretrain`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from megatron_growth.run.directory import RunDirectory, StageDirectory, existing
from megatron_growth.slurm.stage_jobs import FLAGS_VARIABLE


def stage_arguments(run: RunDirectory, name: str, ranks: int) -> list[str]:
    """The words of Megatron's command line for one stage.

    Args:
        run: with recipe and prepared data.
        name: of the stage.
        ranks: of the job; they decide the data-parallel size where the recipe leaves it open.

    Raises:
        GrowthError: the run's recipe, data or source stage cannot serve.
    """
    from megatron_growth import recipes
    from megatron_growth.backend import start
    from megatron_growth.data.manifest import load_manifest
    from megatron_growth.planner import plan_run
    from megatron_growth.run import checkpoints, dataset, early_stop, gpu_options
    from megatron_growth.run.arguments import Launch, megatron_arguments

    recipe = recipes.load(run.recipe)
    plan = plan_run(recipe, gpus=ranks)
    stage, manifest = plan.stage(name), load_manifest(run.data)
    folder = StageDirectory(run.stage(name).path.absolute())
    reached = checkpoints.tracked(folder.checkpoints) or 0
    launched = Launch(
        directory=folder,
        source=run.stage(stage.source).checkpoints.absolute() if stage.source else None,
        data_flags=tuple(dataset.flags(run, manifest)),
        data_cache=run.path.absolute() / "cache",
        validation_samples=dataset.validation_samples(recipe, plan.stages, manifest),
        stop_below=early_stop.target_of(recipe, name, run.path),
        train=reached < early_stop.end_of(folder, stage.iterations),
    )
    # Before torch is asked for a GPU.
    os.environ |= start.variables(stage.layout.tp)
    machine = gpu_options.machine_here()
    return megatron_arguments(recipe, stage, launched.on(machine, json.loads(os.environ.get(FLAGS_VARIABLE, "{}"))))


def main() -> int:
    """Entry point of one rank; returns its exit code."""
    from megatron_growth.run import failures, pretrain

    try:
        with failures.recorded():
            run, name = existing(Path(sys.argv[1])), sys.argv[2]
            sys.argv[1:] = stage_arguments(run, name, int(os.environ["WORLD_SIZE"]))
        return pretrain.main()
    finally:
        # The batch script repeats TERM until all ranks have gone; Python gives up Megatron's handler before that.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
