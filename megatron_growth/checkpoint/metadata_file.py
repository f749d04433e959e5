"""The `.metadata` of a checkpoint in torch's distributed format, read from an allow-list and checked, without torch.

A command that only asks whether a checkpoint is whole needs the places of its pieces and no tensors; importing torch
would cost it seconds and memory.  `read_bare` loads passive objects that hold what the file says; `torch_private` loads
torch's own.  Both go through `read`, so that one rule decides what is damaged.
"""

from __future__ import annotations

import enum
import io
import pickle
import re
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path, PosixPath
from typing import Any

from megatron_growth.errors import CheckpointError
from megatron_growth.records.storage import inside, storage_errors

Resolve = Callable[[str, str], Any]
# What a `.metadata` file may name, dtypes aside.  Enough for every checkpoint that torch and Megatron write.
CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath"},
    "torch": {"Size"},
}
LAYOUTS = frozenset(
    f"torch.{name}"
    for name in ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "jagged", "_mkldnn")
)


class Damaged(CheckpointError):
    """The metadata was read, and is proven not to be what a checkpoint holds."""


class Unlisted(Exception):
    """A name that does not belong in metadata."""


def read(directory: Path, resolve: Resolve) -> Any:
    """The metadata of a checkpoint's folder; `resolve` returns what (module, name) stands for, or raises Unlisted.

    Raises:
        Damaged: the file was read, but is not valid metadata.
        CheckpointError: it is missing, or names an unknown class, or a file outside the checkpoint.
        StorageError: the file system refused; nothing is known about the checkpoint.
    """
    path = directory / ".metadata"
    data = _bytes_of(path)
    try:
        metadata = _Unpickler(data, resolve).load()
        problem = _problem_of(metadata, resolve)
    except Unlisted as error:
        raise CheckpointError(
            f"the checkpoint's metadata is not plain metadata: {error}",
            where=str(path),
            fix="restore it from a copy that you trust, or save the checkpoint again",
        ) from None
    except Exception as error:  # bytes that are not a pickle raise almost anything
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise Damaged(
            f"the checkpoint's metadata is damaged: {problem}", where=str(path), fix="restore it from another copy"
        )
    for name in sorted({info.relative_path for info in metadata.storage_data.values()}):
        if not inside(directory, name):
            raise CheckpointError(
                f"the checkpoint names a file outside its folder: {name!r}",
                where=str(path),
                fix="do not use this checkpoint, unless you moved its files and left links: then put them back",
            )
    return metadata


def _bytes_of(path: Path) -> bytes:
    with storage_errors(path):
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise CheckpointError("the checkpoint's metadata is not a regular file", where=str(path))
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(
                "there is no checkpoint here",
                where=str(path),
                fix="name the folder given to Megatron's --save, or one of its iter_* folders "
                "(--ckpt-format torch_dist)",
            ) from None


class _Unpickler(pickle.Unpickler):
    """Loads what `resolve` returns and nothing else."""

    def __init__(self, data: bytes, resolve: Resolve) -> None:
        super().__init__(io.BytesIO(data))
        self._resolve = resolve

    def find_class(self, module: str, name: str) -> Any:
        return self._resolve(module, name)


def _problem_of(metadata: Any, resolve: Resolve) -> str | None:
    """What in unpickled metadata is not as torch writes it; half-built objects may raise anything."""
    names = ("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata")
    whole, place, tensor, other = (resolve("torch.distributed.checkpoint.metadata", name) for name in names)
    file, dtype = resolve("torch.distributed.checkpoint.filesystem", "_StorageInfo"), type(resolve("torch", "float32"))
    if not isinstance(metadata, whole):
        return f"it holds a {type(metadata).__name__}"
    if not isinstance(metadata.state_dict_metadata, dict) or not isinstance(metadata.storage_data, dict):
        return "it has no list of what is stored"
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(key, str) or not isinstance(entry, (tensor, other)):
            return f"{key!r} is described by a {type(entry).__name__}"
        if isinstance(entry, tensor) and not _is_tensor(entry, dtype):
            return f"the sizes of {key} contradict each other"
    for index, info in metadata.storage_data.items():
        if not isinstance(index, place) or not isinstance(info, file) or not isinstance(index.fqn, str):
            return "an entry of its list of files is of another kind"
        numbers = (info.offset, info.length, *(index.offset or ()))
        if not isinstance(info.relative_path, str) or not _are_counts(numbers):
            return f"the place of {index.fqn} is not a place in a file"
    return None


