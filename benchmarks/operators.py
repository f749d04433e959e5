"""Which width operator to take: one nano checkpoint grown by each, trained through Megatron with the same budget.

    python benchmarks/operators.py --work DIR [--case four-thirds|double] [--seeds 0 1 2] [--lrs 10e-3 5e-3]
                                   [--scratch-lrs 20e-3] [--jobs 1] [--table FILE] [--plot FILE]
    python benchmarks/operators.py --redraw TABLE --plot FILE                 (the picture of a table that it wrote)

A source is trained from scratch on 2 tokens per parameter.  Each operator grows it, and the grown model trains for the
rest of its own budget of 2 tokens per parameter; depth is `stack`, one new layer.  `four-thirds` is the last stage of
`nano-progressive` (hidden 48 to 64).  `double` (hidden 32 to 64) has a whole ratio, which `hypercloning` needs, and
constant query groups, which `aki-pro` is for.  Beside them stand models from scratch: `scratch/whole` has the whole
budget, `scratch/matched` cuts it into as many steps as source and grown model take together; `--scratch-lrs` gives
them further learning rates, to bracket the best one.

Every run is one process and is kept in DIR: the same command goes on where it was.  Seeds change the data order, the
operator's draws and the model's init.  The source is the same for all and has a data order of its own, so that no grown
run reads the source's samples again in the source's order.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from measuring import SCRIPT

from megatron_growth.planner.inventory import take_inventory
from megatron_growth.shape import ModelShape

SEQUENCE, BATCH, EVALUATIONS = 128, 16, 24
SOURCE_LR, SOURCE_SEED = 10e-3, 1000
VOCAB, TOKENS_PER_PARAMETER = 1024, 2


def parameters(shape: ModelShape) -> int:
    """Matrix weights of the layers and the output layer, as the nano family is named."""
    return sum(p.size for p in take_inventory(shape).parameters if p.kind in ("linear", "output"))


def budget(shape: ModelShape) -> float:
    """FLOPs of training on 2 tokens per parameter, 6 x parameters x tokens."""
    return 6 * parameters(shape) * TOKENS_PER_PARAMETER * parameters(shape)


def steps(flops: float, shape: ModelShape) -> int:
    """Steps of BATCH sequences that cost `flops`."""
    return round(flops / (6 * parameters(shape) * SEQUENCE * BATCH))


@dataclass(frozen=True)
class Case:
    """One source, one target, and the width operators between them."""

    small: ModelShape
    large: ModelShape
    operators: tuple[str, ...]

    @property
    def source_steps(self) -> int:
        """Steps of the source."""
        return steps(budget(self.small), self.small)

    @property
    def grown_steps(self) -> int:
        """Steps of a grown model: what the source left of the target's budget."""
        return steps(budget(self.large) - budget(self.small), self.large)

    @property
    def scratch_steps(self) -> int:
        """Steps of a model from scratch."""
        return steps(budget(self.large), self.large)

    @property
    def chain_steps(self) -> int:
        """Steps of source and grown model together."""
        return self.source_steps + self.grown_steps

    @property
    def matched_batch(self) -> int:
        """Sequences a step with which the whole budget takes `chain_steps`."""
        return round(BATCH * self.scratch_steps / self.chain_steps)


