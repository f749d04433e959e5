"""One GPU: plain Megatron against the plugin, freezing, our layers against Transformer Engine's, and growth on load.

    python benchmarks/gpu.py [--seconds 240] [--folder DIR] [--json]              (the paper's 1B and 2B, in bf16)
    python benchmarks/gpu.py --turn /tmp/turn --only plain --only nothing         (two cases, started at once)
    python benchmarks/gpu.py --recipe nano-progressive --iterations 4             (the same on a machine without a GPU)

Each case is a fresh start of the plug-in example, stock or plugged, on mock data, with the words that `plan RECIPE
--command STAGE` prints for this machine; its batch is one micro-batch.  Time is the median of Megatron's own time per
iteration after the first five; memory is torch's peak, beside the plan's estimate.  Cases that do not fit --seconds are
left out and named.  With --turn FILE all cases but the first start at once and take turns from their first iteration on
(benchmarks/in_turn.py): where starting takes longer than training; also several of these commands, with the same FILE.
TFLOP/s and MFU are by the exact accounting.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_growth import recipes
from megatron_growth.backend import doctor
from megatron_growth.planner import RunPlan, StagePlan, plan_run
from megatron_growth.records.metrics import records
from megatron_growth.run.command import stage_words
from megatron_growth.testing import run_script, torchrun
from megatron_growth.testing.distributed import DistributedFailure

IN_TURN = Path(__file__).with_name("in_turn.py")
EXAMPLE = Path(__file__).parents[1] / "examples" / "01-plug-in"
STEP = re.compile(r"iteration +\d+/.*?elapsed time per iteration \(ms\): (\S+)")
PEAK = re.compile(r"max allocated: (\S+)")
WARM_UP = 5
# Words of a stage that belong to a run, to its layout, or to our own script, with the number of their values.
OF_A_RUN = {
    **dict.fromkeys(("load", "save", "save-interval", "tensorboard-dir", "data-cache-path", "train-data-path"), 1),
    **dict.fromkeys(("valid-data-path", "growth-metrics", "growth-data-start", "growth-data-pool", "growth-from"), 1),
    **dict.fromkeys(("growth-seed", "growth-optimizer-state", "growth-width", "growth-depth", "growth-sublayers"), 1),
    **dict.fromkeys(("growth-layer-spec", "global-batch-size", "train-iters", "eval-interval", "eval-iters"), 1),
    **dict.fromkeys(("lr-decay-iters", "lr-warmup-iters"), 1),
    **dict.fromkeys(("pipeline-model-parallel-layout", "num-virtual-stages-per-pipeline-rank"), 1),
    **dict.fromkeys(("growth-evaluate-at-start", "growth-data-repeat", "exit-signal-handler"), 0),
    **dict.fromkeys(("no-scaled-init", "sequence-parallel"), 0),
}


@dataclass(frozen=True)
class Case:
    """One start: the script, the stage, the kind of layers, and further words."""

    name: str
    stage: str
    plugged: bool
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What one case took; memory in GiB, `planned` is the plan's estimate of it."""

    case: str
    step_ms: float
    tokens_per_second: float
    tflops: float
    peak: float
    planned: float
    note: str = ""


def words_of(plan: RunPlan, name: str, installation: str, micro_batch: int, iterations: int) -> list[str]:
    """The words of a stage without those of its run, for one micro-batch a step on mock data."""
    words, kept = stage_words(recipes.load(plan.name), plan, name, installation=installation), []
    at = 0
    while at < len(words):
        values = OF_A_RUN.get(words[at].removeprefix("--"))
        if values is None:
            kept.append(words[at])
        at += 1 + (values or 0)
    options = {"global-batch-size": micro_batch, "train-iters": iterations, "eval-iters": 0, "eval-interval": 1000}
    options |= {"tensor-model-parallel-size": 1, "pipeline-model-parallel-size": 1}
    return [*kept, "--mock-data", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]


def cases(small: str, large: str, folder: Path, engine: bool) -> list[Case]:
    """What is measured, the most wanted first."""
    ours, auto = ("--transformer-impl", "local", "--growth-layer-spec", "local"), ("--growth-layer-spec", "auto")
    checkpoint = str(folder / "small")
    keep = ("--save", checkpoint, "--save-interval", "1000", "--no-save-optim", "--no-save-rng")
    frozen = ("--growth-freeze", "embedding.*,output_layer.*,decoder.layers.0.*")
    grown = ("--growth-from", checkpoint, "--growth-metrics", str(folder / "metrics.jsonl"))
    found = [
        Case("plugin, saved for growth", small, True, (*auto, *keep)),
        Case("growth on load", large, True, (*auto, *grown)),
        Case("plain Megatron", small, False),
        Case("plugin, nothing on", small, True),
        Case("embedding, output and first layer frozen", small, True, (*auto, *frozen)),
    ]
    return [*found, Case("our norm and attention", small, True, ours)] if engine else found


