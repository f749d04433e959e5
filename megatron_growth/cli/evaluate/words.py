"""Measure the embedding and output layer of a checkpoint: word similarity, and agreement with another model's.

  megatron-growth evaluate words runs/nano-reuse/one-layer-attn/stages/stage-2/checkpoints \\
      --data runs/nano-reuse/one-layer-attn/data --pairs simlex999.txt wordsim353.tsv
  megatron-growth evaluate words A/checkpoints --agree-with B/checkpoints --top 100

Word similarity is the rank correlation (Spearman) of the cosines of two words' rows with people's scores; a word is its
token with a leading space, or else without.  Agreement is the mean share of a token's nearest rows that both models
have in common.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_growth.cli.console import console
from megatron_growth.cli.options import add_trust
from megatron_growth.errors import DataError, UserError
from megatron_growth.records.numbers import whole
from megatron_growth.records.storage import json_text

if TYPE_CHECKING:
    from megatron_growth.checkpoint.source import Source

HELP = "word vectors: similarity with people's scores, neighbours against another checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="DIR", help="a --save folder or one of its iter_* folders")
    parser.add_argument(
        "--pairs",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="word pairs with scores, such as SimLex-999",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="a prepared dataset with the model's tokenizer")
    parser.add_argument(
        "--tokenizer", default="", metavar="KIND", help="gpt2, llama3, a FILE.model, a FOLDER, or hf:OWNER/NAME"
    )
    parser.add_argument(
        "--tokenizer-files", default="", metavar="DIR", help="folder with GPT-2's vocab.bpe and encoder.json"
    )
    parser.add_argument("--agree-with", type=Path, metavar="DIR", help="checkpoint of a model with the same vocabulary")
    parser.add_argument("--top", type=whole(), default=100, metavar="K", help="neighbours of each row (default: 100)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_trust(parser, "their")


def run(args: argparse.Namespace) -> None:
    if not args.pairs and args.agree_with is None:
        raise UserError("there is nothing to measure", fix="add --pairs FILE, --agree-with DIR, or both")
    from megatron_growth.checkpoint.source import Source
    from megatron_growth.evaluation.tables import is_tied

    source = Source(args.checkpoint)
    document: dict[str, Any] = {"path": str(source.path), "tied_embeddings": is_tied(source)}
    if args.pairs:
        document["word_similarity"] = word_similarity(source, args)
    if args.agree_with is not None:
        document["neighbour_agreement"] = agreement(source, args)
    if args.json:
        print(json_text(document))
    else:
        _print(document)


def word_similarity(source: Source, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Spearman correlation for each table and file of pairs."""
    from megatron_growth.evaluation import tables
    from megatron_growth.evaluation.word_vectors import read_pairs, similarity, word_row

    files = {path: read_pairs(path) for path in args.pairs}
    tokenizer = tables.open_tokenizer(args.data, args.tokenizer, args.tokenizer_files)
    tables.check_vocabulary(source, tokenizer.vocab_size, trust=args.trust_checkpoint)
    words = sorted({word for pairs in files.values() for first, second, _ in pairs for word in (first, second)})
    tokens = {word: word_row(word, lambda text: tokenizer.encode_batch([text])[0].tolist()) for word in words}
    used = sorted({token for token in tokens.values() if token is not None})
    place = {token: i for i, token in enumerate(used)}

    def place_of(text: str) -> list[int]:
        token = tokens[text.removeprefix(" ")]
        return [] if token is None else [place[token]]

    found = []
    for table in tables.TABLES[: 1 if tables.is_tied(source) else 2]:
        rows = tables.read_rows(source, table, used).numpy()
        for path, pairs in files.items():
            found.append({"table": table, "pairs": str(path), **asdict(similarity(rows, pairs, place_of))})
    return found


def agreement(source: Source, args: argparse.Namespace) -> dict[str, Any]:
    """Share of common neighbours for each table."""
    from megatron_growth.checkpoint.source import Source
    from megatron_growth.evaluation import tables
    from megatron_growth.evaluation.word_vectors import neighbour_agreement

    other = Source(args.agree_with)
    sizes = [tables.vocabulary_of(s, trust=args.trust_checkpoint) for s in (source, other)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"the models have different vocabularies: {sizes[0]} and {sizes[1]} tokens",
            where=f"{source.path}, {other.path}",
            fix="compare models that were trained with the same tokenizer",
        )
    if not 0 < args.top < sizes[0]:
        raise UserError(f"--top {args.top} of {sizes[0]} tokens", fix=f"give a number from 1 to {sizes[0] - 1}")
    shares: dict[str, float] = {}
    for table in tables.TABLES[: 1 if tables.is_tied(source) and tables.is_tied(other) else 2]:
        first, second = (tables.read_table(s, table, sizes[0]) for s in (source, other))
        shares[table] = neighbour_agreement(first, second, args.top)
    return {"with": str(other.path), "top": args.top, "tokens": sizes[0], **shares}


def _print(document: dict[str, Any]) -> None:
    from rich.table import Table

    print(f"{document['path']}{': embedding and output layer are tied' if document['tied_embeddings'] else ''}")
    if rows := document.get("word_similarity"):
        table = Table("table", "word pairs", "Spearman", "pairs used", "dropped")
        for row in rows:
            name = Path(row["pairs"]).name
            table.add_row(row["table"], name, f"{row['spearman']:.3f}", str(row["used"]), str(row["dropped"]))
        console().print(table)
    if found := document.get("neighbour_agreement"):
        shares = ", ".join(f"{name} {found[name]:.1%}" for name in ("embedding", "output") if name in found)
        print(f"common neighbours among the nearest {found['top']} of {found['tokens']} tokens: {shares}")
        print(f"  with {found['with']}")
