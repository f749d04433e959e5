"""What a corpus consists of: files found and hashed, and cut into pieces that workers read independently.

The pieces depend on the inputs only, never on the number of workers, so the dataset does not either.  A plain JSONL
file is cut at any byte (a line belongs to the piece that holds its first byte), a Parquet file at its row groups; a
compressed or text file is one piece.  Files of a folder that are not read are counted and named.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from megatron_growth.data import corpora, hub
from megatron_growth.data.hub_address import PREFIX
from megatron_growth.data.manifest import FILE_NAME as MANIFEST
from megatron_growth.data.parquet import row_groups
from megatron_growth.data.pieces import COMPRESSED, JSONL, TEXT, Corpus, InputFile, Piece, format_of, reading
from megatron_growth.errors import DataError
from megatron_growth.records.packing import packed
from megatron_growth.records.storage import sha256_of

MIB = 1 << 20
# Shards of one file of the hub, which is a whole batch: enough of them for many workers, but not a million.
HUB_SHARD = 64 * MIB


def discover(inputs: Sequence[str]) -> Corpus:
    """The sources of files, folders, built-in corpora and data sets of the hub, in the order given and by name inside
    each, and what of them is not read.

    Raises DataError for a path that does not exist or a folder without a file of a known kind.
    """
    sources: list[InputFile] = []
    skipped: dict[str, list[str]] = {}
    for number, given in enumerate(inputs):
        found = _input(given)
        # Two inputs may hold files of the same name.
        several = len(inputs) > 1
        sources += [replace(one, name=f"{number}/{one.name}") if several else one for one in found.sources]
        for reason, names in found.skipped.items():
            skipped.setdefault(reason, []).extend(names)
    return Corpus(sources, skipped)


def _input(given: str) -> Corpus:
    if given in corpora.CORPORA:
        return Corpus(_builtin(given), {})
    if given.startswith(PREFIX):
        return hub.listing(given)
    path = Path(given)
    with reading(given):
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            return Corpus([_file(path, path.name, format_of(path) or "text")], {})
        if path.exists():
            raise DataError(
                "This is neither a file nor a folder.", where=given, fix="Give a file; write a stream to one first."
            )
    raise corpora.unknown(given)


def _file(path: Path, name: str, kind: str) -> InputFile:
    if kind == "text" and path.suffix.lower() in COMPRESSED:
        raise DataError(
            "A compressed file must be JSONL.",
            where=str(path),
            fix="Name it .jsonl.gz or .jsonl.zst if it is, or decompress the text.",
        )
    return InputFile.of(path, name, kind)


def _folder(folder: Path) -> Corpus:
    found: list[InputFile] = []
    skipped: dict[str, list[str]] = {}
    for path in _walk(folder, skipped):
        name = path.relative_to(folder)
        if path.is_symlink() and not path.exists() and format_of(path):
            raise DataError(
                "This link leads nowhere.", where=str(path), fix="Repair the link, or remove it from the folder."
            )
        if not path.is_file():
            skipped.setdefault("neither file nor folder", []).append(name.as_posix())
        elif path.name.startswith("."):
            skipped.setdefault("hidden", []).append(name.as_posix())
        elif kind := format_of(path):
            found.append(_file(path, name.as_posix(), kind))
        else:
            skipped.setdefault(_ending(path), []).append(name.as_posix())
    if not found:
        seen = ", ".join(f"{len(names)} {reason}" for reason, names in skipped.items()) or "no files"
        raise DataError(
            f"The folder holds no text, JSONL or Parquet file ({seen}).",
            where=str(folder),
            fix=f"Known endings: {' '.join((*TEXT, *JSONL, '.parquet'))}, and .gz or .zst after a JSONL ending.",
        )
    return Corpus(found, skipped)


def _ending(path: Path) -> str:
    """`.bz2`, `.txt.gz`, or `(no ending)`."""
    last = path.suffixes[-2:] if path.suffix.lower() in COMPRESSED else path.suffixes[-1:]
    return "".join(last) or "(no ending)"


def _walk(folder: Path, skipped: dict[str, list[str]]) -> Iterator[Path]:
    """Every file below `folder`, by name; links to folders are followed, once.

    Raises DataError for a folder that may not be read: what it holds would silently be missing.
    """

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    files: list[Path] = []
    for at, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(at)
        if real in seen:
            folders.clear()
            skipped.setdefault("a folder that was read before", []).append(Path(at).relative_to(folder).as_posix())
            continue
        seen.add(real)
        if {MANIFEST, "train.idx"} <= set(names):
            folders.clear()
            skipped.setdefault("a prepared dataset", []).append(Path(at).relative_to(folder).as_posix() + "/")
            continue
        hidden = [name for name in folders if name.startswith(".")]
        for name in hidden:
            skipped.setdefault("hidden", []).append((Path(at, name).relative_to(folder)).as_posix() + "/")
        folders[:] = sorted(name for name in folders if name not in hidden)
        files += [Path(at, name) for name in names]
    return iter(sorted(files, key=lambda path: path.relative_to(folder).as_posix()))


def _builtin(corpus: str) -> list[InputFile]:
    texts = json.dumps(corpora.stdlib_topics()).encode()
    topics = InputFile(f"{corpus}/pydoc-topics", "", "topics", len(texts), hashlib.sha256(texts).hexdigest())
    return [topics, *(_file(path, f"{corpus}/{name}", "text") for name, path in corpora.sources_of(corpus))]


def hash_sources(sources: Sequence[InputFile], threads: int) -> list[InputFile]:
    """The same sources with their SHA-256; files are read by several threads."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        digests = pool.map(_digest, sources)
        return [replace(source, sha256=digest) for source, digest in zip(sources, digests, strict=True)]


def _digest(source: InputFile) -> str:
    if source.sha256:
        return source.sha256
    with reading(source.path):
        digest = sha256_of(Path(source.path))
    source.require_unchanged()
    return digest


def shard_bytes(total: int) -> int:
    """Bytes of input per shard: 1/256 of the corpus, at least 1 MiB and at most 256 MiB."""
    return min(max(total // 256, MIB), 256 * MIB)


def shards(sources: Sequence[InputFile], limit: int = 0) -> list[tuple[Piece, ...]]:
    """All pieces in order, grouped into shards of about `limit` bytes each, or of `shard_bytes`."""
    limit = limit or shard_bytes(sum(source.bytes for source in sources))
    pieces = (piece for source in sources for piece in _pieces(source, limit))
    return list(packed(pieces, lambda piece: piece.bytes, limit))


def _pieces(source: InputFile, limit: int) -> Iterator[Piece]:
    if source.format == "parquet":
        for index, size in enumerate(row_groups(source.path)):
            yield Piece(source, index, index + 1, size)
    elif source.format == "topics":
        yield Piece(source, 0, len(corpora.stdlib_topics()), source.bytes)
    elif source.format == "jsonl" and not source.is_compressed:
        for begin in range(0, source.bytes, limit):
            end = min(begin + limit, source.bytes)
            yield Piece(source, begin, end, end - begin)
    else:
        yield Piece(source, 0, source.bytes, source.bytes)
