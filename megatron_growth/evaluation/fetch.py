"""Fill a folder of questions on a machine with a network; `evaluate tasks --data-dir` reads it.

For every task, the split that lm-eval scores is fetched from the data set that lm-eval's definition names, and written
as one JSON object a line in the hub's own columns.  Existing files stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_growth.errors import DataError, first_line
from megatron_growth.evaluation.benchmarks import Benchmark
from megatron_growth.evaluation.extra import need
from megatron_growth.evaluation.task_data import file_of, hub_address
from megatron_growth.records.storage import storage_errors, write_whole


@dataclass(frozen=True)
class Fetched:
    """The file of one task of lm-eval, and how many questions were written; 0 when it existed already."""

    task: str
    path: str
    questions: int


def fetch(benchmarks: Sequence[Benchmark], data: Path) -> Iterator[Fetched]:
    """Write the questions of every task that has no file yet into a folder, one after the other.

    Raises:
        DataError: the hub cannot be reached, or has no such data.
        StorageError: the file system refused.
    """
    for benchmark in benchmarks:
        for task in benchmark.tasks:
            path = file_of(data, task)
            yield Fetched(task, str(path), 0 if path.is_file() else _write(benchmark, task, path))


def _write(benchmark: Benchmark, task: str, path: Path) -> int:
    name, configuration = hub_address(benchmark, task)
    datasets = need("datasets")
    try:
        rows = list(datasets.load_dataset(name, configuration, split=benchmark.split))
    except Exception as error:  # the hub's clients raise types of several packages
        raise DataError(
            f"the questions of {task} cannot be fetched: {first_line(error)}",
            where=f"{name}{f', {configuration}' if configuration else ''}, {benchmark.split}",
            fix="run this command on a machine that reaches huggingface.co, or set HF_ENDPOINT to a mirror",
        ) from error
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f"{line}\n" for line in lines))
    return len(rows)
