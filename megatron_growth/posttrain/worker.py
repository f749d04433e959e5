"""One process of a training: `python -m megatron_growth.posttrain.worker WORK RATE`, under torchrun.

The exit code is 0 when training is done, or was asked to stop and has saved; its folder says which.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_growth.backend.processes import die_with_parent, leave
from megatron_growth.posttrain.folder import Work
from megatron_growth.posttrain.run import job_of
from megatron_growth.run import failures


def main() -> int:
    """Entry point; returns the exit code."""
    die_with_parent()
    with failures.recorded_in_a_job():
        from megatron_growth.posttrain.training import train

        work, rate = Work(Path(sys.argv[1])), float(sys.argv[2])
        train(job_of(work, rate), stop_gently=True)
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    leave(main())
