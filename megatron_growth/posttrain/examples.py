"""From what --data names to train.jsonl and valid.jsonl in the work folder: read, checked, counted, split.

A file ends with .jsonl, .ndjson, .json or .parquet (JSON also with .gz or .zst); a folder stands for all such files in
it, sorted by name; `hf:OWNER/NAME[:CONFIG]/SPLIT` is a data set of the hub.  The split depends only on the seed and the
number of examples.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_growth.data import compressed
from megatron_growth.data.hub_address import PREFIX
from megatron_growth.data.pieces import COMPRESSED, InputFile, format_of, reading
from megatron_growth.data.sources import hash_sources
from megatron_growth.errors import DataError, GrowthError
from megatron_growth.posttrain.inputs import refuse_change, under
from megatron_growth.posttrain.presets import Kind
from megatron_growth.posttrain.rows import Skipped, check_columns, example
from megatron_growth.records.human import plural
from megatron_growth.records.storage import atomic_path, parse_json, storage_errors, write_json

TRAIN, VALID, RECORD = "train.jsonl", "valid.jsonl", "examples.json"
_ALL = "all.jsonl"
_MOST_NAMES = 5
_HELD_OUT = "held out: "


@dataclass(frozen=True)
class Examples:
    """What was made of the data, `source` as it was given.

    Attributes:
        files: SHA-256 of every file, by its name.
        train, valid: numbers of examples to train on, and held out.
        skipped: numbers of examples with nothing to learn from, by reason.
        unread: names of everything beside the files that was not read.
    """

    source: str
    files: dict[str, str]
    train: int
    valid: int
    skipped: dict[str, int]
    unread: list[str] = field(default_factory=list)


def files_of(given: str, folder: Path) -> tuple[list[Path], list[str]]:
    """The files that --data names, those of the hub fetched into `folder`; and the names of others that are not read.

    Raises:
        DataError: there are no files, or the hub cannot be reached.
        UnsupportedError: the hub's client is not installed.
    """
    if given.startswith(PREFIX):
        return _of_the_hub(given, folder)
    path = Path(given)
    if not path.exists():
        hint = f"hf:{given} reads it from the hub" if given.count("/") == 1 and not path.suffix else ""
        raise DataError(
            f"there is no {given}", where="--data", fix=hint or "give a file, a folder, or hf:OWNER/NAME/SPLIT"
        )
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [file for file in inside if file.is_file() and format_of(file) in ("jsonl", "parquet")]
    if not found:
        raise DataError(
            f"{given} is not a file of examples",
            where="--data",
            fix="give .jsonl, .json or .parquet, or a folder of them",
        )
    return found, [file.name for file in inside if file not in found]


def _of_the_hub(given: str, folder: Path) -> tuple[list[Path], list[str]]:
    from megatron_growth.data import hub

    try:
        listing = hub.listing(given)
        unread = [f"{name} ({reason})" for reason, names in listing.skipped.items() for name in names]
        return [Path(hub.fetch(source, folder).path) for source in listing.sources], unread
    except GrowthError as error:
        error.where = error.where.replace("--corpus", "--data")
        raise


def prepare(given: str, kind: Kind, *, valid: float, seed: int, folder: Path, valid_data: str = "") -> Examples:
    """Write the examples into `folder`, unless they are there.

    Args:
        given: what --data names.
        valid: share to hold out; at least one example where it is above 0.
        folder: created; another call with the same arguments finds the result in it.
        valid_data: what --valid-data names: the held-out examples, instead of a share.

    Raises:
        DataError: columns or types are wrong, with the line; or there is nothing to train on.
        RunError: the result in the folder was made from files that have changed since.
    """
    record = folder / RECORD
    if record.is_file():
        found = Examples(**json.loads(record.read_text("utf-8")))
        check_unchanged(found.files, given, valid_data, folder)
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with storage_errors(folder):
        files, unread = files_of(given, folder / "hub")
        seen = _inputs(files)
        count, skipped = _write(files, kind, folder / _ALL)
        if valid_data:
            more, others = files_of(valid_data, folder / "hub-valid")
            seen += _inputs(more, _HELD_OUT)
            held_out, left_out = _write(more, kind, folder / VALID)
            skipped.update({f"{reason}, of those to hold out": number for reason, number in left_out.items()})
            unread = [*unread, *others]
            (folder / _ALL).replace(folder / TRAIN)
        else:
            held_out = _split(folder, count, valid, seed)
            count -= held_out
        if count < 1 or (valid_data and not held_out):
            reasons = ", ".join(f"{number} with {reason}" for reason, number in skipped.items())
            raise DataError(
                f"no example is left to {'hold out' if count else 'train on'}{f' ({reasons})' if reasons else ''}",
                where=valid_data if count else given,
                fix="give more examples, or hold out fewer with --valid-share",
            )
        found = Examples(given, _hashes(seen), count, held_out, dict(skipped), unread)
        write_json(record, asdict(found))
    return found


def check_unchanged(known: Mapping[str, str], given: str, valid_data: str, where: Path) -> None:
    """Refuse files that differ from those of an earlier command, whose result would be taken for theirs.

    Files of the hub, and what no longer exists at all, are not checked.

    Args:
        known: SHA-256 of every file, by its name.
        given, valid_data: what --data and --valid-data name.
        where: the earlier command's result.

    Raises:
        RunError: with the name of a file that differs.
    """
    held_out = under(_HELD_OUT, known)
    trained = {name: digest for name, digest in known.items() if not name.startswith(_HELD_OUT)}
    for what, before, path in (("examples", trained, given), ("held-out examples", held_out, valid_data)):
        if path and not path.startswith(PREFIX) and Path(path).exists():
            refuse_change(f"the {what} are", before, _hashes(_inputs(files_of(path, where)[0])), where, path)


def _inputs(files: Iterable[Path], prefix: str = "") -> list[InputFile]:
    """Files as they are now; the prefix tells those to hold out from others of the same name."""
    return [InputFile.of(file, prefix + file.name, "") for file in files]


def _hashes(files: list[InputFile]) -> dict[str, str]:
    """SHA-256 of files by their names; DataError for one that has changed since it was found."""
    return {file.name: file.sha256 for file in hash_sources(files, 1)}


def _split(folder: Path, count: int, share: float, seed: int) -> int:
    """Spread all examples over the two files; returns how many are held out."""
    import numpy as np

    number = max(1, round(count * share)) if share else 0
    chosen = set(np.random.default_rng(seed).permutation(count)[:number].tolist())
    with (
        open(folder / _ALL, encoding="utf-8") as everything,
        atomic_path(folder / TRAIN) as train,
        atomic_path(folder / VALID) as held_out,
        open(train, "w", encoding="utf-8") as first,
        open(held_out, "w", encoding="utf-8") as second,
    ):
        for position, line in enumerate(everything):
            (second if position in chosen else first).write(line)
    (folder / _ALL).unlink()
    return number


def _write(files: list[Path], kind: Kind, target: Path) -> tuple[int, Counter[str]]:
    count, skipped = 0, Counter[str]()
    with atomic_path(target) as temporary, open(temporary, "w", encoding="utf-8") as out:
        for file in files:
            for number, record in enumerate(_records(file, kind), 1):
                try:
                    row = example(record, kind, f"{file}, example {number}")
                except Skipped as reason:
                    skipped[str(reason)] += 1
                    continue
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    return count, skipped


def _records(file: Path, kind: Kind) -> Iterator[dict[str, Any]]:
    with reading(file):
        if format_of(file) == "parquet":
            yield from _parquet(file, kind)
            return
        packed = file.suffix.lower() in COMPRESSED
        with compressed.opened(str(file)) if packed else open(file, "rb") as stream:
            for record, where in _lines(stream, file):
                if not isinstance(record, dict):
                    what = f"an example is not an object but {type(record).__name__}"
                    raise DataError(what, where=where, fix="write one object each")
                yield record


def _lines(stream: Any, file: Path) -> Iterator[tuple[Any, str]]:
    """(value, where it stands) of each line, or of each entry where the file is one list, as Alpaca's is."""
    if stream.peek(64).lstrip()[:1] == b"[":
        yield from ((entry, str(file)) for entry in _json(stream.read(), str(file)))
        return
    for number, line in enumerate(stream, 1):
        if line.strip():
            where = f"{file}, line {number}"
            yield _json(line, where), where


def _json(text: bytes, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", where=where, fix="repair it, or fetch it again") from None


def _parquet(file: Path, kind: Kind) -> Iterator[dict[str, Any]]:
    from megatron_growth.data.parquet import damage, open_parquet

    parquet = open_parquet(str(file))
    names = list(parquet.schema_arrow.names)
    check_columns(dict.fromkeys(names), kind, str(file))
    wanted = ("messages",) if "messages" in names else ("instruction", "input", "output")
    columns = wanted if kind == "sft" else ("prompt", "chosen", "rejected")
    with damage(str(file)):
        for batch in parquet.iter_batches(columns=[name for name in columns if name in names]):
            yield from batch.to_pylist()


def in_words(found: Examples) -> str:
    """One line for people."""
    skipped = ", ".join(f"{number:,} skipped ({reason})" for reason, number in found.skipped.items())
    unread = ", ".join(found.unread[:_MOST_NAMES]) + (", ..." if len(found.unread) > _MOST_NAMES else "")
    parts = [
        plural(found.train, "example"),
        f"{found.valid:,} held out" if found.valid else "",
        skipped,
        f"{plural(len(found.unread), 'file')} not read ({unread})" if unread else "",
    ]
    return ", ".join(filter(None, parts))
