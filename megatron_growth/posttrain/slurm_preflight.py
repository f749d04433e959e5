"""A check of every node of a job before training: `python -m megatron_growth.posttrain.slurm_preflight DIR.job KIND`.

The node must see the work folder with its examples, have the packages that training needs, and have its GPUs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from megatron_growth.errors import GrowthError, RunError
from megatron_growth.posttrain.examples import RECORD
from megatron_growth.posttrain.run import require
from megatron_growth.posttrain.slurm_jobs import request_in, target_of, work_of
from megatron_growth.run.directory import RunDirectory
from megatron_growth.slurm import record as slurm_record
from megatron_growth.slurm.preflight import host_name


def check(run: RunDirectory) -> None:
    """Refuse a node that cannot train.

    Raises:
        GrowthError: packages, examples or GPUs are missing.
    """
    request = request_in(run)
    require(request)
    if not target_of(run).exists() and not (work_of(run).data / RECORD).is_file():
        raise RunError(
            "the examples are not here: this node does not share the file system of the job",
            where=str(work_of(run).path),
            fix="give an --output that all nodes see",
        )
    wanted, found = os.environ.get("GROWTH_GPUS_PER_NODE"), int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    if wanted and int(wanted) != found:
        raise RunError(f"{found} GPUs for this job, but {wanted} are planned", fix="repair the node, or exclude it")


def main() -> int:
    """0 when this node may train."""
    run, kind = RunDirectory(Path(sys.argv[1])), sys.argv[2]
    try:
        check(run)
    except GrowthError as error:
        print(f"preflight on {host_name()}: {error}", file=sys.stderr)
        slurm_record.fail(run.stage(kind), f"before training, on {host_name()}: {error.what}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
