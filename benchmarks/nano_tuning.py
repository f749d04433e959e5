"""What benchmarks of post-training share: questions made of docstrings, preferences between answers, SFT and DPO."""

from __future__ import annotations

import ast
import json
import random
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import measuring
import yaml

from megatron_growth.posttrain.presets import find
from megatron_growth.posttrain.request import Request
from megatron_growth.posttrain.run import posttrain


def questions() -> Iterator[dict[str, str]]:
    """One for every public function and class of the standard library with a docstring: its first sentence."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(parts) or file.name.startswith("_"):
            continue
        try:
            tree = ast.parse(file.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        yield from _questions_of(tree, ".".join(parts))


def _questions_of(tree: ast.AST, module: str) -> Iterator[dict[str, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        sentence = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split()).split(". ")[0]
        if 20 <= len(sentence) <= 160:
            what = "is" if isinstance(node, ast.ClassDef) else "does"
            end = "" if what == "is" else " do"
            yield {"instruction": f"What {what} {module}.{node.name}{end}?", "output": sentence}


def preferences(seed: int) -> Iterator[dict[str, str]]:
    """Each question with its own answer, preferred to the same words in another order.

    Not to another question's answer: every answer would be chosen once and rejected once, and what a small model
    remembers of the one is wrong for the other (held-out pairs were judged right in a quarter of the cases).
    """
    draw = random.Random(seed)
    for row in questions():
        words = row["output"].split()
        mixed = " ".join(draw.sample(words, len(words)))
        if mixed != row["output"]:
            yield {"prompt": row["instruction"], "chosen": row["output"], "rejected": mixed}


def train(recipe: dict[str, Any], run: Path, file: Path, *words: str) -> Path:
    """The run of a recipe by `megatron-growth train`, finished; its output goes to a log beside the file."""
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    measuring.train(file, file.with_suffix(".log"), "--run", str(run), *words)
    return run


def write_jsonl(file: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write a file of examples unless it exists."""
    if not file.exists():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sft(model: Path, target: Path, data: Path, rates: Sequence[float], seed: int) -> dict[str, Any]:
    """A sweep of SFT with the nano preset; a finished one is only read."""
    return _tune("sft", model, target, data, rates, seed)


def dpo(model: Path, target: Path, data: Path, rate: float, seed: int) -> dict[str, Any]:
    """DPO with the nano preset at one rate; a finished one is only read."""
    return _tune("dpo", model, target, data, (rate,), seed)


def _tune(kind: Any, model: Path, target: Path, data: Path, rates: Sequence[float], seed: int) -> dict[str, Any]:
    preset = find(f"nano-{kind}", kind)
    request = Request(
        kind=kind,
        preset=preset.name,
        model=str(model),
        data=str(data),
        rates=tuple(rates),
        epochs=preset.epochs,
        batch=32,
        warmup=preset.warmup,
        max_length=128,
        betas=preset.betas,
        weight_decay=preset.weight_decay,
        clip=preset.clip,
        beta=preset.beta,
        valid=0.1,
        micro_batch=32,
        dtype="float32",
        seed=seed,
        saves=1,
    )
    return posttrain(request, target)
