"""What a corpus consists of: files found and hashed, and cut into pieces that workers read independently.

The pieces depend on the inputs only, never on the number of workers, so the dataset does not either.  A plain JSONL
file is cut at any byte (a line belongs to the piece that holds its first byte), a Parquet file at its row groups; a
compressed or text file is one piece.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_growth.data import corpora
from megatron_growth.errors import DataError
from megatron_growth.records.storage import sha256_of

MIB = 1 << 20
_JSONL = (".jsonl", ".ndjson", ".json")
_COMPRESSED = (".gz", ".zst")
_TEXT = (".txt", ".text", ".md", ".rst", ".tex", ".html", ".htm", ".py")


@dataclass(frozen=True)
class Source:
    """One input file, or one built-in collection.

    Attributes:
        name: path relative to the input it was found in; part of the dataset's identity.
        path: where it lies on this machine.
        format: `text`, `jsonl`, `parquet` or `topics`.
        bytes: its size on disk.
        sha256: of its content, once hashed.
    """

    name: str
    path: str
    format: str
    bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class Piece:
    """A part of a source that one worker reads: bytes [begin, end) of JSONL, row groups of Parquet, or topics."""

    source: Source
    begin: int
    end: int
    bytes: int


def discover(inputs: Sequence[str]) -> list[Source]:
    """The sources of files, folders and built-in corpora, in the order given and by name inside each.

    Raises DataError for a path that is not there or a folder without a file of a known kind.
    """
    if len(inputs) == 1:
        return _input(inputs[0])
    # Two inputs may hold files of the same name.
    return [
        replace(source, name=f"{number}/{source.name}")
        for number, given in enumerate(inputs)
        for source in _input(given)
    ]


def _input(given: str) -> list[Source]:
    path = Path(given)
    if given in corpora.CORPORA:
        return _builtin(given)
    if given.startswith("hf:"):
        from megatron_growth.data import huggingface_datasets

        return [huggingface_datasets.source(given)]
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return [_file(path, path.name, format_of(path) or "text")]
    raise corpora.unknown(given)


def format_of(path: Path) -> str:
    """`jsonl`, `parquet` or `text` by the file's name, or "" when the name tells nothing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        return "jsonl" if len(suffixes) > 1 and suffixes[-2] in _JSONL else ""
    last = suffixes[-1] if suffixes else ""
    if last in _JSONL:
        return "jsonl"
    if last == ".parquet":
        return "parquet"
    return "text" if last in _TEXT else ""


def _file(path: Path, name: str, kind: str) -> Source:
    if kind == "text" and path.suffix.lower() in _COMPRESSED:
        raise DataError(
            "A compressed file must be JSONL.",
            where=str(path),
            fix="Name it .jsonl.gz or .jsonl.zst if it is, or decompress the text.",
        )
    return Source(name, str(path), kind, path.stat().st_size)


def _folder(folder: Path) -> list[Source]:
    files = [path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder))]
    named = sorted((path.relative_to(folder).as_posix(), path) for path in files)
    found = [_file(path, name, kind) for name, path in named if (kind := format_of(path))]
    if not found:
        endings = Counter(path.suffix or "(none)" for path in files)
        seen = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(5)) or "no files"
        raise DataError(
            f"The folder holds no text, JSONL or Parquet file ({seen}).",
            where=str(folder),
            fix=f"Known endings: {' '.join((*_TEXT, *_JSONL, '.parquet'))}, and .gz or .zst after a JSONL ending.",
        )
    return found


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _builtin(corpus: str) -> list[Source]:
    texts = json.dumps(corpora.stdlib_topics()).encode()
    topics = Source(f"{corpus}/pydoc-topics", "", "topics", len(texts), hashlib.sha256(texts).hexdigest())
    return [topics, *(_file(path, f"{corpus}/{name}", "text") for name, path in corpora.stdlib_sources())]


def hash_sources(sources: Sequence[Source], threads: int) -> list[Source]:
    """The same sources with their SHA-256; files are read by several threads."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        digests = pool.map(lambda source: source.sha256 or sha256_of(Path(source.path)), sources)
        return [replace(source, sha256=digest) for source, digest in zip(sources, digests, strict=True)]


def shard_bytes(total: int) -> int:
    """Bytes of input per shard: 1/256 of the corpus, at least 1 MiB and at most 256 MiB."""
    return min(max(total // 256, MIB), 256 * MIB)


def shards(sources: Sequence[Source]) -> list[tuple[Piece, ...]]:
    """All pieces in order, grouped into shards of about `shard_bytes` each."""
    limit = shard_bytes(sum(source.bytes for source in sources))
    groups: list[tuple[Piece, ...]] = []
    group: list[Piece] = []
    size = 0
    for piece in (piece for source in sources for piece in _pieces(source, limit)):
        if group and size + piece.bytes > limit:
            groups.append(tuple(group))
            group, size = [], 0
        group.append(piece)
        size += piece.bytes
    return [*groups, tuple(group)] if group else groups


def _pieces(source: Source, limit: int) -> Iterator[Piece]:
    if source.format == "parquet":
        yield from _row_groups(source)
    elif source.format == "topics":
        yield Piece(source, 0, len(corpora.stdlib_topics()), source.bytes)
    elif source.format == "jsonl" and not source.path.lower().endswith(_COMPRESSED):
        for begin in range(0, source.bytes, limit):
            end = min(begin + limit, source.bytes)
            yield Piece(source, begin, end, end - begin)
    else:
        yield Piece(source, 0, source.bytes, source.bytes)


def _row_groups(source: Source) -> Iterable[Piece]:
    from megatron_growth.data.readers import open_parquet

    metadata = open_parquet(source.path).metadata
    for index in range(metadata.num_row_groups):
        yield Piece(source, index, index + 1, metadata.row_group(index).total_byte_size)
