"""Turn text into the token dataset that training reads: Megatron's indexed dataset (.bin, .idx) and a manifest.

The corpus is files or folders of text, JSONL (.gz, .zst) or Parquet; or a data set of the Hugging Face hub
(hf:OWNER/NAME[:CONFIG][/SPLIT]; HF_ENDPOINT names another hub), whose Parquet files are fetched and deleted one by one;
or a built-in corpus that needs no download.  Files in a folder that are not read are counted and named.

The result does not depend on the number of workers.  The command can be killed at any moment; given again, it goes on
where it was, and does nothing when the dataset is complete.

examples:
  megatron-growth prepare --output data/demo
  megatron-growth prepare --corpus my-texts/ more.jsonl.zst --tokenizer gpt2 --output data/mine --workers 32
  megatron-growth prepare --corpus wiki.parquet --text-field body --tokenizer my-tokenizer/ --output data/wiki
  megatron-growth prepare --corpus hf:HuggingFaceFW/fineweb-edu:sample-10BT --tokenizer gpt2 --max-tokens 1e9 \\
      --output data/web
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.cli.console import show
from megatron_growth.records.human import plural
from megatron_growth.records.numbers import PROCESSES, SEED, finite, whole
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.data.manifest import Manifest

HELP = "turn text into the token dataset that training reads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--corpus",
        nargs="+",
        action="extend",
        metavar="WHAT",
        help="files, folders, hf:OWNER/NAME[:CONFIG][/SPLIT], or built in: 'stdlib' (Python's own documentation "
        "and sources, about 9.5 MB; the default) or 'packages' (with those of torch and others, about 145 MB)",
    )
    add("--output", required=True, type=Path, metavar="DIR", help="folder to create; it appears when it is complete")
    add(
        "--tokenizer",
        default="sentencepiece:1024",
        metavar="KIND",
        help="gpt2; llama3; sentencepiece:VOCABULARY (trained on the corpus); a sentencepiece .model file; a folder "
        "with a Hugging Face tokenizer; or hf:OWNER/NAME (default: sentencepiece:1024)",
    )
    add(
        "--tokenizer-files",
        default="",
        metavar="DIR",
        help="folder with GPT-2's vocab.bpe and encoder.json, so that --tokenizer gpt2 needs no network",
    )
    add(
        "--max-tokens",
        type=whole(powers=True),
        default=0,
        metavar="N",
        help="stop at the document that reaches this many training tokens, such as 20e9 (default: no limit)",
    )
    _add_document_options(parser)
    _add_output_options(parser)


def _add_document_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--text-field",
        default="text",
        metavar="NAME",
        help="JSONL field or Parquet column with the text (default: text)",
    )
    add(
        "--document-per",
        default="file",
        metavar="UNIT",
        help="what is one document in a plain text file: the file, a paragraph (between blank lines) or a line "
        "(default: file)",
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--valid-fraction",
        type=finite(0, 1, below=True),
        default=0.01,
        metavar="F",
        help="share of documents set aside for validation, chosen by a hash of their text; 0 for none (default: 0.01)",
    )
    add("--seed", type=whole(0, SEED), default=1234, metavar="N", help="of that choice (default: 1234)")
    add(
        "--dtype",
        default="auto",
        metavar="TYPE",
        help="of the stored ids: uint16, int32, or auto by vocabulary size (default: auto)",
    )
    add(
        "--workers",
        type=whole(most=PROCESSES),
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes that tokenize (default: one per core, %(default)s here)",
    )
    add("--json", action="store_true", help="print a summary of the manifest as JSON")


def run(args: argparse.Namespace) -> None:
    from megatron_growth.data.manifest import megatron_data_flags, megatron_tokenizer_flags
    from megatron_growth.data.prepare import prepare
    from megatron_growth.data.request import PrepareRequest
    from megatron_growth.data.tokenizers import parse_spec

    request = PrepareRequest(
        corpus=tuple(args.corpus or ["stdlib"]),
        tokenizer=parse_spec(args.tokenizer, args.tokenizer_files),
        text_field=args.text_field,
        document_per=args.document_per,
        valid_fraction=args.valid_fraction,
        seed=args.seed,
        dtype=args.dtype,
        max_tokens=args.max_tokens,
    )
    manifest, written = prepare(request, args.output, args.workers)
    flags = megatron_data_flags(args.output, manifest) + megatron_tokenizer_flags(manifest)
    if args.json:
        summary: dict[str, Any] = {"output": str(args.output), "written": written, **manifest.summary()}
        print(json_text(summary | {"megatron_flags": flags}))
    else:
        _print(args.output, manifest, written, flags)


def _print(output: Path, manifest: Manifest, written: bool, flags: list[str]) -> None:
    show(f"{output}: {'written' if written else 'already complete, nothing to do'}")
    for name, split in manifest.splits.items():
        documents, tokens = plural(split.documents, "document"), plural(split.tokens, "token")
        show(f"  {name:<6} {documents:>22} {tokens:>23} ({manifest.dtype})")
    tokenizer = manifest.tokenizer
    show(f"  {tokenizer.name}: {tokenizer.vocab_size} ids, end of document {tokenizer.eod}")
    empty = plural(manifest.empty_documents, "empty document")
    show(f"  {plural(manifest.text_bytes, 'byte')} of text, {empty} left out")
    for reason, record in manifest.skipped.items():
        more = ", ..." if record.count > len(record.names[:3]) else ""
        show(f"  not read: {record.count} {reason}: {', '.join(record.names[:3])}{more}")
    show("  for Megatron: " + shlex.join(flags))
