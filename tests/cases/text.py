"""Inputs that `prepare` once took silently, or met with a traceback: one a fault, named after what it shows.

`python -m tests.cases.text FOLDER` writes them all; the tests make the one they need.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

CASES: dict[str, Callable[[Path], None]] = {}
LINES = b"".join(b'{"text": "line %d of a small file"}\n' % n for n in range(400))


def case(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Register a function that writes its input into an empty folder."""
    CASES[make.__name__.replace("_", "-")] = make
    return make


def make(name: str, folder: Path) -> Path:
    """Write the input of that name into `folder/NAME`, and return this path."""
    path = folder / name
    path.mkdir(parents=True)
    CASES[name](path)
    return path


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


@case
def second_zstd_frame_cut_short(folder: Path) -> None:
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    (folder / "a.jsonl.zst").write_bytes(_zstd(LINES[:half]) + _zstd(LINES[half:])[:-40])


@case
def second_zstd_frame_without_its_last_byte(folder: Path) -> None:
    (folder / "a.jsonl.zst").write_bytes(_zstd(LINES) + _zstd(LINES)[:-1])


@case
def something_behind_a_zstd_frame(folder: Path) -> None:
    (folder / "a.jsonl.zst").write_bytes(_zstd(LINES) + b"more text")


@case
def empty_zstd(folder: Path) -> None:
    (folder / "a.jsonl.zst").touch()


@case
def empty_gzip(folder: Path) -> None:
    (folder / "a.jsonl.gz").touch()


@case
def second_gzip_member_cut_short(folder: Path) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES) + gzip.compress(LINES)[:-5])


@case
def second_gzip_member_cut_in_its_header(folder: Path) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES) + gzip.compress(LINES)[:4])


@case
def gzip_with_a_wrong_checksum(folder: Path) -> None:
    data = bytearray(gzip.compress(LINES))
    data[-6] ^= 1
    (folder / "a.jsonl.gz").write_bytes(bytes(data))


@case
def jsonl_cut_in_its_last_line(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(LINES[:-9])


@case
def parquet_cut_short(folder: Path) -> None:
    _parquet(folder / "whole.parquet", ["a text"] * 500)
    data = (folder / "whole.parquet").read_bytes()
    (folder / "whole.parquet").unlink()
    (folder / "a.parquet").write_bytes(data[: len(data) // 2])


@case
def parquet_with_a_damaged_page(folder: Path) -> None:
    _parquet(folder / "a.parquet", [f"text {n} " * 20 for n in range(500)], write_page_checksum=True)
    data = bytearray((folder / "a.parquet").read_bytes())
    data[len(data) // 4] ^= 0xFF
    (folder / "a.parquet").write_bytes(bytes(data))


@case
def parquet_text_that_is_not_utf8(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    raw = pyarrow.array([b"good", b"bad \xff\xfe", b"good"], pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), len(raw), raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), folder / "a.parquet")


@case
def lines_with_unicode_separators(folder: Path) -> None:
    (folder / "a.txt").write_text("one\u2028still one\ntwo\x0cstill two\r\nthree\x85still three\nfour\x1cstill four\n")


@case
def endings_that_are_not_read(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "b.jsonl.bz2").write_bytes(bz2.compress(LINES))
    (folder / "c.txt.gz").write_bytes(gzip.compress(b"text"))
    (folder / "d.csv").write_text("text\nmore\n")
    (folder / "README").write_text("read me")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "e.jsonl").write_bytes(LINES)
    os.mkfifo(folder / "f.jsonl")


@case
def a_link_that_leads_nowhere(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "b.jsonl").symlink_to(folder / "gone.jsonl")


@case
def a_linked_folder_and_a_circle(folder: Path) -> None:
    (folder / "texts").mkdir()
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "b.jsonl").write_bytes(LINES)
    (folder / "texts" / "a.jsonl").write_bytes(LINES)
    (folder / "texts" / "linked").symlink_to(folder / "elsewhere")
    (folder / "texts" / "again").symlink_to(folder / "texts")


@case
def a_million_blanks(folder: Path) -> None:
    (folder / "a.jsonl").write_text(json.dumps({"text": "before" + " " * 1_000_000 + "after"}) + "\n")


@case
def a_number_with_too_many_digits(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "good"}\n{"text": ' + "9" * 5000 + "}\n")


@case
def json_nested_too_deeply(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "good"}\n{"text": ' + "[" * 100_000 + "}\n")


@case
def vocabulary_with_a_hole(folder: Path) -> None:
    import tokenizers
    import transformers

    model = tokenizers.models.WordLevel({"a": 0, "b": 1, "<unk>": 2, "<eod>": 200}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eod>").save_pretrained(folder)


def _parquet(path: Path, texts: list[str], **options: bool) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False, **options)


if __name__ == "__main__":
    for each in CASES:
        print(make(each, Path(sys.argv[1])))
