"""One rank of a post-training under Slurm: `python -m megatron_growth.posttrain.slurm_rank DIR.job KIND`.

It trains all rates of a sweep, one after the other; the end of the job makes the model.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_growth import mistakes
from megatron_growth.backend.processes import leave
from megatron_growth.posttrain.run import job_of
from megatron_growth.posttrain.slurm_jobs import request_in, target_of, work_of
from megatron_growth.run import failures
from megatron_growth.run.directory import RunDirectory


def main() -> int:
    """Entry point; 0 when everything is trained, or when it was asked to stop and has saved."""
    with failures.recorded_in_a_job():
        run = RunDirectory(Path(sys.argv[1]))
        if not target_of(run).exists():
            _train(run)
    return 0


def _train(run: RunDirectory) -> None:
    import torch.distributed as dist

    from megatron_growth.posttrain import finish
    from megatron_growth.posttrain.training import train

    work, request = work_of(run), request_in(run)
    for rate in request.rates:
        if work.rate(rate).result is None and train(job_of(work, rate), stop_gently=True) is None:
            break
        if mistakes.rank() == 0:
            finish.keep_best(work, request)
        if dist.is_initialized():
            dist.barrier()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    leave(main())
