"""Growing on load into TP 2 x PP 2 against loading an already grown checkpoint into the same layout; 4 processes.

    python benchmarks/grow_on_load.py [--case 1b-2b] [--repeat 3] [--folder DIR] [--json]

Both fill the same bf16 GPT model, built by Megatron in the target's layout; only the filling is timed, and the slowest
rank counts.  Loading is Megatron's own `dist_checkpointing.load`.  The files to be read are evicted from the page
cache before each; the order alternates from round to round.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grow as offline
import growth_cases

from megatron_growth.testing import run_distributed, tiny_gpt

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

TP, PP = 2, 2


def build(case: str) -> GPTModel:
    """This rank's part of the target model; weights are left as allocated."""
    import torch

    shape = growth_cases.CASES[case].target
    options = {"dtype": torch.bfloat16, "perform_initialization": False}
    return tiny_gpt(shape, spec="stock", tensor=TP, pipeline=PP, **options)


def fill(case: str, what: str, path: str) -> float:
    """On one rank: seconds to fill the model by growing, or by loading what was grown."""
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    from megatron_growth.checkpoint.grow_on_load import GrowthRequest
    from megatron_growth.checkpoint.grow_on_load import fill as grow

    model = build(case)
    dist.barrier()
    begin = time.perf_counter()
    if what == "grow":
        grow([model], path, GrowthRequest("aki", "stack"))
    else:
        state = {k: v for k, v in model.sharded_state_dict().items() if "_extra_state" not in k}
        loaded = dist_checkpointing.load(state, path)
        model.load_state_dict(loaded, strict=False)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=growth_cases.CASES, default="1b-2b", help="source and target")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the median is reported")
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    parser.add_argument("--json", action="store_true", help="one JSON document, with every round")
    args = parser.parse_args()
    args.processes, args.optimizer_state = 2, "reset"
    rounds = []
    with tempfile.TemporaryDirectory(prefix="benchmark-load-", dir=args.folder) as name:
        source, grown = Path(name) / "source", Path(name) / "grown"
        subprocess.run(offline.helper_command("make", args.case, source, "reset"), check=True)
        offline.measure(offline.grow_command(growth_cases.CASES[args.case], source, grown, args))
        for number in range(args.repeat):
            found = {}
            for what, path in [("grow", source), ("load", grown / "release")][:: 1 if number % 2 else -1]:
                offline.evict(path)
                found[what] = max(run_distributed(fill, TP * PP, args.case, what, str(path), timeout=400))
            rounds.append(found | {"ratio": found["grow"] / found["load"]})
        shutil.rmtree(grown)
    figures = {key: round(statistics.median(r[key] for r in rounds), 3) for key in ("grow", "load", "ratio")}
    document = {"case": args.case, "layout": f"TP {TP} x PP {PP}", **figures, "rounds": rounds}
    print(json.dumps(document, indent=2) if args.json else "\n".join(f"{k}: {v}" for k, v in document.items()))


if __name__ == "__main__":
    main()
