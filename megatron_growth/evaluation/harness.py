"""Benchmarks of a model by lm-eval, one task at a time, each result on disk before the next begins."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

from megatron_growth.data.tokenizers.huggingface import open_folder
from megatron_growth.errors import DataError, GrowthError, first_line
from megatron_growth.evaluation import task_data
from megatron_growth.evaluation.benchmarks import Benchmark
from megatron_growth.evaluation.extra import need
from megatron_growth.evaluation.huggingface import HuggingFaceModel
from megatron_growth.evaluation.models import RESULTS, fingerprint
from megatron_growth.records.storage import write_json

_STRANGE_LABEL = "was not in within range"


@dataclass(frozen=True)
class Settings:
    """What a result depends on besides model and questions.

    Attributes:
        dtype: the one that the model computes in.
        limit: how many of each task's first questions are asked; all when None.
        length: most tokens of a question with its answer.
    """

    dtype: str
    limit: int | None
    length: int


@dataclass(frozen=True)
class Score:
    """One benchmark of one model.

    Attributes:
        metric, value: the figure that is reported.
        questions: how many entered it.
        metrics: every figure that lm-eval computed, standard errors included.
        cached: whether it was on disk already.
    """

    metric: str
    value: float
    questions: int
    metrics: dict[str, float]
    cached: bool = False


class Harness:
    """Evaluates one Hugging Face folder; the model is loaded for the first result that is not on disk yet.

    Args:
        folder: of the model.
        cache: folder of results.
        data: folder of questions; None for the hub.
        batch: questions at a time.
        device: cpu, cuda ...
        quiet: hide lm-eval's own progress.
    """

    def __init__(
        self, folder: Path, cache: Path, *, data: Path | None, settings: Settings, batch: int, device: str, quiet: bool
    ) -> None:
        self.folder, self.data, self.settings = folder, data, settings
        self._batch, self._device, self._quiet = batch, device, quiet
        self.hash = fingerprint(folder)
        self._results = cache / RESULTS / self.hash[:16]

    def score(self, benchmark: Benchmark, told: Callable[[str], None] = lambda _: None) -> Score:
        """The result of a benchmark; parts that are on disk are not computed again.

        Args:
            told: called with a line after every task.

        Raises:
            DataError: the questions cannot be read or fetched, or lm-eval fails on them.
        """
        entries = [self._entry(benchmark, task, told) for task in benchmark.tasks]
        questions = [int(entry["questions"]) for entry in entries]
        metrics = entries[0]["metrics"] if len(entries) == 1 else _pooled(benchmark.metric, entries)
        cached = all(entry["cached"] for entry in entries)
        return Score(benchmark.metric, metrics[benchmark.metric], sum(questions), metrics, cached)

    def _entry(self, benchmark: Benchmark, task: str, told: Callable[[str], None]) -> dict[str, Any]:
        """One task's record, from disk or computed."""
        path = self._path(benchmark, task)
        with contextlib.suppress(OSError, ValueError, KeyError):
            known = json.loads(path.read_text("utf-8"))
            numbers = {name: math.nan if value is None else value for name, value in known["metrics"].items()}
            return known | {"metrics": numbers, "cached": True}
        begin = time.perf_counter()
        entry = self._compute(benchmark, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, entry)
        value, seconds = entry["metrics"][benchmark.metric], time.perf_counter() - begin
        told(f"{task}: {benchmark.metric} {value:.4g} of {entry['questions']} questions, {seconds:.0f} s")
        return entry | {"cached": False}

    def _path(self, benchmark: Benchmark, task: str) -> Path:
        asked = {
            "source": task_data.source_of(benchmark, task, self.data),
            "lm_eval": need("lm_eval").__version__,
            **asdict(self.settings),
        }
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return self._results / f"{task}-{key[:12]}.json"

    def _compute(self, benchmark: Benchmark, task: str) -> dict[str, Any]:
        evaluator = need("lm_eval.evaluator")
        with tempfile.TemporaryDirectory(prefix="tasks-") as name, _calm(self._quiet) as warnings:
            loaded = self._loaded(benchmark, task, Path(name))
            try:
                # Not `simple_evaluate`, which reads all 14,000 definitions and asks the system for its hardware.
                found = evaluator.evaluate(
                    self._model, loaded, limit=self.settings.limit, bootstrap_iters=0, log_samples=False
                )
            except GrowthError:
                raise
            except Exception as error:  # lm-eval passes on whatever a definition meets in the questions
                raise DataError(
                    f"lm-eval cannot evaluate {task}: {type(error).__name__}: {first_line(error)}",
                    where=str(self.data or "the hub"),
                    fix="look at its questions: a value is missing or of another kind; --debug shows where",
                ) from error
        # Where the right answer is not among a question's choices, lm-eval logs that and counts a wrong answer.
        if strange := [line for entry in warnings if _STRANGE_LABEL in (line := entry.getMessage())]:
            raise DataError(
                f"{task}: a question's right answer is not among its choices ({first_line(ValueError(strange[0]))})",
                where=str(self.data or "the hub"),
                fix="write the questions in the columns and values of the hub's data set, as `evaluate fetch` does",
            )
        metrics = {
            key.removesuffix(",none"): float(value)
            for key, value in found["results"][task].items()
            if isinstance(value, int | float) and key.endswith(",none")
        }
        return {"task": task, "metrics": metrics, "questions": int(found["n-samples"][task]["effective"])}

    def _loaded(self, benchmark: Benchmark, task: str, folder: Path) -> Any:
        """lm-eval's task with its questions, zero-shot."""
        task_data.write_definitions(benchmark, self.data, folder)
        manager = need("lm_eval.tasks").TaskManager(include_path=str(folder), include_defaults=False)
        try:
            loaded = manager.load([task])
        except Exception as error:  # the hub's clients raise types of several packages
            if self.data is not None:
                raise DataError(
                    f"the questions of {task} cannot be read: {first_line(error)}",
                    where=str(task_data.file_of(self.data, task)),
                    fix="write the file in the columns and values of the hub's data set, as `evaluate fetch` does",
                ) from error
            raise DataError(
                f"the questions of {task} cannot be fetched from the hub: {first_line(error)}",
                where=task_data.hub_address(benchmark, task)[0],
                fix=task_data.fetch_advice(benchmark.name, None),
            ) from error
        loaded["tasks"][task].set_config(key="num_fewshot", value=0)
        return loaded

    @cached_property
    def _model(self) -> Any:
        """lm-eval's wrapper of the model."""
        opened = HuggingFaceModel(self.folder, dtype=self.settings.dtype, device=self._device, batch=self._batch)
        return need("lm_eval.models.huggingface").HFLM(
            pretrained=opened.model,
            tokenizer=open_folder(self.folder),
            max_length=min(opened.length, self.settings.length),
            batch_size=self._batch,
            prefix_token_id=opened.start,
        )


@contextlib.contextmanager
def _calm(quiet: bool) -> Iterator[list[logging.LogRecord]]:
    """Keep lm-eval's progress off everything but a terminal, and collect the warnings that it logs; yields them."""
    log, handler = logging.getLogger("lm_eval"), BufferingHandler(sys.maxsize)
    handler.setLevel(logging.WARNING)
    with contextlib.ExitStack() as stack:
        if quiet or not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.callback(setattr, log, "propagate", log.propagate)
        stack.callback(log.removeHandler, handler)
        log.addHandler(handler)
        log.propagate = False
        yield handler.buffer


def _pooled(metric: str, entries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The metric of a group: its parts weighted by their questions."""
    questions = sum(entry["questions"] for entry in entries)
    return {metric: sum(entry["metrics"][metric] * entry["questions"] for entry in entries) / questions}
