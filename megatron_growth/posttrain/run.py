"""A post-training run from request to model: prepared, trained once for each rate, the best kept, written whole.

A killed run goes on with the same command: rates that are done are kept, and an unfinished one goes on from its last
whole checkpoint.  Nothing is overwritten; a target that holds the same run is the result.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_growth.checkpoint.paths import resolve
from megatron_growth.errors import CheckpointError, RunError, UserError
from megatron_growth.exchange import settled
from megatron_growth.exchange.folder import is_huggingface
from megatron_growth.posttrain import base_model, examples, extra, finish, inputs
from megatron_growth.posttrain.folder import RateFolder, Work
from megatron_growth.posttrain.line import Line
from megatron_growth.posttrain.request import FILE_NAME, Request
from megatron_growth.posttrain.training import Job, train
from megatron_growth.records import owned
from megatron_growth.records.metrics import Tail
from megatron_growth.records.storage import doubts_as_refusals, foreign_refusals, storage_errors, write_json
from megatron_growth.records.unfinished import LOCK, discard, publish, unfinished

PURPOSE = "an unfinished post-training"
WORKER = "megatron_growth.posttrain.worker"
Document = dict[str, Any]


def posttrain(
    request: Request,
    target: Path,
    *,
    processes: int = 1,
    quiet: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Document:
    """Tune a model with one process, or several under torchrun; returns what TARGET/posttrain.json holds.

    Args:
        quiet: show no progress line.
        say: called with a note for people.

    Raises:
        UserError: the model, its tokenizer, the data or the target do not fit; nothing is left behind.
        GrowthError: training failed; the same command goes on.
    """
    require(request)
    request.accumulation(processes)
    with unfinished(target, PURPOSE) as partial:
        if partial is None:
            return existing(target, request)
        work = Work(partial)
        if (partial / finish.FILE_NAME).is_file():  # killed while it was tidied up
            existing(partial, request)
        else:
            prepare(work, request, say)
            try:
                for number, rate in enumerate(request.rates, 1):
                    label = f"{request.kind} {number}/{len(request.rates)}" if len(request.rates) > 1 else request.kind
                    train_rate(work, rate, processes, Line(label, quiet=quiet))
            except UserError:
                if not any(work.path.glob("rates/*/metrics.jsonl")):  # nothing has been trained
                    discard(work.path, PURPOSE)
                raise
            finish.gather(work, request, processes)
        document = finish.clean(work)
        publish(partial, target, PURPOSE)
    return document


def require(request: Request) -> None:
    """Refuse a machine without the packages that a request needs."""
    extra.require("trl", "datasets", "accelerate", *(["deepspeed"] if request.zero else []))


def existing(target: Path, request: Request) -> Document:
    """The posttrain.json of a target that holds the result of this request.

    Raises:
        RunError: it holds something else.
        CheckpointError: its weights are gone or cut off.
    """
    try:
        with doubts_as_refusals(target / finish.FILE_NAME):
            document: Document = json.loads((target / finish.FILE_NAME).read_text("utf-8"))
        found = Request.from_json(document["request"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(
            "the target exists already, and is not a post-trained model",
            where=str(target),
            fix="nothing in it was touched: name another folder with --output",
        ) from None
    same_request(found, request, target)
    _same_checkpoint(document, request, target)
    if "inputs" in document["model"]:  # earlier releases kept no account of them
        inputs.check_unchanged(document["model"]["inputs"], request, target)
    known = (document.get("data") or {}).get("files") or {}
    if known:
        examples.check_unchanged(known, request.data, request.valid_data, target)
    from megatron_growth.exchange.safetensors_files import require_whole  # imports torch

    require_whole(target)
    return document


def _same_checkpoint(document: Document, request: Request, target: Path) -> None:
    """Refuse an earlier checkpoint's result as that of a later one: the request names only the folder of both.

    Raises:
        RunError: the checkpoint has been trained further since.
    """
    export = (document.get("model") or {}).get("export")
    if not isinstance(export, dict) or is_huggingface(Path(request.model)):
        return
    try:
        now = resolve(Path(request.model)).resolve().name
    except CheckpointError:  # the checkpoint is gone, but its model is here
        return
    if now != (then := Path(str(export.get("source"))).name):
        raise RunError(
            f"the target was tuned from {then}, and the checkpoint is now at {now}",
            where=str(target),
            fix=f"name another folder with --output, or that checkpoint: {Path(request.model) / then}",
        )


def prepare(work: Work, request: Request, say: Callable[[str], None] = lambda _: None) -> None:
    """Check all of the input before training; what an earlier command prepared stays.

    Raises:
        UserError: as `posttrain`; a folder in which nothing has been trained is removed.
        RunError: the folder was begun with another request, or the model has changed since.
    """
    file = work.path / FILE_NAME
    if file.is_file():
        same_request(Request.read(work.path), request, work.path)
    else:
        owned.empty(work.path, PURPOSE, keep=frozenset({LOCK}))
        with storage_errors(file):
            write_json(file, request.to_json())
    try:
        now = _settled(work, request)
        _same_inputs(work, now)
        base = base_model.base_model(Path(now.model), work.base, request.tokenizer)
        tokenizer = base_model.load_tokenizer_of(base, request.kind, request.chat_template, request.tokenizer)
        found = examples.prepare(
            request.data,
            request.kind,
            valid=request.valid,
            seed=request.seed,
            folder=work.data,
            valid_data=request.valid_data,
        )
        if len(request.rates) > 1 and not found.valid:
            raise UserError(
                "no examples are held out, so nothing can choose among the rates",
                where="--lr-sweep",
                fix="hold out a share with --valid-share 0.1, or give --valid-data",
            )
        with storage_errors(work.tokenizer):
            tokenizer.save_pretrained(str(work.tokenizer))
    except UserError:
        if not (work.path / "rates").exists():
            discard(work.path, PURPOSE)
        raise
    except PermissionError:  # of an input; its request would keep the next one, for another model, out of the folder
        if not any(path.exists() for path in (work.base, work.data, work.path / "rates")):
            discard(work.path, PURPOSE)
        raise
    say(examples.in_words(found))


def _settled(work: Work, request: Request) -> Request:
    """The request with the iteration that its model's folder means now, until that is exported: a stage that is
    training may move on after its files were written down.
    """
    with suppress(CheckpointError):  # what is missing is said later
        if is_huggingface(work.base):
            return request
        return replace(request, model=str(settled(Path(request.model))))
    return request


def _same_inputs(work: Work, request: Request) -> None:
    """Write down what training starts from, or refuse something else than was written down.

    Raises:
        RunError: the model, its tokenizer or the chat template has changed since an earlier command.
    """
    record = work.path / inputs.FILE_NAME
    # Until a checkpoint has been exported nothing has been made from it, and a stage that is training moves on.
    if not record.is_file() or not (is_huggingface(work.base) or is_huggingface(Path(request.model))):
        found = inputs.fingerprints(request)
        with storage_errors(record):
            write_json(record, found)
        return
    # Training goes on from what was exported, though the checkpoint may have moved on.
    exported = is_huggingface(work.base)
    inputs.check_unchanged(finish.recorded_inputs(work), request, work.path, model=not exported)


def same_request(found: Request, wanted: Request, where: Path) -> None:
    """Refuse a folder that belongs to another request.

    Raises:
        RunError: with the settings that differ.
    """
    if found.placed(missing=True) == wanted.placed(missing=True):
        return
    lines = difflib.unified_diff(
        found.text().splitlines(), wanted.text().splitlines(), f"{where} holds", "this command asks for", "", "", n=0
    )
    raise RunError(
        f"{where.name} belongs to another request:\n" + "\n".join(f"    {line}" for line in lines),
        where=str(where),
        fix="name another folder with --output, or give the command as it was",
    )


def job_of(work: Work, rate: float) -> Job:
    """One training in a prepared folder."""
    request = Request.read(work.path)
    return Job(request, work, work.base if is_huggingface(work.base) else Path(request.model), rate)


def train_rate(work: Work, rate: float, processes: int, show: Line) -> None:
    """Train with one rate unless that is done; of all finished ones, only the best keeps its model.

    Raises:
        GrowthError: training failed.
    """
    folder, request = work.rate(rate), Request.read(work.path)
    if folder.result is None:
        folder.path.mkdir(parents=True, exist_ok=True)
        if processes == 1 and not request.zero:
            with foreign_refusals(folder.path):
                train(job_of(work, rate), show)
        else:
            _processes(work, rate, processes, show)
    finish.keep_best(work, request)


def _processes(work: Work, rate: float, processes: int, show: Line) -> None:
    """Train with one rate under torchrun, on this machine."""
    from megatron_growth.run import failures
    from megatron_growth.run.lock import exclusive
    from megatron_growth.run.torchrun import run_processes, torchrun_of

    command = torchrun_of(processes, [str(work.path.absolute()), repr(rate)], WORKER)
    folder = work.rate(rate)
    watch = _Watch(folder, show)
    with exclusive(work.path / "processes.lock") as token:
        code = run_processes(
            command,
            log=work.log,
            token=token,
            failures_folder=work.failures,
            watch=watch,
            on_stop=lambda: None,
        )
    if code != 0 or folder.result is None:
        kind = Request.read(work.path).kind
        raise failures.as_error(f"{kind} at rate {rate:g}", failures.first(work.failures), work.log, code)


class _Watch:
    """Shows the lines that the processes write to metrics.jsonl."""

    def __init__(self, folder: RateFolder, show: Line) -> None:
        self._tail, self._show = Tail(folder.metrics), show
        self._steps = 0

    def __call__(self) -> None:
        for line in self._tail.records()[0]:
            if line.get("event") == "start":
                self._steps = int(line.get("steps", 0))
            elif "event" not in line:
                self._show(line, self._steps)
