"""Options of `train` and `submit` that replace the `data` of a recipe, and whether it is on this machine."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.errors import UserError
from megatron_growth.records.numbers import PROCESSES, whole
from megatron_growth.records.place import plain

if TYPE_CHECKING:
    from megatron_growth.recipes import Recipe


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """--data, --corpus, --tokenizer, --text-field, --max-tokens and --workers."""
    add = parser.add_argument
    add("--data", metavar="DIR", help="a dataset that `prepare` wrote, in place of the recipe's corpus")
    add("--corpus", metavar="WHAT", help="text to train on, in place of the recipe's; WHAT as for `prepare`")
    add(
        "--tokenizer",
        metavar="KIND",
        help="in place of the recipe's; KIND as for `prepare`; the model's vocabulary follows it",
    )
    add("--text-field", metavar="NAME", help="JSONL field or Parquet column with the text, in place of the recipe's")
    add(
        "--max-tokens",
        type=whole(powers=True),
        metavar="N",
        help="prepare at most this many training tokens, such as 20e9",
    )
    add("--workers", type=whole(most=PROCESSES), metavar="N", help="processes that tokenize (default: one per core)")


def with_data_options(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe with the command line's data; another tokenizer brings its vocabulary, another corpus is read whole.

    Raises:
        UserError: two of the options contradict each other.
        DataError: the tokenizer, or the prepared dataset, is missing or damaged.
    """
    given = {name: getattr(args, name, None) for name in ("data", "corpus", "tokenizer", "text_field", "max_tokens")}
    data: dict[str, Any] = {}
    if given["data"] and (given["corpus"] or given["text_field"] or given["max_tokens"]):
        raise UserError(
            "--data is prepared already: a corpus, a text field or a limit cannot change it",
            where="--data",
            fix="leave out --corpus, --text-field and --max-tokens, or leave out --data",
        )
    if given["data"]:
        data["prepared"] = plain(given["data"])
    if given["corpus"]:
        data["corpus"], data["prepared"], data["max_tokens"] = _path(given["corpus"]), None, None
    if given["tokenizer"]:
        data["tokenizer"] = _path(given["tokenizer"])
    data |= {name: given[name] for name in ("text_field", "max_tokens") if given[name] is not None}
    if not data:
        return recipe
    changed = recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})
    return _with_vocabulary(changed) if given["tokenizer"] else changed


def _path(text: str) -> str:
    return plain(text) if Path(text).exists() else text


def _with_vocabulary(recipe: Recipe) -> Recipe:
    """The recipe with its tokenizer's vocabulary; the tokenizer is opened when its name does not say its size."""
    from megatron_growth.data.manifest import load_manifest
    from megatron_growth.data.tokenizers import load_tokenizer, parse_spec
    from megatron_growth.recipes.blocks import vocabulary_of

    vocab = None
    if vocabulary_of(recipe.data.tokenizer) is None:
        if recipe.data.prepared:
            vocab = load_manifest(Path(recipe.data.prepared)).tokenizer.vocab_size
        else:
            vocab = load_tokenizer(parse_spec(recipe.data.tokenizer)).vocab_size
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"vocab": vocab})})


def lacking_here(recipe: Recipe) -> list[str]:
    """A sentence for each path of the recipe's data that is not on this machine.

    A plan, a dry run and a smoke job need none of them, and a plan is often made where the text is not; `train` and
    `submit` refuse to start without.
    """
    from megatron_growth.data.corpora import CORPORA
    from megatron_growth.data.hub_address import PREFIX
    from megatron_growth.data.manifest import FILE_NAME
    from megatron_growth.data.tokenizers import parse_spec
    from megatron_growth.errors import GrowthError

    data, lacking = recipe.data, {}
    if data.prepared:
        if not os.path.exists(os.path.join(data.prepared, FILE_NAME)):
            lacking["prepared"] = f"the prepared dataset {_absolute(data.prepared)}"
    else:
        if data.corpus not in CORPORA and not data.corpus.startswith(PREFIX) and not os.path.exists(data.corpus):
            lacking["corpus"] = f"the corpus {_absolute(data.corpus)}"
        try:
            parse_spec(data.tokenizer)
        except GrowthError:
            lacking["tokenizer"] = f"the tokenizer {_absolute(data.tokenizer)}"
    return [
        f"Not on this machine: {what} ({recipe.where('data', key)}). `train` and `submit` need it where they start."
        for key, what in lacking.items()
    ]


def _absolute(path: str) -> str:
    """A path as it is written, and where that is from the working directory."""
    return path if os.path.isabs(path) else f"{path}, looked for at {os.path.abspath(path)}"
