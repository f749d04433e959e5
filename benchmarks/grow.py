"""Growing a checkpoint offline against copying the target's bytes, at the paper's full shapes, random weights.

    python benchmarks/grow.py --case 1b-2b [--processes 2] [--optimizer-state grow] [--repeat 3] [--json]
    python benchmarks/grow.py --case 4b-8b --folder /scratch          needs about 45 GB of disk
    python benchmarks/grow.py --case 1b-2b --optimizer-state grow     55 GB; 85 GB to keep the whole copy until the end

`seconds` is the wall time of `megatron-growth grow` (AKI + stack, bf16) in a process of its own, imports included;
`copy_seconds` that of a plain torch DCP load + save of the target's bytes, in slices of at most 6 GB so that memory
allows it; `ratio` the first over the second.  The files to be read are evicted from the page cache before each.
`peak_gib` is the largest sum of PSS over all processes, sampled every 0.1 s.  For 1b-2b the usual way stands beside
it: load everything in one process, expand with dense tensors, save, and load and save again to re-shard.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import growth_cases
import psutil
from measuring import memory_bytes

HERE = Path(__file__).parent
SAMPLE_SECONDS = 0.1


def evict(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(command: list[str]) -> tuple[float, float]:
    """(wall seconds, peak GiB of PSS over the process tree) of a command; raises when it fails."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = psutil.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        peak, done = [0.0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(process, peak, done))
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - begin
        done.set()
        watcher.join()
        if code:
            log.seek(0)
            sys.stderr.write(log.read().decode()[-3000:])
            raise subprocess.CalledProcessError(code, command)
    return seconds, peak[0]


def _watch(process: psutil.Process, peak: list[float], done: threading.Event) -> None:
    while not done.wait(SAMPLE_SECONDS):
        peak[0] = max(peak[0], memory_bytes(process) / 2**30)


def grow_command(case: growth_cases.Case, source: Path, target: Path, args: argparse.Namespace) -> list[str]:
    shape = case.target
    sizes = {
        "--num-layers": shape.layers,
        "--hidden-size": shape.hidden,
        "--ffn-hidden-size": shape.ffn,
        "--num-attention-heads": shape.heads,
        "--seed": 0,
    }
    if args.processes:
        sizes["--processes"] = args.processes
    words = ["--from", source, "--to", target, "--width", "aki", "--depth", "stack", *sum(sizes.items(), ())]
    words += ["--optimizer-state", args.optimizer_state, "--json"]
    return [sys.executable, "-m", "megatron_growth.cli.main", "grow", *map(str, words)]


def helper_command(what: str, *words: object) -> list[str]:
    return [sys.executable, str(HERE / "growth_cases.py"), what, *map(str, words)]


def one_round(case: growth_cases.Case, source: Path, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Grow, then copy the result; with the usual way where it is asked for."""
    target, copy = folder / "grown", folder / "copy"
    evict(source)
    seconds, peak = measure(grow_command(case, source, target, args))
    evict(target)
    copy_seconds, copy_peak = measure(helper_command("copy", target, copy))
    shutil.rmtree(copy)
    result = {
        "seconds": seconds,
        "copy_seconds": copy_seconds,
        "ratio": seconds / copy_seconds,
        "peak_gib": peak,
        "copy_peak_gib": copy_peak,
        "target_gb": sum(p.stat().st_size for p in target.rglob("*.distcp")) / 1e9,
    }
    shutil.rmtree(target)
    if args.case == "1b-2b" and args.optimizer_state == "reset":
        evict(source)
        usual, usual_peak = measure(helper_command("usual", args.case, source, folder / "usual"))
        shutil.rmtree(folder / "usual")
        result |= {"usual_seconds": usual, "usual_ratio": usual / copy_seconds, "usual_peak_gib": usual_peak}
    return result


def print_figures(asked: dict[str, object], rounds: list[dict[str, float]], as_json: bool) -> None:
    """The median of every figure of some rounds; as JSON with what was asked for and the rounds themselves."""
    figures = {key: round(statistics.median(r[key] for r in rounds), 3) for key in rounds[0]}
    if as_json:
        shown = [{key: round(value, 3) for key, value in r.items()} for r in rounds]
        print(json.dumps({**asked, **figures, "rounds": shown}, indent=2))
        return
    for key, value in figures.items():
        print(f"{key:18} {value}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=growth_cases.CASES, default="1b-2b", help="source and target")
    parser.add_argument("--processes", type=int, help="of `grow`; its own default when not given")
    parser.add_argument("--optimizer-state", choices=("reset", "grow"), default="reset", help="grown too, or not")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the median is reported")
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    parser.add_argument("--json", action="store_true", help="one JSON document, with every round")
    args = parser.parse_args()
    case = growth_cases.CASES[args.case]
    with tempfile.TemporaryDirectory(prefix="benchmark-grow-", dir=args.folder) as name:
        folder = Path(name)
        source = folder / "source"
        subprocess.run(helper_command("make", args.case, source, args.optimizer_state), check=True)
        rounds = [one_round(case, source, folder, args) for _ in range(args.repeat)]
    asked = {"case": args.case, "processes": args.processes, "optimizer_state": args.optimizer_state}
    print_figures(asked, rounds, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
