"""Hashes of the files that a run starts from: the model, its tokenizer, the chat template.

A request names folders, whose content may change.  Of a Megatron checkpoint, which may be large, only `.metadata` and
`common.pt` are hashed: torch writes an id of the save into the first, Megatron all arguments into the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from megatron_growth.checkpoint.paths import METADATA, resolve
from megatron_growth.errors import CheckpointError, RunError
from megatron_growth.exchange.folder import is_huggingface
from megatron_growth.posttrain.base_model import OURS
from megatron_growth.posttrain.request import Request
from megatron_growth.records.storage import sha256_of, storage_errors

FILE_NAME = "inputs.json"
_MODEL, _TOKENIZER, _TEMPLATE = "model", "tokenizer", "chat template"
_CHECKPOINT_FILES = (METADATA, "common.pt")
_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
_MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors*", "pytorch_model*", *_TOKENIZER_FILES)


def fingerprints(request: Request) -> dict[str, str]:
    """SHA-256 of every file that the trained model depends on, besides its examples; keys are `PART: FILE`.

    Raises:
        StorageError: a file cannot be read.
    """
    return {f"{part}: {name}": digest for part, now in _hashes(request).items() for name, digest in now.items()}


def check_unchanged(known: Mapping[str, str], request: Request, where: Path, *, model: bool = True) -> None:
    """Refuse a model, a tokenizer or a chat template that is not that of an earlier command.

    Parts whose files no longer exist are not checked.

    Args:
        known: the earlier command's `fingerprints`.
        where: the earlier command's result.
        model: whether to check the model, which no longer matters once a checkpoint has been exported.

    Raises:
        RunError: with the name of a file that differs.
    """
    given = {_MODEL: request.model, _TOKENIZER: request.tokenizer, _TEMPLATE: request.chat_template}
    for part, now in _hashes(request, model=model).items():
        refuse_change(f"the {part} is", under(f"{part}: ", known), now, where, given[part])


def under(prefix: str, known: Mapping[str, str]) -> dict[str, str]:
    """The hashes whose names begin with a prefix, by what follows it."""
    return {name.removeprefix(prefix): digest for name, digest in known.items() if name.startswith(prefix)}


def refuse_change(what: str, before: Mapping[str, str], now: Mapping[str, str], made: Path, where: str) -> None:
    """Refuse files that are not those that an earlier command's result, `made`, was made from.

    Args:
        what: begins the sentence: "the model is".
        before, now: SHA-256 of every file, by its name.

    Raises:
        RunError: with the name of the first file that differs.
    """
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            change = "has gone" if name not in now else "was not there" if name not in before else "has changed"
            raise RunError(
                f"{what} not what {made.name} was made from: {name}: it {change}",
                where=where,
                fix="name another folder with --output, or restore the file",
            )


def _hashes(request: Request, *, model: bool = True) -> dict[str, dict[str, str]]:
    """SHA-256 by file name of every part that has files."""
    found: dict[str, dict[str, str]] = {}
    for part, files in _files(request).items():
        for file in files if model or part != _MODEL else ():
            with storage_errors(file):
                found.setdefault(part, {})[file.name] = sha256_of(file)
    return found


def _files(request: Request) -> dict[str, list[Path]]:
    """The files of every part, in order of their names."""
    model, tokenizer = Path(request.model), Path(request.tokenizer)
    found: dict[str, list[Path]] = {_MODEL: [], _TOKENIZER: [], _TEMPLATE: []}
    if is_huggingface(model):
        found[_MODEL] = _matching(model, _MODEL_FILES)
    else:
        with suppress(CheckpointError):  # it is gone, but its export may exist
            found[_MODEL] = [file for name in _CHECKPOINT_FILES if (file := resolve(model) / name).is_file()]
    if request.tokenizer and tokenizer.is_dir():
        found[_TOKENIZER] = _matching(tokenizer, _TOKENIZER_FILES)
    elif request.tokenizer and tokenizer.is_file():
        found[_TOKENIZER] = [tokenizer]
    if request.chat_template not in ("", OURS) and Path(request.chat_template).is_file():
        found[_TEMPLATE] = [Path(request.chat_template)]
    return found


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    with storage_errors(folder):
        return sorted(
            file for file in folder.iterdir() if file.is_file() and any(fnmatch(file.name, one) for one in patterns)
        )
