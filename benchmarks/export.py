"""Exporting a checkpoint to Hugging Face against a plain copy of its bytes, at the paper's full shapes, random weights.

    python benchmarks/export.py --case 1b [--processes 2] [--repeat 3] [--json]
    python benchmarks/export.py --case 8b --folder /scratch            needs about 50 GB of disk

`seconds` is the wall time of `megatron-growth export` (bf16) in a process of its own, imports included;
`copy_seconds` that of copying the checkpoint's files, each flushed to disk; `ratio` the first over the second.  The
files to be read are evicted from the page cache before each.  `peak_gib` is the largest sum of PSS over all processes,
sampled every 0.1 s.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import growth_cases
from grow import evict, helper_command, measure, print_figures

COPY = """
import os, pathlib, shutil, sys
source, target = map(pathlib.Path, sys.argv[1:])
target.mkdir()
for path in source.glob("*.distcp"):
    shutil.copyfile(path, target / path.name)
    descriptor = os.open(target / path.name, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
"""


def one_round(source: Path, folder: Path, processes: int | None) -> dict[str, float]:
    """Copy, then export."""
    target, copy = folder / "export", folder / "copy"
    words = ["export", str(source), "--to", str(target), "--json"]
    if processes:
        words += ["--processes", str(processes)]
    evict(source)
    copy_seconds, _ = measure([sys.executable, "-c", COPY, str(source), str(copy)])
    shutil.rmtree(copy)
    evict(source)
    seconds, peak = measure([sys.executable, "-m", "megatron_growth.cli.main", *words])
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    shutil.rmtree(target)
    return {
        "seconds": seconds,
        "copy_seconds": copy_seconds,
        "ratio": seconds / copy_seconds,
        "peak_gib": peak,
        "export_gb": size / 1e9,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=growth_cases.FAMILY, default="1b", help="size of the model")
    parser.add_argument("--processes", type=int, help="of `export`; its own default when not given")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the median is reported")
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    parser.add_argument("--json", action="store_true", help="one JSON document, with every round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-export-", dir=args.folder) as name:
        folder = Path(name)
        source = folder / "source"
        subprocess.run(helper_command("make-model", args.case, source), check=True)
        rounds = [one_round(source, folder, args.processes) for _ in range(args.repeat)]
    print_figures({"case": args.case, "processes": args.processes}, rounds, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
