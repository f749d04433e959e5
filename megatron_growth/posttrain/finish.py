"""The end of a run: the best of its trainings becomes the model, with a record of its origin beside it."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_growth import __version__
from megatron_growth.backend.installation import version_of
from megatron_growth.data.tokenizers.huggingface import opened_by
from megatron_growth.errors import GrowthError
from megatron_growth.exchange.folder import MANIFEST, is_huggingface
from megatron_growth.posttrain import inputs, presets
from megatron_growth.posttrain.examples import RECORD
from megatron_growth.posttrain.folder import Result, Work
from megatron_growth.posttrain.request import FILE_NAME as REQUEST
from megatron_growth.posttrain.request import Request
from megatron_growth.records.human import plural
from megatron_growth.records.storage import (
    foreign_refusals,
    made_of,
    reading_record,
    sha256_of,
    storage_errors,
    write_json,
    write_whole,
)

FILE_NAME = "posttrain.json"
METRICS = "metrics.jsonl"
_GATHERING = "gathering.json"
_SCRATCH = (
    "base",
    "tokenizer",
    "data",
    "cache",
    "rates",
    "failures",
    _GATHERING,
    REQUEST,
    inputs.FILE_NAME,
    "processes.lock",
)
_PACKAGES = ("trl", "transformers", "torch", "datasets", "accelerate", "deepspeed")


def results(work: Work, request: Request) -> list[Result]:
    """The results of the rates that are done, in order."""
    found = (work.rate(rate).result for rate in request.rates)
    return [result for result in found if result is not None]


def best(found: list[Result], by: str) -> Result | None:
    """The training to keep by `valid_loss` (lower is better) or `valid_accuracy`; None when all of them diverged."""
    ended = [result for result in found if result.diverged is None]
    if len(found) == 1 or not ended:
        return ended[0] if ended else None

    def badness(result: Result) -> float:
        value = result.valid_loss if by == "valid_loss" else result.valid_accuracy
        return math.inf if value is None else (value if by == "valid_loss" else -value)

    return min(ended, key=badness)


def keep_best(work: Work, request: Request) -> None:
    """Remove the checkpoints of finished trainings, and the models of all but the best so far."""
    found = results(work, request)
    kept = best(found, request.best_by)
    with storage_errors(work.path):
        for result in found:
            folder = work.rate(result.rate)
            gone = [folder.checkpoints, *([] if result == kept else [folder.model])]
            for path in gone:
                shutil.rmtree(path, ignore_errors=not path.exists())


def gather(work: Work, request: Request, processes: int) -> None:
    """Move the best model to the top of the folder and write posttrain.json there, last.

    A kill while files move leaves the model in two places.  So everything that is made from the model is written before
    the first file moves, and a second call only moves the rest.

    Raises:
        GrowthError: every training diverged.
        StorageError: the file system refused.
    """
    pending = work.path / _GATHERING
    with foreign_refusals(work.path):
        if not pending.is_file():
            write_json(pending, _described(work, request, processes))
        plan = json.loads(pending.read_text("utf-8"))
        for path in sorted((work.path / plan["model"]).iterdir()):
            path.replace(work.path / path.name)
        write_json(work.path / FILE_NAME, plan["document"])


def _described(work: Work, request: Request, processes: int) -> dict[str, Any]:
    """Write everything but the model and posttrain.json; returns the model's folder and that file's content."""
    found = results(work, request)
    kept = best(found, request.best_by)
    if kept is None:
        steps = ", ".join(f"{r.rate:g} at step {r.diverged}" for r in found)
        raise GrowthError(
            f"the loss stopped being finite: {steps}",
            where=str(work.path),
            fix="give a smaller --lr, and another --output",
        )
    folder = work.rate(kept.rate)
    base = work.base if is_huggingface(work.base) else Path(request.model)
    _as_stored(folder.model, base)
    document = provenance(work, request, base, found, kept, processes)
    shutil.copyfile(folder.metrics, work.path / METRICS)
    if len(found) > 1:
        from megatron_growth.posttrain.sweep import write_sweep

        write_sweep(work, request, found, kept)
    (folder.model / "README.md").unlink(missing_ok=True)  # written by the trainer
    write_whole(work.path / "README.md", _card(document, opened_by(folder.model)))
    return {"model": str(folder.model.relative_to(work.path)), "document": document}


def clean(work: Work) -> dict[str, Any]:
    """Remove what only the run needed; returns posttrain.json."""
    with storage_errors(work.path):
        for name in _SCRATCH:
            path = work.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    document: dict[str, Any] = json.loads((work.path / FILE_NAME).read_text("utf-8"))
    return document


def _as_stored(model: Path, base: Path) -> None:
    """Store the weights in the base model's type; training saves them in float32."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    stored = json.loads((base / "config.json").read_text("utf-8"))
    wanted = str(stored.get("dtype") or stored.get("torch_dtype") or "float32")  # the second before transformers 5
    dtype = getattr(torch, wanted)
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  (not a mapping)
        if any(tensor.dtype != dtype for tensor in tensors.values()):
            temporary = file.with_suffix(".tmp")
            save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, temporary, {"format": "pt"})
            temporary.replace(file)
        shutil.copymode(model / "config.json", file)  # safetensors makes files that only their owner can read
    config = json.loads((model / "config.json").read_text("utf-8"))
    write_json(model / "config.json", config | {"dtype": wanted})


