"""The dataset of a run: prepared once into RUN/data, checked against the recipe and its budget."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_growth.data.index_cache import drop_broken_orders
from megatron_growth.data.manifest import (
    FILE_NAME,
    Manifest,
    check_files,
    load_manifest,
    megatron_data_flags,
    megatron_tokenizer_flags,
)
from megatron_growth.errors import DataError
from megatron_growth.planner import RunPlan, StagePlan
from megatron_growth.recipes import Recipe
from megatron_growth.records.storage import atomic_path, storage_errors
from megatron_growth.run.directory import RunDirectory


def prepared(run: RunDirectory, recipe: Recipe, workers: int | None = None) -> Manifest:
    """The run's dataset; made when it is not there yet.

    Args:
        run: of the recipe.
        recipe: names corpus and tokenizer.
        workers: processes that tokenize; None for one a core.

    Raises:
        DataError: the corpus or tokenizer is unusable, or the dataset is damaged.
        StorageError: the file system refused.
    """
    if (run.data / FILE_NAME).is_file():
        manifest = load_manifest(run.data)
        check_files(run.data, manifest)
        return manifest
    from megatron_growth.data.prepare import prepare
    from megatron_growth.data.request import PrepareRequest
    from megatron_growth.data.tokenizers import parse_spec

    request = PrepareRequest(
        corpus=(recipe.data.corpus,),
        tokenizer=parse_spec(recipe.data.tokenizer),
        text_field=recipe.data.text_field,
        document_per=recipe.data.document_per,
        valid_fraction=recipe.data.valid_fraction,
        seed=recipe.data.seed,
    )
    return prepare(request, run.data, workers or len(os.sched_getaffinity(0)))[0]


def share(source: RunDirectory, target: RunDirectory) -> None:
    """Give a run the dataset of another one by hard links, unless it has one already.

    Raises:
        StorageError: the file system refused, or has no hard links.
    """
    if (target.data / FILE_NAME).is_file() or not (source.data / FILE_NAME).is_file():
        return
    with storage_errors(target.path):
        # The manifest last: with it the dataset is complete.
        files = sorted((p for p in source.data.rglob("*") if p.is_file()), key=lambda p: p.name == FILE_NAME)
        for file in files:
            linked = target.data / file.relative_to(source.data)
            linked.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(linked) as temporary:
                os.link(file, temporary)


def flags(run: RunDirectory, manifest: Manifest) -> list[str]:
    """Megatron's flags for the dataset and its tokenizer."""
    return [*megatron_data_flags(run.data.absolute(), manifest), *megatron_tokenizer_flags(manifest)]


def order_cache(run: RunDirectory) -> Path:
    """The folder of Megatron's sample orders, without what a kill has cut short."""
    cache = run.path.absolute() / "cache"
    drop_broken_orders(cache)
    return cache


def check(recipe: Recipe, plan: RunPlan, manifest: Manifest) -> None:
    """Refuse a dataset that the run cannot train on, before any process is started.

    Raises:
        DataError: another vocabulary than the recipe's, or too few tokens.
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
            where=f"corpus {recipe.data.corpus}",
            fix="give more text with --corpus, lower the recipe's budget, or set data.pool_tokens (Fixed Data)",
        )


def validation_samples(recipe: Recipe, stages: tuple[StagePlan, ...], manifest: Manifest) -> int:
    """Sequences of one evaluation: what the recipe asks for, or as many as there are.

    Raises:
        DataError: not even one batch.
    """
    largest = max(stage.global_batch_size for stage in stages)
    length = stages[0].sequence_length
    valid = manifest.splits.get("valid")
    have = (valid.tokens - 1) // length if valid else 0
    if have < largest:
        raise DataError(
            f"the validation set has {have} sequences of {length} tokens, a batch takes {largest}",
            where=f"corpus {recipe.data.corpus}",
            fix="raise data.valid_fraction in the recipe, or give more text",
        )
    return min(recipe.evaluation.iterations * stages[-1].global_batch_size, have)