def measure(
    case: Case, plan: RunPlan, machine: doctor.Diagnosis, options: argparse.Namespace, folder: Path
) -> Measured:
    """Run one case to its end."""
    stage = plan.stage(case.stage)
    words = words_of(plan, case.stage, machine.installation, stage.micro_batch_size, options.iterations)
    script = EXAMPLE / ("pretrain_gpt.py" if case.plugged else "pretrain_gpt_stock.py")
    run, turn = (torchrun if machine.here.gpu else run_script), {}
    if options.turn:
        words, script, turn = [str(script), *words], IN_TURN, {"BENCHMARK_TURN": str(options.turn)}
    output = run(script, [*words, *case.words], env=turn, timeout=600).output
    step = statistics.median([float(ms) for ms in STEP.findall(output)][min(WARM_UP, options.iterations - 1) :])
    peaks = [float(mib) for mib in PEAK.findall(output)]
    tokens = stage.micro_batch_size * stage.sequence_length / (step / 1e3)
    note = ""
    if "--growth-from" in case.words:
        event = next(record for record in records(folder / "metrics.jsonl") if record.get("event") == "grown")
        note = f"grown in {event['seconds']:.1f} s, {event['bytes_read'] / 1e9 / event['seconds']:.2f} GB/s"
    return Measured(
        case=f"{case.name} ({case.stage})",
        step_ms=step,
        tokens_per_second=tokens,
        tflops=flops_per_token(stage) * tokens / 1e12,
        peak=max(peaks, default=0.0) / 1024,
        planned=stage.memory.total_bytes / 2**30,
        note=note,
    )


def flops_per_token(stage: StagePlan) -> float:
    """Of training, by the exact accounting."""
    return stage.flops_exact / (stage.samples * stage.sequence_length)


def table(rows: Sequence[Measured], peak_tflops: float) -> str:
    """Markdown; MFU against `peak_tflops`."""
    lines = [
        "| case | step, ms | tokens/s | TFLOP/s | MFU | peak memory, GiB | planned, GiB | |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row.case} | {row.step_ms:.1f} | {row.tokens_per_second:,.0f} | {row.tflops:.3g} | "
        f"{row.tflops / peak_tflops:.1%} | {row.peak:.1f} | {row.planned:.1f} | {row.note} |"
        for row in rows
    ]
    return "\n".join(lines)


def run_cases(
    plan: RunPlan, machine: doctor.Diagnosis, options: argparse.Namespace, begin: float
) -> list[tuple[Case, Measured | str | None]]:
    """Every chosen case with what was measured, why it failed, or None where there was no time for it."""
    small, large = (stage.name for stage in plan.stages[:2])

    def row(case: Case) -> Measured | str | None:
        if time.monotonic() - begin > options.seconds:
            return None
        try:
            return measure(case, plan, machine, options, folder)
        except DistributedFailure as error:
            return str(error)

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        chosen = [
            case
            for case in cases(small, large, folder, bool(machine.here.transformer_engine))
            if not options.only or any(word in case.name for word in options.only)
        ]
        ahead = sum("--save" in case.words for case in chosen)  # the first, which another is grown from
        found = [row(case) for case in chosen[:ahead]]
        with ThreadPoolExecutor(len(chosen) if options.turn else 1) as pool:
            found += pool.map(row, chosen[ahead:])
    return list(zip(chosen, found, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="progressive-8b", help="its first two stages are measured")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--only", action="append", metavar="WORD", help="cases whose name holds it; again for more")
    parser.add_argument("--turn", type=Path, metavar="FILE", help="start the cases at once; FILE is made")
    parser.add_argument("--seconds", type=float, default=240.0, help="begin no further case after so many")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU in bf16, for the MFU (an H100)")
    parser.add_argument("--folder", type=Path, help="for the checkpoint that is grown; a temporary one by default")
    parser.add_argument("--json", action="store_true", help="one JSON document instead")
    options = parser.parse_args(argv)
    begin, machine = time.monotonic(), doctor.diagnose()
    plan = plan_run(recipes.load(options.recipe), 1)
    found = run_cases(plan, machine, options, begin)
    rows = [row for _, row in found if isinstance(row, Measured)]
    left_out = [case.name for case, row in found if row is None]
    failed = {case.name: row for case, row in found if isinstance(row, str)}
    where = f"{machine.here.gpu or 'host'}, installation {machine.installation}"
    if options.json:
        shown = {"rows": [asdict(row) for row in rows], "left_out": left_out, "failed": failed}
        print(json.dumps({"machine": machine.to_json(), **shown}))
    else:
        print(f"{where}\n\n{table(rows, options.peak_tflops)}")
        print(*(f"left out: {name}" for name in left_out), sep="\n", end="")
        print(*(f"failed: {name}: {what}" for name, what in failed.items()), sep="\n", end="")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