def _are_counts(numbers: Iterable[Any]) -> bool:
    return all(type(n) is int and n >= 0 for n in numbers)


def _is_tensor(entry: Any, dtype: type) -> bool:
    """Whether a tensor has a dtype, and its chunks lie inside it."""
    if not isinstance(entry.properties.dtype, dtype) or not _are_counts(entry.size):
        return False
    for chunk in entry.chunks:
        if not len(chunk.offsets) == len(chunk.sizes) == len(entry.size):
            return False
        if not (_are_counts(chunk.offsets) and _are_counts(chunk.sizes)):
            return False
        if any(o + n > all_ for o, n, all_ in zip(chunk.offsets, chunk.sizes, entry.size, strict=True)):
            return False
    return True


# ------------------------------------------------------------------------------------------------------- without torch


class _Bare:
    """One of torch's objects as its pickle describes it: attributes without methods."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _Index(_Bare):
    offset = None  # the file leaves it out where it is None


class _Properties(_Bare):
    def __setstate__(self, state: Any) -> None:
        self.dtype, self.layout, self.requires_grad, self.memory_format, self.pin_memory = state
        if not isinstance(self.memory_format, _MemoryFormat):
            raise TypeError("a tensor has an unknown memory format")


class _MemoryFormat(enum.Enum):
    CONTIGUOUS, CHANNELS_LAST, PRESERVE = range(3)


class _Size(tuple):
    """torch.Size."""

    def __new__(cls, numbers: Iterable[Any] = ()) -> _Size:
        made = super().__new__(cls, numbers)
        if not all(type(number) is int for number in made):
            raise TypeError("a size is made of whole numbers")
        return made


def _layout(name: str) -> str:
    """torch.layout, by its name."""
    if name not in LAYOUTS:
        raise TypeError(f"no layout is called {name!r}")
    return name


class _DType(str):
    """A torch.dtype, by its name."""


_BARE: dict[str, Any] = {
    "Metadata": type("Metadata", (_Bare,), {}),
    "MetadataIndex": _Index,
    "_StorageInfo": type("Info", (_Bare,), {}),
    "TensorStorageMetadata": type("Tensor", (_Bare,), {}),
    "BytesStorageMetadata": type("Other", (_Bare,), {}),
    "ChunkStorageMetadata": type("Chunk", (_Bare,), {}),
    "StorageMeta": type("Save", (_Bare,), {}),
    "TensorProperties": _Properties,
    "_MEM_FORMAT_ENCODING": _MemoryFormat,
    "_get_layout": _layout,
    "Size": _Size,
    "OrderedDict": OrderedDict,
    "Path": Path,
    "PosixPath": PosixPath,
}
_DTYPE = re.compile(r"bool|(?:bfloat|float|complex|q?u?int|bits)\d\w*")


def bare(module: str, name: str) -> Any:
    """The stand-in for a name in the file; for a dtype, its name.

    Raises:
        Unlisted: the name does not belong in metadata.
    """
    if name in CLASSES.get(module, ()):
        return _BARE[name]
    if module == "torch" and _DTYPE.fullmatch(name):
        return _DType(name)
    raise Unlisted(f"{module}.{name} is not part of a checkpoint's metadata")


def read_bare(directory: Path) -> Any:
    """The metadata of a checkpoint's folder with attributes named as torch names them; raises what `read` raises."""
    return read(directory, bare)
