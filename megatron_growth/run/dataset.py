"""The dataset of a run: prepared once into RUN/data, checked against the recipe and its budget."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_growth.data.manifest import (
    FILE_NAME,
    Manifest,
    check_files,
    load_manifest,
    megatron_data_flags,
    megatron_tokenizer_flags,
)
from megatron_growth.errors import DataError
from megatron_growth.hints import at_door
from megatron_growth.planner import RunPlan, StagePlan
from megatron_growth.recipes import Recipe
from megatron_growth.records.storage import atomic_path, storage_errors, write_whole
from megatron_growth.run.arguments import StageData
from megatron_growth.run.directory import RunDirectory

# Another file system, one without hard links, somebody else's file, or too many links.
_NO_HARD_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}


def prepared(run: RunDirectory, recipe: Recipe, workers: int | None = None) -> Manifest:
    """The run's dataset; prepared when the run has none yet.

    Args:
        workers: processes that tokenize; None for one per core.

    Raises:
        DataError: the corpus or tokenizer is unusable, or the dataset is damaged.
        StorageError: the file system refused.
    """
    if (run.data / FILE_NAME).is_file():
        manifest = load_manifest(run.data)
        check_files(run.data, manifest)
        return manifest
    if recipe.data.prepared:
        return _taken(Path(recipe.data.prepared), run, recipe)
    from megatron_growth.data.prepare import prepare
    from megatron_growth.data.request import PrepareRequest
    from megatron_growth.data.tokenizers import parse_spec

    request = PrepareRequest(
        corpus=(recipe.data.corpus,),
        tokenizer=parse_spec(recipe.data.tokenizer),
        text_field=recipe.data.text_field,
        document_per=recipe.data.document_per,
        max_tokens=recipe.data.max_tokens or 0,
        valid_fraction=recipe.data.valid_fraction,
        seed=recipe.data.seed,
    )
    with at_door("data of a recipe"):
        return prepare(request, run.data, workers or len(os.sched_getaffinity(0)))[0]


def _taken(folder: Path, run: RunDirectory, recipe: Recipe) -> Manifest:
    """Link a dataset that was prepared before into the run.

    Raises:
        DataError: it is damaged, or of another tokenizer than the recipe's.
        StorageError: the file system refused.
    """
    manifest = load_manifest(folder)
    check_files(folder, manifest)
    if wrong := _other_tokenizer(recipe.data.tokenizer, manifest):
        raise DataError(
            f"the dataset was prepared with {wrong}, the recipe's tokenizer is {recipe.data.tokenizer}",
            where=str(folder),
            fix="give the dataset's tokenizer with --tokenizer, or prepare the text again",
        )
    _link(folder, run.data)
    return manifest


def _other_tokenizer(wanted: str, manifest: Manifest) -> str:
    """The tokenizer of a dataset when it is not the wanted one; "" when it is, or when that cannot be decided."""
    from megatron_growth.data.tokenizers import load_tokenizer, parse_spec
    from megatron_growth.data.tokenizers.gpt2 import FINGERPRINT as GPT2_FINGERPRINT

    spec = parse_spec(wanted)
    made = manifest.identity["tokenizer"]
    has = f"{manifest.tokenizer.name} ({manifest.tokenizer.vocab_size} ids)"
    if spec.train_vocab_size:
        return "" if made["train_vocab_size"] == spec.train_vocab_size else has
    if spec.kind != made["kind"]:
        return has
    if spec.kind == "gpt2" or Path(spec.path).exists():
        fingerprint = GPT2_FINGERPRINT if spec.kind == "gpt2" else load_tokenizer(spec).fingerprint
        return "" if fingerprint == manifest.tokenizer.fingerprint else has
    return ""  # from the hub: only its size is compared, with the recipe's vocabulary (`check`)


def share(source: RunDirectory, target: RunDirectory) -> None:
    """Give a run the dataset of another run, unless it has one already.

    Raises:
        StorageError: the file system refused.
    """
    if not (target.data / FILE_NAME).is_file() and (source.data / FILE_NAME).is_file():
        _link(source.data, target.data)


def _link(source: Path, target: Path) -> None:
    """The files of a dataset under other names: hard links, or symbolic ones to another file system."""
    with storage_errors(target):
        # The manifest last: with it the dataset is complete.
        files = sorted((p for p in source.rglob("*") if p.is_file()), key=lambda p: p.name == FILE_NAME)
        for file in files:
            linked = target / file.relative_to(source)
            linked.parent.mkdir(parents=True, exist_ok=True)
            if file.name == FILE_NAME:
                write_whole(linked, file.read_bytes())
                continue
            with atomic_path(linked) as temporary:
                try:
                    os.link(file, temporary)
                except OSError as error:
                    if error.errno not in _NO_HARD_LINK:
                        raise
                    temporary.symlink_to(file.resolve())


def of_stages(run: RunDirectory, recipe: Recipe, plan: RunPlan, manifest: Manifest | None) -> StageData:
    """What the stages of a run are fed with: its dataset, or made-up tokens without a manifest.

    Megatron finds a sample order by the dataset's path, so orders of different tokens lie in different folders.

    Raises:
        DataError: the validation set is too small.
    """
    cache = run.path.absolute() / "cache"
    if manifest is None:
        return StageData(("--mock-data", *null_tokenizer(recipe)), cache / "mock", 1)
    flags = (
        *megatron_data_flags(run.data.absolute(), manifest),
        *megatron_tokenizer_flags(manifest),
        *("--growth-tokenizer", manifest.tokenizer.fingerprint),
    )
    return StageData(flags, cache / manifest.fingerprint, validation_samples(recipe, plan.stages, manifest))


def null_tokenizer(recipe: Recipe) -> tuple[str, ...]:
    """Megatron's flags for the ids of the recipe's vocabulary without a tokenizer; the last one ends a document."""
    vocabulary = ("--tokenizer-type", "NullTokenizer", "--vocab-size", str(recipe.vocab))
    return (*vocabulary, "--null-tokenizer-eod-id", str(recipe.vocab - 1))


def check(recipe: Recipe, plan: RunPlan, manifest: Manifest) -> None:
    """Refuse a dataset that the run cannot train on, before any process is started.

    Raises:
        DataError: its vocabulary is not the recipe's, or it has too few tokens.
    """
    vocabulary = manifest.tokenizer.vocab_size
    if vocabulary != recipe.vocab:
        raise DataError(
            f"the tokenizer has {vocabulary} tokens, the recipe's model {recipe.vocab}",
            where=recipe.where("data", "tokenizer"),
            fix=f"set vocab: {vocabulary} under model",
        )
    have = manifest.splits["train"].tokens
    need = max(stage.data_pool * stage.sequence_length + 1 for stage in (*plan.stages, *plan.baselines))
    if have < need:
        raise DataError(
            f"the dataset is too short for the budget: it has {have:,} training tokens, the run needs {need:,}",
            where=where_from(recipe),
            fix="give more text with --corpus, lower the recipe's budget, or set data.pool_tokens (Fixed Data)",
        )


def validation_samples(recipe: Recipe, stages: tuple[StagePlan, ...], manifest: Manifest) -> int:
    """Sequences of one evaluation: what the recipe asks for, or as many as there are.

    Raises:
        DataError: there are fewer than one batch.
    """
    largest = max(stage.global_batch_size for stage in stages)
    length = stages[0].sequence_length
    valid = manifest.splits.get("valid")
    have = (valid.tokens - 1) // length if valid else 0
    if have < largest:
        raise DataError(
            f"the validation set has {have} sequences of {length} tokens, a batch takes {largest}",
            where=where_from(recipe),
            fix="raise data.valid_fraction in the recipe, or give more text",
        )
    return in_whole_batches(min(recipe.evaluation.iterations * stages[-1].global_batch_size, have), stages)


def in_whole_batches(samples: int, stages: Sequence[StagePlan]) -> int:
    """`samples`, or fewer that the batches of all stages divide: losses before and after growth are of the same ones.

    Where there are too few for that, each stage takes the whole batches that it can.
    """
    step = math.lcm(*(stage.global_batch_size for stage in stages))
    return samples // step * step or samples


def where_from(recipe: Recipe) -> str:
    """What a recipe's tokens come from, for messages."""
    return f"dataset {recipe.data.prepared}" if recipe.data.prepared else f"corpus {recipe.data.corpus}"
