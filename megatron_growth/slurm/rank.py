"""One rank of a stage under Slurm: `python -m megatron_growth.slurm.rank RUN STAGE`, with torchrun's variables set.

It reads the words that the job's first step has written (`job.begin`), then runs `megatron_growth.run.pretrain`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from megatron_growth.backend import start
from megatron_growth.run import failures
from megatron_growth.run.directory import existing
from megatron_growth.run.stage import read_arguments


def main() -> int:
    """Entry point of one rank; returns its exit code."""
    from megatron_growth.run import pretrain

    with failures.recorded_in_a_job():
        run, name = existing(Path(sys.argv[1])), sys.argv[2]
        os.environ |= start.variables(run.planned_stage(name).layout.tp)  # before torch looks for a GPU
        sys.argv[1:] = read_arguments(run.stage(name))
        return pretrain.main()


if __name__ == "__main__":
    sys.exit(main())
