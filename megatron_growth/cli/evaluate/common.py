"""Options that the sub-verbs of `evaluate` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_growth.cli.options import add_trust
from megatron_growth.errors import UserError
from megatron_growth.progress import Progress
from megatron_growth.records.numbers import whole

if TYPE_CHECKING:
    from megatron_growth.evaluation.models import Model


LONGEST = 2048  # most tokens in a window, unless the user says otherwise


def add_length(parser: argparse.ArgumentParser, whose: str) -> None:
    """--length of windows; `whose` length it is by default, in words."""
    words = f"tokens in a window (default: the {whose}, at most {LONGEST})"
    parser.add_argument("--length", type=whole(2), metavar="N", help=words)


def add_model(parser: argparse.ArgumentParser) -> None:
    """How a model is found and computed."""
    parser.add_argument(
        "--tokenizer",
        default="",
        metavar="KIND",
        help="of a checkpoint outside a run: gpt2, llama3, a sentencepiece .model file, a folder, or hf:OWNER/NAME",
    )
    parser.add_argument("--tokenizer-files", default="", metavar="DIR", help="GPT-2's vocab.bpe and encoder.json")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder of exports and results: a new or empty one, or that of earlier commands (default: RUN/evaluation)",
    )
    parser.add_argument("--dtype", default="float32", metavar="TYPE", help="float32 (default) or bfloat16")
    parser.add_argument(
        "--device", default="", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if there is one)"
    )
    parser.add_argument("--batch", type=whole(), default=8, metavar="N", help="sequences at a time (default: 8)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_trust(parser)


def exported(model: Model, args: argparse.Namespace) -> Path:
    """The Hugging Face folder of a model, exported now if need be.

    Raises:
        GrowthError: as `claim_cache` and `folder_of` raise it.
    """
    from megatron_growth.evaluation.models import claim_cache, folder_of

    if args.cache and not model.is_huggingface:
        claim_cache(args.cache)
    labels = {"check": f"checking {model.name}", "write": f"exporting {model.name}"}
    with Progress(labels, quiet=args.json) as progress:
        return folder_of(
            model,
            tokenizer=args.tokenizer,
            tokenizer_files=args.tokenizer_files,
            trust_checkpoint=args.trust_checkpoint,
            progress=progress,
        )


def single(path: Path, cache: Path | None) -> Model:
    """The one model behind a path.

    Raises:
        UserError: the path holds several.
    """
    from megatron_growth.evaluation.models import models_of

    found = models_of(path, cache)
    if len(found) > 1:
        names = ", ".join(str(model.path) for model in found[:4])
        raise UserError(f"{path} holds {len(found)} models; this takes one", where=str(path), fix=f"name one: {names}")
    return found[0]
