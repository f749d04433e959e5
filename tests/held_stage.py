"""A stage of real training that cannot end before a test has acted on it.

A launch that begins before it stops after AFTER iterations, with what was saved until then on disk, and goes on when a
rank gets SIGTERM: what a test does to it meanwhile (a signal, a power cut, a requeue, Ctrl-C) comes neither too early
nor too late, however busy the machine is.  A launch that finds a later checkpoint is ordinary.

    GROWTH_ENTRY=tests.held_stage sbatch ... stage.sbatch RUN STAGE
    python -m tests.held_stage train RECIPE ...            the command `train`, with stages that are held
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

AFTER = 10


def hold() -> None:
    """Let Megatron's training step wait before iteration AFTER + 1, where no checkpoint of it or beyond was found."""
    from megatron.training import get_args, get_signal_handler, training
    from megatron.training.async_utils import maybe_finalize_async_save

    step = training.train_step

    def held(*args: Any, **more: Any) -> Any:
        if get_args().curr_iteration == AFTER and get_args().iteration < AFTER:
            maybe_finalize_async_save(blocking=True)
            while not any(get_signal_handler().signals_received()):
                time.sleep(0.02)
        return step(*args, **more)

    training.train_step = held


def main() -> int:
    """Entry point of a rank, or of the command that starts ranks."""
    if "RANK" not in os.environ:
        from megatron_growth.cli import main as command
        from megatron_growth.run import torchrun

        torchrun.ENTRY = __spec__.name
        return command.main()
    from megatron_growth.run import pretrain
    from megatron_growth.slurm import rank

    train = pretrain.run

    def held_run() -> None:
        hold()
        train()

    pretrain.run = held_run
    return rank.main() if "SLURM_JOB_ID" in os.environ else pretrain.main()


if __name__ == "__main__":
    sys.exit(main())
