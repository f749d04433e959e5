"""Which models a path names, each as the Hugging Face folder that is evaluated.

RUN                            every finished stage and baseline of a run, or of every variant in a folder of variants
RUN/stages/STAGE/checkpoints   one Megatron checkpoint (a --save folder or one of its iter_* folders)
FOLDER with config.json        a Hugging Face model, as it is

A Megatron checkpoint is exported first.  Exports and results lie in RUN/evaluation, or outside a run in the user's
cache folder; both are named by a hash of the weights and the tokenizer, so nothing is computed twice and nothing stale
is used.  Either may be removed at any time.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_growth.checkpoint.paths import METADATA
from megatron_growth.checkpoint.processes import OnProgress
from megatron_growth.checkpoint.source import Source
from megatron_growth.data.tokenizers.huggingface import fingerprint as tokenizer_fingerprint
from megatron_growth.errors import CheckpointError, RunError, UserError
from megatron_growth.exchange.card import model_card
from megatron_growth.exchange.export import export
from megatron_growth.exchange.export_plan import plan_export
from megatron_growth.exchange.folder import CONFIG, is_huggingface
from megatron_growth.exchange.tokenizer_files import tokenizer_of
from megatron_growth.methods.relora import unmerged
from megatron_growth.records import owned
from megatron_growth.records.crc import crc32
from megatron_growth.records.place import is_run, run_above, variants_in
from megatron_growth.records.storage import storage_errors
from megatron_growth.run.checkpoints import folder_of as folder_of_iteration
from megatron_growth.run.checkpoints import iterations
from megatron_growth.run.directory import RunDirectory

EXPORTS, RESULTS = "exports", "results"
CACHE_PURPOSE = "the exports and results of evaluations"
_BLOCK = 16 << 20


@dataclass(frozen=True)
class Model:
    """One model to evaluate.

    Attributes:
        name: of the stage, with its variant before it, or of the folder.
        path: where it lies.
        cache: folder of its exports and results.
    """

    name: str
    path: Path
    cache: Path

    @property
    def is_huggingface(self) -> bool:
        """Whether it needs no export."""
        return is_huggingface(self.path)


def models_of(path: Path, cache: Path | None = None) -> list[Model]:
    """The models behind a path.

    Args:
        path: of a run, a folder of variants, a checkpoint or a Hugging Face folder.
        cache: folder of exports and results; the run's own, or the user's, when None.

    Raises:
        RunError: no stage of the run, or of any variant, is finished.
        CheckpointError: the path does not exist.
    """
    if is_run(path):
        if stages := _stages(RunDirectory(path), cache):
            return stages
        fix = "train it first, or name a checkpoint below stages/"
        raise RunError("no stage of this run is finished", where=str(path), fix=fix)
    if runs := variants_in(path):
        found = [(run.name, model) for run in runs for model in _stages(RunDirectory(run), cache)]
        if not found:
            raise RunError("no stage of any variant is finished", where=str(path), fix="train the variants first")
        return [Model(f"{variant}/{model.name}", model.path, model.cache) for variant, model in found]
    if not path.exists():
        raise CheckpointError(
            "there is no model here", where=str(path), fix="name a run, a checkpoint or a Hugging Face folder"
        )
    run = run_above(path)
    inside = path.absolute().relative_to(run).parts if run else ()
    name = inside[1] if len(inside) > 2 and not is_huggingface(path) else path.absolute().name
    return [Model(name, path, cache or (RunDirectory(run).evaluation if run else user_cache()))]


def every_checkpoint(models: Sequence[Model], left_out: Callable[[str], None] = lambda _: None) -> list[Model]:
    """All checkpoints of each model, oldest first, named NAME@ITERATION; a Hugging Face folder has only itself.

    One from the middle of a ReLoRA run is no model of its own: `left_out` is called with its name.
    """
    found = []
    for model in models:
        there = [] if model.is_huggingface else iterations(model.path)
        # One that is being saved has no metadata yet.
        whole = [one for one in there if (folder_of_iteration(model.path, one) / METADATA).is_file()]
        saved = [Model(f"{model.name}@{one}", folder_of_iteration(model.path, one), model.cache) for one in whole]
        kept = [one for one in saved if not unmerged(name for name, _ in Source(one.path).tensors)]
        if kept:  # else the model itself, which is refused with the reason
            for one in saved:
                if one not in kept:
                    left_out(one.name)
        found += kept or [model]
    return found


def claim_cache(folder: Path) -> None:
    """Make a folder of the user's choice ours before the first export or result is written into it.

    One in which an earlier command left an export or a result is used as it is: it was not always marked.

    Raises:
        RunError: it holds something else; it is left as it is.
        StorageError: the file system refused.
    """
    with storage_errors(folder):
        place = Path(os.path.realpath(folder))  # a link to a larger disk is followed once, here
        if not _was_used(place):
            owned.claim(place, CACHE_PURPOSE)


def _was_used(folder: Path) -> bool:
    """Whether a folder holds exports or results of an earlier command."""
    names = {EXPORTS: r".+-[0-9a-f]{16}(\.partial)?", RESULTS: r"[0-9a-f]{16}"}
    return any(re.fullmatch(name, path.name) for part, name in names.items() for path in (folder / part).glob("*/"))


def user_cache() -> Path:
    """The folder of exports and results that belong to no run."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "megatron-growth" / "evaluation"


