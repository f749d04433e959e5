"""Where a benchmark's questions come from: the hub, or a folder of JSONL files.

DIR/TASK.jsonl        the split that lm-eval scores, one question a line, in the columns of the hub's data set
DIR/mmlu_PART.jsonl   one file for each of MMLU's 57 subjects

lm-eval's packaged definitions are used as they are, through YAML's `include`; a folder replaces only their source.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from megatron_growth.errors import DataError, UnsupportedError, UserError
from megatron_growth.evaluation.benchmarks import Benchmark, Split
from megatron_growth.evaluation.documents import check_columns, records
from megatron_growth.evaluation.extra import need
from megatron_growth.records.storage import sha256_of

_SPLITS: tuple[Split, ...] = ("test", "validation")


def packaged(benchmark: Benchmark, task: str) -> Path:
    """lm-eval's own YAML file of a task.

    Raises:
        UnsupportedError: lm-eval is not installed, or has no such file.
    """
    path = Path(str(need("lm_eval").__file__)).parent / "tasks" / benchmark.definition.format(task)
    if not path.is_file():
        raise UnsupportedError(
            f"this lm-eval has no definition of {task}", where=str(path), fix="pip install 'lm-eval==0.4.13'"
        )
    return path


def file_of(data: Path, task: str) -> Path:
    """The file in a folder that holds a task's questions."""
    return data / f"{task}.jsonl"


def check(benchmark: Benchmark, data: Path) -> None:
    """Refuse a folder that lacks a file or a column, before any model is loaded.

    Raises:
        UserError: files are missing; says how to get them.
        DataError: a file is not JSONL, is empty, or lacks columns (with those found and wanted).
    """
    missing = [task for task in benchmark.tasks if not file_of(data, task).is_file()]
    if missing:
        raise UserError(
            f"there are no questions of {benchmark.name}: {file_of(data, missing[0]).name} is missing"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
            where=str(data),
            fix=fetch_advice(benchmark.name, data),
        )
    for task in benchmark.tasks:
        path = file_of(data, task)
        count = 0
        for count, entry in enumerate(records(path), 1):
            fix = "write the file in the columns of the hub's data set, as `evaluate fetch` does"
            check_columns(entry, benchmark.columns, f"{path}, question {count}", fix)
        if not count:
            raise DataError("the file holds no questions", where=str(path), fix=fetch_advice(benchmark.name, data))


def fetch_advice(names: str, data: Path | None) -> str:
    """How to get questions, in one sentence."""
    folder = data or Path("DIR")
    return (
        f"on a machine with a network: megatron-growth evaluate fetch --tasks {names} --data-dir {folder}; "
        f"then give --data-dir {folder} here"
    )


def write_definitions(benchmark: Benchmark, data: Path | None, folder: Path) -> None:
    """A YAML file for each task of a benchmark into an empty folder, for lm-eval's `TaskManager(include_path=...)`."""
    for task in benchmark.tasks:
        document = definition(benchmark, task, data, folder / "cache")
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")


def definition(benchmark: Benchmark, task: str, data: Path | None, cache: Path) -> dict[str, Any]:
    """A definition that includes the packaged one, its source overridden where there is a folder."""
    document: dict[str, Any] = {"include": str(packaged(benchmark, task)), "task": task}
    if data is None:
        return document
    source = {"data_files": {benchmark.split: str(file_of(data, task).absolute())}, "cache_dir": str(cache)}
    unused = [f"{split}_split" for split in _SPLITS if split != benchmark.split]
    return document | {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": source,
        f"{benchmark.split}_split": benchmark.split,
        **dict.fromkeys(["training_split", "fewshot_split", *unused]),
    }


def source_of(benchmark: Benchmark, task: str, data: Path | None) -> str:
    """What identifies the questions: the file's hash, or the data set's name on the hub."""
    if data is not None:
        return sha256_of(file_of(data, task))
    return json.dumps(hub_address(benchmark, task))


def hub_address(benchmark: Benchmark, task: str) -> tuple[str, str | None]:
    """Data set and configuration on the hub, as lm-eval's definition names them."""
    loader = need("lm_eval.tasks._yaml_loader")
    found = loader.load_yaml(packaged(benchmark, task), resolve_func=False)
    return str(found["dataset_path"]), found.get("dataset_name")