def provenance(
    work: Work, request: Request, base: Path, found: list[Result], kept: Result, processes: int
) -> dict[str, Any]:
    """What posttrain.json holds.

    Raises:
        RunError: the model, its tokenizer or the chat template changed while it was tuned.
    """
    known = recorded_inputs(work)
    inputs.check_unchanged(known, request, work.path, model=base != work.base)
    weights = {file.name: known.get(f"model: {file.name}") or sha256_of(file) for file in base.glob("*.safetensors")}
    return {
        "kind": request.kind,
        "preset": request.preset,
        "request": request.to_json(),
        "not_in_the_paper": dict(presets.PRESETS[request.preset].open),
        "model": {
            "path": str(Path(request.model).resolve()),
            "weights_sha256": dict(sorted(weights.items())),
            "export": _json(base / MANIFEST),
            "posttrain": _json(base / FILE_NAME),
            "inputs": known,
        },
        "data": _json(work.data / RECORD),
        "processes": processes,
        "result": asdict(kept),
        "sweep": [asdict(result) for result in found] if len(found) > 1 else [],
        "versions": {"megatron_growth": __version__, **{name: version_of(name) or None for name in _PACKAGES}},
    }


def recorded_inputs(work: Work) -> dict[str, str]:
    """SHA-256 of what training began with."""
    record = work.path / inputs.FILE_NAME
    with reading_record(record, "the record of the model that training began with", f"remove {work.path}"):
        return made_of(dict[str, str], json.loads(record.read_text("utf-8")))


def _json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def _card(document: dict[str, Any], tokenizer: str) -> str:
    """README.md of the model, from its posttrain.json and the class that opens its tokenizer."""
    from megatron_growth.exchange.card import card

    kind, request, result, data = document["kind"], document["request"], document["result"], document["data"]
    facts = {
        "preset": document["preset"],
        "data": f"{data['source']}, {plural(data['train'], 'example')}, {data['valid']:,} held out",
        "learning rate": f"{result['rate']:g}",
        "batch x steps": f"{request['batch']} x {result['steps']}",
        "tokens": f"{result['tokens']:,}",
        "beta": request["beta"] or None,
        "held-out loss before": result["valid_loss_before"],
        "held-out loss after": result["valid_loss"],
        "seed": request["seed"],
    }
    what = "Supervised fine-tuning" if kind == "sft" else "Direct preference optimisation"
    how = f"with megatron_growth and TRL {document['versions']['trl']}; every setting is in `posttrain.json`."
    name, tags = f"{Path(request['model']).name}-{kind}", f"megatron_growth, trl, {kind}"
    return card(name, tags, f"{what} of {request['model']} {how}", facts, tokenizer)