def _stages(run: RunDirectory, cache: Path | None) -> list[Model]:
    planned = (*run.planned.stages, *run.planned.baselines)
    folders = [run.stage(stage.name) for stage in planned]
    return [Model(one.name, one.checkpoints, cache or run.evaluation) for one in folders if one.is_done]


def folder_of(
    model: Model,
    *,
    tokenizer: str = "",
    tokenizer_files: str = "",
    trust_checkpoint: bool = False,
    progress: OnProgress = lambda *_: None,
) -> Path:
    """The Hugging Face folder of a model; a Megatron checkpoint is exported into the cache if it is not there yet.

    Args:
        tokenizer: as for `prepare --tokenizer`; the run's own when empty.
        tokenizer_files: folder with GPT-2's vocab.bpe and encoder.json.
        trust_checkpoint: unpickle its objects freely.

    Raises:
        DataError: no tokenizer was named outside a run.
        UserError: a tokenizer was named for a Hugging Face folder.
        GrowthError: as `plan_export` and `export` raise it.
    """
    if model.is_huggingface:
        if tokenizer or tokenizer_files:
            raise UserError(
                "a Hugging Face model has its own tokenizer, and no other is used",
                where=str(model.path),
                fix="leave out --tokenizer and --tokenizer-files, or put the tokenizer's files into the folder",
            )
        return model.path
    source = Source(model.path)  # first: where there is no checkpoint, it has no tokenizer either
    spec, found = tokenizer_of(model.path, tokenizer, tokenizer_files)
    plan = plan_export(source, vocab=found.vocab_size, eod=found.eod, trust_checkpoint=trust_checkpoint)
    key = hashlib.sha256(f"{plan.key()} {found.fingerprint}".encode()).hexdigest()
    target = model.cache / EXPORTS / f"{model.name.replace('/', '-')}-{key[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    card = model_card(plan, name=model.name, tokenizer=tokenizer)
    export(plan, target, tokenizer=(spec, found), card=card, progress=progress)
    return target


def fingerprint(folder: Path) -> str:
    """A hash that tells two Hugging Face models apart: configuration, tokenizer, how it is asked, and all weights.

    All of them, because two stages of which one has trained a single layer differ nowhere else.
    """
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    digest.update(tokenizer_fingerprint(folder).encode())
    for path in sorted([*folder.glob("chat_template*"), *folder.glob("generation_config.json")]):
        digest.update(path.name.encode() + path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        crc = 0
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                crc = crc32(block, crc)
        digest.update(f"{path.name} {path.stat().st_size} {crc}".encode())
    return digest.hexdigest()
