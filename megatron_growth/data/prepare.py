"""Text to Megatron's indexed dataset: several workers, the same bytes whatever their number, and an atomic finish.

The work happens in `.NAME.partial` beside the output folder NAME, which carries our marker (`records/owned.py`):

1. `request.json` holds the identity of what is being prepared; leftovers of another request are discarded.
2. `build.py` writes the dataset into `result/`.
3. One rename turns `result` into the output folder.

A SIGKILL at any moment leaves either no output folder or a complete one, and the same command goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_growth import __version__
from megatron_growth.data.build import FOLDERS, build
from megatron_growth.data.manifest import FILE_NAME, Manifest, check_files, load_manifest
from megatron_growth.data.request import PrepareRequest, differences
from megatron_growth.data.sources import discover, hash_sources
from megatron_growth.data.tokenizers import load_tokenizer, resolved
from megatron_growth.errors import DataError, UserError, printable
from megatron_growth.records import owned
from megatron_growth.records.storage import fsync_path, storage_errors, write_json
from megatron_growth.records.unfinished import alone_in, discard, is_still, locked

PURPOSE = "a dataset that is being prepared"
_REQUEST = "request.json"


def prepare(request: PrepareRequest, output: Path, workers: int = 1) -> tuple[Manifest, bool]:
    """Write the dataset of `request` to the folder `output`.

    Returns its manifest, and whether anything was written (False: the identical dataset was there).

    Raises:
        DataError: the corpus, tokenizer or options are unusable, or `output` holds something else.
        StorageError: the file system refused, for example because no space was left.
    """
    output = _place(output)
    partial = output.with_name(f".{output.name}.partial")
    request = replace(request, tokenizer=resolved(request.tokenizer))
    corpus = discover(request.corpus)
    _say_what_is_skipped(corpus.skipped)
    sources = hash_sources(corpus.sources, workers)
    fingerprint = "" if request.tokenizer.train_vocab_size else load_tokenizer(request.tokenizer).fingerprint
    identity = request.identity(sources, fingerprint)
    with storage_errors(output), _lock(partial):
        manifest = _existing(output, identity)
        written = manifest is None
        if manifest is None:
            _start_or_resume(partial, identity)
            try:
                manifest = build(request, replace(corpus, sources=sources), identity, partial, workers)
            except UserError:
                if not any(entry for name in ("shards", "downloads") for entry in (partial / name).iterdir()):
                    owned.empty(partial, PURPOSE)
                raise
            os.rename(partial / "result", output)
            fsync_path(output.parent)
        owned.empty(partial, PURPOSE)
        discard(partial, PURPOSE)
    return manifest, written


def _place(output: Path) -> Path:
    """Where the dataset is put by one rename at the end: a link is followed now, because a rename would replace it.

    Raises:
        DataError: nothing can be renamed to this place.
    """
    with storage_errors(output):
        place = Path(os.path.realpath(output))
        if os.path.ismount(place):
            raise DataError(
                "Another file system is mounted here, so that no finished folder can take this place.",
                where=str(place),
                fix="Give a folder in it as --output.",
            )
    return place


def _say_what_is_skipped(skipped: dict[str, list[str]]) -> None:
    """Name on stderr, before the long work, what is not read: it may be what was wanted."""
    if not skipped:
        return
    count = sum(map(len, skipped.values()))
    print(f"not read: {'a file' if count == 1 else f'{count} files'} of the corpus", file=sys.stderr)
    for reason, names in sorted(skipped.items()):
        more = f", and {len(names) - 5} more" if len(names) > 5 else ""
        print(printable(f"  {len(names)} {reason}: {', '.join(names[:5])}{more}"), file=sys.stderr)


@contextmanager
def _lock(partial: Path) -> Iterator[None]:
    """Hold the folder of unfinished work; raises DataError when another process does, RunError when it is not ours."""
    while True:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(partial.parent):
            owned.claim(partial, PURPOSE)
            descriptor = os.open(partial, os.O_RDONLY)
        ours = False
        try:
            ours = locked(descriptor)
            if not ours:
                raise DataError(
                    "Another process is preparing this dataset.",
                    where=str(partial),
                    fix="Wait until it has ended, or give another --output.",
                )
            if not is_still(descriptor, partial):
                continue  # the process that held it has just finished and removed it
            yield
            return
        finally:
            # If nothing was begun, nothing is left behind; who holds the lock does this.
            with alone_in(partial.parent):
                if ours and is_still(descriptor, partial) and os.listdir(partial) == [owned.MARKER]:
                    owned.remove(partial, PURPOSE)
            os.close(descriptor)


def _existing(output: Path, identity: dict[str, Any]) -> Manifest | None:
    """The manifest of the same dataset at `output`, or None when nothing is there."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    fix = "Give another --output, or delete this folder."
    if not (output / FILE_NAME).is_file():
        what = "The output is there already and is not a prepared dataset."
        raise DataError(what, where=str(output), fix="Nothing in it was touched: give another --output.")
    manifest = load_manifest(output)
    lines = differences(manifest.identity, identity)
    if lines:
        more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
        listed = "".join(f"\n    {line}" for line in lines[:10] + more)
        raise DataError(f"The output holds a dataset made from something else:{listed}", where=str(output), fix=fix)
    check_files(output, manifest)
    return manifest


def _start_or_resume(partial: Path, identity: dict[str, Any]) -> None:
    """Keep the unfinished work in `partial` if it is for this identity and from this release, else start over."""
    request = partial / _REQUEST
    wanted = {"identity": identity, "release": __version__}
    try:
        found = json.loads(request.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        found = None
    if found != wanted:
        owned.empty(partial, PURPOSE)
        write_json(request, wanted)
    shutil.rmtree(partial / "result", ignore_errors=True)
    for folder in FOLDERS:
        (partial / folder).mkdir(exist_ok=True)