def nano(hidden: int, layers: int, query_groups: int = 0) -> ModelShape:
    """A model of the nano family: heads of 8, FFN 3.5 x hidden."""
    return ModelShape(hidden, hidden * 7 // 2, layers, hidden // 8, VOCAB, query_groups=query_groups)


CASES = {
    "four-thirds": Case(
        nano(48, 7),
        nano(64, 8),
        (
            "fpi",
            "aki",
            "exact-aki",
            "zero-pad",
            "random",
            "lemon",
            "aki:residual=next-layer",
            "residual=duplicate,units=next-layer,noise=0.5",
        ),
    ),
    "double": Case(
        nano(32, 7, query_groups=2),
        nano(64, 8, query_groups=2),
        ("fpi", "aki-pro", "exact-aki", "zero-pad", "random", "lemon", "hypercloning", "hypercloning:noise=0.5"),
    ),
}


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: its folder.
        width: the operator, "" for a model from scratch.
    """

    name: str
    case: Case
    shape: ModelShape
    iterations: int
    lr: float
    seed: int
    width: str = ""
    batch: int = BATCH

    def command(self, work: Path, data: Sequence[str]) -> list[str]:
        """The command line of this run."""
        folder = work / self.name
        options = {
            "num-layers": self.shape.layers,
            "hidden-size": self.shape.hidden,
            "ffn-hidden-size": self.shape.ffn,
            "num-attention-heads": self.shape.heads,
            "micro-batch-size": self.batch,
            "global-batch-size": self.batch,
            "seq-length": SEQUENCE,
            "max-position-embeddings": SEQUENCE,
            "position-embedding-type": "rope",
            "normalization": "RMSNorm",
            "init-method-std": 0.06,
            "hidden-dropout": 0,
            "attention-dropout": 0,
            "train-iters": self.iterations,
            "lr": self.lr,
            "min-lr": self.lr / 10,
            "lr-decay-style": "cosine",
            "lr-warmup-iters": min(50, self.iterations // 10),
            "adam-beta2": 0.95,
            "weight-decay": 0.1,
            "clip-grad": 1.0,
            "seed": 1234 + self.seed,
            "eval-iters": EVALUATIONS * BATCH // self.batch,
            "eval-interval": 100000,
            "log-interval": 50,
            "num-workers": 0,
            "save": folder / "checkpoint",
            "save-interval": 100000,
            "ckpt-format": "torch_dist",
            "data-cache-path": work / "cache",
            "growth-metrics": folder / "metrics.jsonl",
        }
        if self.shape.query_groups != self.shape.heads:
            options["num-query-groups"] = self.shape.query_groups
        if self.width:
            options |= {"growth-from": work / "source" / "checkpoint", "growth-width": self.width}
            options |= {"growth-depth": "stack", "growth-seed": self.seed, "norm-epsilon": epsilon(self)}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        switches = ["--swiglu", "--disable-bias-linear", "--untie-embeddings-and-output-weights", "--no-save-optim"]
        switches += ["--group-query-attention"] if "num-query-groups" in options else []
        return [
            *(sys.executable, "-m", "megatron_growth.backend.cpu", str(SCRIPT)),
            *(*words, *switches, *data),
            *("--growth-layer-spec", "local", "--growth-evaluate-at-start"),
        ]


def epsilon(run: Run) -> float:
    """Norm epsilon of a grown run: the source's, rescaled where the operator pads."""
    from megatron_growth.operators import build_map, get

    growth = build_map(run.case.small, run.shape, get("width", run.width), get("depth", "stack"))
    return growth.norm_epsilon(1e-5)


def planned(case: Case, seeds: Sequence[int], lrs: Sequence[float], scratch_lrs: Sequence[float]) -> list[Run]:
    """All runs after the source, in the order in which they are worth having."""
    runs = [Run(f"same/seed-{seed}", case, case.small, 1, 1e-9, seed, "fpi") for seed in seeds]
    for lr in [*lrs, *scratch_lrs]:
        tails = {seed: f"lr-{lr:g}/seed-{seed}" for seed in seeds}
        if lr in lrs:
            for (seed, tail), width in itertools.product(tails.items(), case.operators):
                runs.append(Run(f"grown/{width}/{tail}", case, case.large, case.grown_steps, lr, seed, width))
        for seed, tail in tails.items():
            runs.append(Run(f"scratch/whole/{tail}", case, case.large, case.scratch_steps, lr, seed))
            matched = Run(f"scratch/matched/{tail}", case, case.large, case.chain_steps, lr, seed)
            runs.append(replace(matched, batch=case.matched_batch))
    return runs


# ------------------------------------------------------------------------------------------------------------- running


def prepare(work: Path) -> list[str]:
    """The corpus as Megatron's indexed dataset; its flags."""
    from megatron_growth.data.manifest import megatron_data_flags, megatron_tokenizer_flags
    from megatron_growth.data.prepare import prepare
    from megatron_growth.data.request import PrepareRequest
    from megatron_growth.data.tokenizers import TokenizerSpec

    request = PrepareRequest(("stdlib",), TokenizerSpec("sentencepiece", train_vocab_size=1024), valid_fraction=0.02)
    manifest, _ = prepare(request, work / "data")
    return [*megatron_tokenizer_flags(manifest), *megatron_data_flags(work / "data", manifest)]


def execute(run: Run, work: Path, data: Sequence[str]) -> None:
    """Run to the end unless that was done before; a run that was cut off starts from scratch."""
    folder = work / run.name
    if (folder / "done").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(run.command(work, data), check=True, stdout=log, stderr=log, env=environment, timeout=1800)
    (folder / "done").touch()


def losses(folder: Path) -> dict[str, float]:
    """Validation losses of a run by moment: "start" and "final"."""
    from megatron_growth.records.metrics import records

    return {r["when"]: r["loss"] for r in records(folder / "metrics.jsonl") if r.get("event") == "validation"}


# ------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Row:
    """One line of the table; lists hold one value for each seed, None where a run is missing."""

    name: str
    lr: float
    jump: list[float]
    final: list[float]
    copies: tuple[int, int, int] | None = None
    rank: float = float("nan")


def collect(case: Case, work: Path, seeds: Sequence[int], lrs: Sequence[float]) -> list[Row]:
    """What the finished runs show."""
    rows = []
    for run_kind in [*(f"grown/{width}" for width in case.operators), "scratch/whole", "scratch/matched"]:
        for lr in lrs:
            folders = {seed: work / run_kind / f"lr-{lr:g}" / f"seed-{seed}" for seed in seeds}
            folders = {seed: folder for seed, folder in folders.items() if (folder / "done").exists()}
            if not folders:
                continue
            found = {seed: losses(folder) for seed, folder in folders.items()}
            grown = run_kind.startswith("grown/")
            jump = [v["start"] - losses(work / f"same/seed-{s}")["start"] for s, v in found.items()] if grown else []
            copies, rank = (
                symmetry(next(iter(folders.values())) / "checkpoint", case.large) if grown else (None, float("nan"))
            )
            name = run_kind.removeprefix("grown/")
            rows.append(Row(name, lr, jump, [v["final"] for v in found.values()], copies, rank))
    return rows


def symmetry(checkpoint: Path, shape: ModelShape) -> tuple[tuple[int, int, int], float]:
    """(residual dimensions, heads, FFN units) that are copies of another, and the residual stream's effective rank."""
    from megatron_growth.checkpoint.copies import copies_in
    from megatron_growth.checkpoint.source import Source

    source = Source(checkpoint)
    counts = copies_in(source, shape).copies
    source.close()
    return (counts.residual, counts.heads, counts.units), counts.effective_rank


def markdown(rows: Sequence[Row]) -> str:
    """The table of the documentation, best final loss first."""
    lines = [
        "| operator | learning rate | jump at growth | final loss, mean | per seed | copies left: residual / heads / "
        "FFN units | effective rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: statistics.mean(r.final)):
        jump = f"{statistics.mean(row.jump):+.3f}" if row.jump else "–"
        copies = " / ".join(map(str, row.copies)) if row.copies else "–"
        rank = f"{row.rank:.1f}" if row.copies else "–"
        per_seed = " / ".join(f"{value:.3f}" for value in row.final)
        mean = statistics.mean(row.final)
        lines.append(f"| `{row.name}` | {row.lr:g} | {jump} | {mean:.3f} | {per_seed} | {copies} | {rank} |")
    return "\n".join(lines) + "\n"


def read_table(path: Path) -> list[Row]:
    """The rows of a table that `markdown` wrote, to the digits that it has."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines()[2:]:
        name, lr, jump, _, per_seed, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        jumps = [float(jump)] if jump != "–" else []
        rows.append(Row(name.strip("`"), float(lr), jumps, [float(loss) for loss in per_seed.split("/")]))
    return rows


def plot(rows: Sequence[Row], path: Path) -> None:
    """Left: what growth costs at once.  Right: losses at the end, a mark a seed; each rate has a line of its own."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from megatron_growth.report.plots import MARKS
    from megatron_growth.strokes import COLOURS

    names = sorted({row.name for row in rows}, key=lambda n: min(statistics.mean(r.final) for r in rows if r.name == n))
    rates = sorted({row.lr for row in rows}, reverse=True)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 5.4), layout="constrained", width_ratios=(1, 2), sharey=True
    )
    for row in rows:
        place = rates.index(row.lr)
        style = {"color": COLOURS[place], "marker": MARKS[place], "ls": "", "ms": 6, "mec": "white"}
        y = names.index(row.name) + 0.22 * (place - (len(rates) - 1) / 2)
        left.plot(row.jump, [y] * len(row.jump), **style)
        right.plot(row.final, [y] * len(row.final), **style)
        right.plot(statistics.mean(row.final), y, "|", color=COLOURS[place], ms=13, mew=2, zorder=0)
    for place, lr in enumerate(rates):
        right.plot([], [], MARKS[place], color=COLOURS[place], mec="white", label=f"peak learning rate {lr:g}")
    right.plot([], [], "|", color="#444444", ms=13, mew=2, label="mean of the seeds")
    right.legend(fontsize=8)
    left.set_yticks(range(len(names)), [name.replace(",", ",\n") for name in names])
    left.invert_yaxis()
    left.set_xlim(left=0)
    left.set_xlabel("jump of the validation loss at growth\n(nats per token)")
    right.set_xlabel("validation loss at the end, one mark a seed\n(nats per token)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of the runs")
    parser.add_argument("--case", choices=CASES, default="four-thirds", help="source and target")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of data order, operators and init")
    parser.add_argument("--lrs", type=float, nargs="+", default=[10e-3, 5e-3], help="peak learning rates")
    parser.add_argument("--scratch-lrs", type=float, nargs="*", default=[20e-3], help="of models from scratch only")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one core each")
    parser.add_argument("--collect", action="store_true", help="train nothing, show the finished runs")
    parser.add_argument("--redraw", type=Path, metavar="TABLE", help="run nothing; draw --plot from this table")
    parser.add_argument("--table", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--plot", type=Path, help="write the picture here, as PNG")
    args = parser.parse_args()
    if args.redraw:
        plot(read_table(args.redraw), args.plot or parser.error("--redraw draws into --plot FILE"))
        return
    if args.work is None:
        parser.error("name the folder of the runs: --work DIR")
    case, lrs = CASES[args.case], [*args.lrs, *args.scratch_lrs]
    if not args.collect:
        data = prepare(args.work)
        execute(Run("source", case, case.small, case.source_steps, SOURCE_LR, SOURCE_SEED), args.work, data)
        with ThreadPoolExecutor(args.jobs) as pool:
            runs = planned(case, args.seeds, args.lrs, args.scratch_lrs)
            pending = {pool.submit(execute, run, args.work, data): run for run in runs}
            for done in as_completed(pending):
                if done.exception():
                    pool.shutdown(wait=False, cancel_futures=True)
                done.result()
                print(pending[done].name, json.dumps(losses(args.work / pending[done].name)), flush=True)
    rows = collect(case, args.work, args.seeds, lrs)
    print(markdown(rows))
    if args.table:
        args.table.write_text(markdown(rows), encoding="utf-8")
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
