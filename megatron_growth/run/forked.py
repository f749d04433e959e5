"""The ranks of a stage on a machine without a GPU, forked from one process that has imported Megatron.

    python -m megatron_growth.run.forked RANKS MODULE ARGUMENTS...

calls `MODULE.main()` in RANKS processes as `torchrun --nproc-per-node RANKS -m MODULE ARGUMENTS` does, with the same
agent of torch.  Importing takes longer than training many a stage of a small model; here it is done once.  On GPUs
torchrun itself starts the ranks: CUDA does not survive a fork, and those seconds do not matter there.
"""

from __future__ import annotations

import importlib
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import record

from megatron_growth.backend.preload import import_megatron, read_flags_once
from megatron_growth.backend.processes import importing
from megatron_growth.plugin.preload import import_parts
from megatron_growth.run import failures


def rank_main(module: str, arguments: Sequence[str]) -> None:
    """One rank; the agent has set torchrun's variables."""
    sys.argv[:] = [module, *arguments]
    try:
        code = importlib.import_module(module).main()
    except SystemExit as end:
        code = end.code
    if code:  # the agent counts a rank that returns as successful
        sys.exit(code)


@record
def main(words: Sequence[str] | None = None) -> None:
    """Fork the ranks and wait for them; end as torchrun does when one of them fails."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    ranks, module, *arguments = sys.argv[1:] if words is None else words
    with failures.recorded(), importing():
        import_megatron()
        importlib.import_module(module)
        import_parts()
        read_flags_once()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(ranks),
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, rank_main)(module, arguments)


if __name__ == "__main__":
    main()
