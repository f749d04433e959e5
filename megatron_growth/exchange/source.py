"""A Hugging Face folder behind the reading interface of a Megatron checkpoint, so that growth reads both alike.

Every tensor of the folder is one stored item.  A Megatron parameter consists of rectangles of such items: the fused QKV
of a model with G groups of 3 G.  Nothing is converted or copied ahead; bytes are read where growth asks for them.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import torch

from megatron_growth.checkpoint.metadata import COMMON
from megatron_growth.checkpoint.plan import Box
from megatron_growth.checkpoint.source import Item, Source, SourceTensor
from megatron_growth.checkpoint.torch_private import StorageInfo, StoredTensor
from megatron_growth.errors import CheckpointError
from megatron_growth.exchange.config import from_config, imported_family
from megatron_growth.exchange.folder import CONFIG
from megatron_growth.exchange.names import NamedRows, pieces
from megatron_growth.exchange.safetensors_files import StoredRange, read_folder
from megatron_growth.layout.parameters import ATTENTION, EMBEDDING, MLP, dimensions
from megatron_growth.records.human import plural
from megatron_growth.records.storage import doubts_as_refusals, parse_json

_LINEARS = (ATTENTION + "linear_qkv", ATTENTION + "linear_proj", MLP + "linear_fc1", MLP + "linear_fc2")
_SAMPLE_BYTES = 1 << 16
# Rotary frequencies that old conversions stored; they follow from the configuration.
_DERIVED = ("rotary_emb.inv_freq",)
_HEAD = "lm_head.weight"


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        CheckpointError: it is missing, or not a JSON object.
        StorageError: the file system failed.
    """
    path = folder / CONFIG
    try:
        with doubts_as_refusals(path):
            config = parse_json(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"no Hugging Face model can be read here: {error.strerror}",
            where=str(path),
            fix="name a folder with config.json and safetensors weights",
        ) from None
    except ValueError as error:
        raise CheckpointError(f"config.json is damaged: {error}", where=str(path)) from None
    if not isinstance(config, dict):
        raise CheckpointError("config.json is not a JSON object", where=str(path))
    return config


class HuggingFaceSource(Source):
    """A folder with config.json and safetensors, opened for reading as if Megatron had saved it.

    Raises:
        CheckpointError: files are missing or cut off, or contradict config.json.
        UnsupportedError: Megatron has no counterpart of the architecture.
    """

    _first = CONFIG

    def __init__(self, path: Path) -> None:
        self._begin(Path(path))
        config, where = read_config(self.path), str(self.path / CONFIG)
        self.shape, self.arguments = from_config(config, where)
        stored = read_folder(self.path)
        for piece in pieces(imported_family(config, where), self.shape):
            self._add_piece(piece, stored)
        self._check_tied(stored)
        known = {item.key for item in self.items}
        surplus = [name for name in stored if name not in known and not self._derived(name)]
        if surplus:
            raise CheckpointError(
                f"{plural(len(surplus), 'tensor')} too many for config.json's model: {', '.join(sorted(surplus)[:3])}",
                where=str(self.path),
                fix="config.json and weights belong to different models, or the architecture is not supported",
            )

    def _derived(self, name: str) -> bool:
        return name.endswith(_DERIVED) or (name == _HEAD and self.shape.tied_embeddings)

    def _check_tied(self, stored: dict[str, StoredRange]) -> None:
        """Refuse an output layer of its own in a model that is said to have none; transformers would use it."""
        head = stored.get(_HEAD)
        if head is None or not self.shape.tied_embeddings:
            return
        number = self.tensors[EMBEDDING, None].boxes[None][0].item
        item, info = self.items[number], StorageInfo(head.file.name, head.start, head.bytes)
        alike = (item.dtype, item.sizes) == (head.dtype, head.shape)
        if not alike or self.stored_checksum(number) != self._sampled_checksum(info):
            raise CheckpointError(
                f"config.json ties the embeddings, but {_HEAD} differs from {item.key}",
                where=str(self.path),
                fix=f"set tie_word_embeddings to false in {CONFIG}, or remove {_HEAD} from the weights",
            )

    def _add_piece(self, piece: NamedRows, stored: dict[str, StoredRange]) -> None:
        found = stored.get(piece.name)
        if found is None or found.shape != piece.shape:
            raise CheckpointError(
                f"{piece.name} is {'missing' if found is None else list(found.shape)}; "
                f"config.json asks for {list(piece.shape)}",
                where=str(self.path),
                fix="config.json and weights belong to different models; restore the folder",
            )
        number = len(self.items)
        info = StorageInfo(found.file.name, found.start, found.bytes)
        self.items.append(Item(piece.name, (0,) * len(found.shape), found.shape, found.dtype, info))
        self._located[number] = StoredTensor(found.start, found.bytes, 0)
        key = (piece.parameter.name, None)
        tensor = self.tensors.setdefault(key, SourceTensor(found.dtype, dimensions(piece.parameter, self.shape)))
        if tensor.dtype != found.dtype:
            raise CheckpointError(
                f"{piece.name} is {found.dtype}, other parts of the same parameter are {tensor.dtype}",
                where=str(found.file),
                fix="save the model in one precision",
            )
        columns, skip = (0, piece.columns or 1), 0
        for rows in piece.ranges:
            tensor.boxes[piece.layer].append(Box(rows, columns, number, skip))
            skip += (rows[1] - rows[0]) * columns[1]

    def objects(self, prefix: str) -> list[str]:
        """The common state, made from config.json, and the empty extra state that Megatron expects of linear layers."""
        layers = range(self.shape.layers)
        extra = [f"{name}._extra_state/shard_{n}_{self.shape.layers}" for name in _LINEARS for n in layers]
        return sorted(key for key in (COMMON, *extra) if key.startswith(prefix))

    def object_bytes(self, key: str) -> bytes:
        """An object as Megatron pickles it."""
        if key not in self.objects(key):
            raise CheckpointError(f"the folder has no object {key!r}", where=str(self.path))
        common = {"args": self.arguments, "iteration": 0, "checkpoint_version": 3.0}
        buffer = io.BytesIO()
        torch.save([common] if key == COMMON else [None], buffer)
        return buffer.getvalue()

    def stored_checksum(self, number: int) -> int:
        """A CRC-32 of the start, middle and end of a tensor, which tells two models apart; safetensors store none."""
        return self._sampled_checksum(self.items[number].info)

    def _sampled_checksum(self, info: StorageInfo) -> int:
        crc = 0
        for at in (0, info.length // 2, max(0, info.length - _SAMPLE_BYTES)):
            data = bytearray(min(_SAMPLE_BYTES, info.length - at))
            self._pread(info.relative_path, info.offset + at, memoryview(data))
            crc = zlib.crc32(data, crc)
        return crc
