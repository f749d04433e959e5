"""Random access to the tensors of a DCP directory: no tensor is loaded whole, no rank layout is assumed.

Stacked keys (layers on axis 0) and per-layer keys look the same from outside: `Source.tensors[name, moment]` has boxes
for every layer.  Data is read with `preadv` into buffers of the caller.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata

from megatron_growth.checkpoint import torch_private
from megatron_growth.checkpoint.paths import METADATA, removal_told, resolve
from megatron_growth.checkpoint.plan import Box, Range, area, reads
from megatron_growth.errors import CheckpointError
from megatron_growth.layout import parse_key
from megatron_growth.layout.parameters import LAYERS, MOMENTS, PARAMETERS
from megatron_growth.records.crc import crc32
from megatron_growth.records.human import plural
from megatron_growth.records.storage import storage_errors

OnBytes = Callable[[int, int, memoryview], None]
_CRC_BLOCK = 16 << 20
_OPTIMIZER = re.compile(r"(?:chained_\d+\.)?optimizer\b")


@dataclass(frozen=True)
class Item:
    """One stored tensor chunk: its key, its place in the global tensor, and where it lies on disk."""

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    info: torch_private.StorageInfo

    @property
    def bytes(self) -> int:
        """Bytes of the chunk's data."""
        return torch.Size(self.sizes).numel() * self.dtype.itemsize


@dataclass
class SourceTensor:
    """One parameter (or optimizer tensor) of the checkpoint, however its keys and chunks are stored.

    Attributes:
        dtype: of the stored values.
        shape: full size of one layer, (rows,) or (rows, columns).
        prefix: the part of its keys before the parameter's name (`optimizer.state.exp_avg.`), "" for weights.
        per_layer: every layer has a key of its own.
        stacked: how many layers its key should hold, 0 where layers are not stacked.
        boxes: stored rectangles by layer; the layer is None for parameters outside the layers.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    prefix: str = ""
    per_layer: bool = False
    stacked: int = 0
    boxes: dict[int | None, list[Box]] = field(default_factory=lambda: defaultdict(list))

    @property
    def columns(self) -> int:
        """Columns of the full tensor; vectors have one."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def layers(self) -> int:
        """Number of layers that have this tensor."""
        return len(self.boxes)


class Source:
    """A DCP directory, opened for reading.

    Args:
        path: a Megatron --save folder or an iter_* folder.

    Attributes:
        tensors: parameters, and optimizer tensors that show their parameter, by (name, moment).
        passed_over: keys of other optimizer state, such as the flat buckets of Megatron's distributed optimizer.

    Raises:
        CheckpointError: there is no readable checkpoint, or files that it names are missing, too short, or outside its
            folder.
        StorageError: the file system refused.
    """

    _first = METADATA  # the file that goes first when a checkpoint is removed

    def __init__(self, path: Path) -> None:
        self._begin(resolve(Path(path)))
        with removal_told(self.path):
            self.metadata = torch_private.read_metadata(self.path)
            self._index()
            self._check_sizes()

    def _begin(self, path: Path) -> None:
        """Start empty; other formats fill `items` and `tensors` in their own way."""
        self.path = path
        self.items: list[Item] = []
        self.tensors: dict[tuple[str, str | None], SourceTensor] = {}
        self.passed_over: list[str] = []
        self._files: dict[str, int] = {}
        self._located: dict[int, torch_private.StoredTensor] = {}
        self.bytes_read = 0

    # ------------------------------------------------------------------------------------------------------- structure

    def _index(self) -> None:
        by_key = defaultdict(list)
        for index, info in self.metadata.storage_data.items():
            by_key[index.fqn].append((tuple(index.offset or ()), info))
        for key, entry in self.metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                continue
            sizes = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in entry.chunks}
            # Of a tensor that is stored whole torch may leave out the offset.
            if set(sizes) == {(0,) * len(entry.size)} and len(by_key[key]) == 1:
                by_key[key] = [(next(iter(sizes)), by_key[key][0][1])]
            found = [offsets for offsets, _ in by_key[key]]
            if sorted(found) != sorted(sizes):
                raise CheckpointError(
                    f"the metadata lists {plural(len(sizes), 'chunk')} of {key}; stored: {len({*found} & {*sizes})}",
                    where=str(self.path / METADATA),
                    fix="the checkpoint was not saved completely; use another iteration",
                )
            for offsets, info in sorted(by_key[key], key=lambda pair: pair[0]):
                self._add(Item(key, offsets, sizes[offsets], entry.properties.dtype, info), entry.size)
        self._check_complete()

    def _add(self, item: Item, size: torch.Size) -> None:
        """Add one stored chunk to its parameter."""
        if item.bytes > item.info.length:
            raise CheckpointError(
                f"a chunk of {item.key} has {item.bytes} bytes, {item.info.length} are stored",
                where=str(self.path / METADATA),
                fix="the metadata is of another checkpoint; restore it from a copy",
            )
        parsed = parse_key(item.key)
        layered = parsed.name.startswith(LAYERS)
        stacked = layered and parsed.layer is None
        number = len(self.items)
        self.items.append(item)
        if parsed.moment is None and _OPTIMIZER.match(item.key):
            if item.key not in self.passed_over:
                self.passed_over.append(item.key)
            return
        shape = tuple(size[1:] if stacked else size)
        prefix = item.key[: item.key.index(LAYERS if layered else parsed.name)]
        new = SourceTensor(item.dtype, shape, prefix, parsed.layer is not None, size[0] if stacked else 0)
        tensor = self.tensors.setdefault((parsed.name, parsed.moment), new)
        offsets, sizes = (item.offsets[1:], item.sizes[1:]) if stacked else (item.offsets, item.sizes)
        if not 1 <= len(shape) <= 2 or not item.bytes:  # a scalar or the like, not a parameter
            return
        box = [(o, o + n) for o, n in zip(offsets, sizes, strict=True)]
        rows, columns = box[0], (box[1] if len(box) > 1 else (0, 1))
        first, count = (item.offsets[0], item.sizes[0]) if stacked else (parsed.layer, 1)
        for n in range(count):
            layer = None if first is None else first + n
            tensor.boxes[layer].append(Box(rows, columns, number, n * torch.Size(sizes).numel()))

    def _check_complete(self) -> None:
        """Check that every weight is stored whole, in each layer from 0 on (a method's tensors may be in some only)."""
        for (name, moment), tensor in self.tensors.items():
            if moment is not None or not 1 <= len(tensor.shape) <= 2:
                continue
            layered = name.startswith(LAYERS)
            layers = sorted(layer for layer in tensor.boxes if layer is not None)
            full = torch.Size(tensor.shape).numel()
            areas = [area(boxes) for boxes in tensor.boxes.values()]
            gap = layered and name in PARAMETERS and layers != list(range(tensor.stacked or len(layers)))
            if any(one != full for one in areas) or not areas or (gap and tensor.stacked):
                what = f"the checkpoint does not hold all of {name}"
                fix = "the checkpoint was not saved completely; use another iteration"
            elif gap:
                missing = min({*range(layers[-1])} - {*layers})
                what = f"the checkpoint has {name} in layer {layers[-1]}, and not in layer {missing}"
                fix = "a hybrid model does not grow: all layers must be alike; if they are, use another iteration"
            else:
                continue
            raise CheckpointError(what, where=str(self.path / METADATA), fix=fix)

    def _check_sizes(self) -> None:
        """Check that every file that the metadata names exists and is long enough."""
        needed: dict[str, int] = {}
        for info in self.metadata.storage_data.values():
            needed[info.relative_path] = max(needed.get(info.relative_path, 0), info.offset + info.length)
        for name, size in sorted(needed.items()):
            path = self.path / name
            with storage_errors(path):
                actual = path.stat().st_size if path.is_file() else -1
            if actual < size:
                keys = [
                    index.fqn
                    for index, info in self.metadata.storage_data.items()
                    if info.relative_path == name and info.offset + info.length > actual
                ]
                raise CheckpointError(
                    f"the file is {'missing' if actual < 0 else f'truncated: {actual} of {size} bytes'}",
                    where=f"{path} (first key lost: {keys[0]}, {len(keys)} in all)",
                    fix="restore the file, or grow from an earlier iteration",
                )

    @cached_property
    def has_optimizer(self) -> bool:
        """Whether moments of the parameters are stored by parameter."""
        return any(moment == "exp_avg" for _, moment in self.tensors)

    @property
    def buckets(self) -> list[str]:
        """Keys of the flat buckets of Megatron's distributed optimizer."""
        return [key for key in self.passed_over if "optimizer.distributed." in key]

    def was_frozen(self, name: str, layer: int | None) -> bool:
        """Whether a weight is stored without optimizer state, in a checkpoint that has some for other weights."""
        moments = (self.tensors.get((name, moment)) for moment in MOMENTS)
        return self.has_optimizer and not any(tensor is not None and layer in tensor.boxes for tensor in moments)

    def objects(self, prefix: str) -> list[str]:
        """Keys of stored objects (not tensors) that start with a prefix."""
        found = self.metadata.state_dict_metadata.items()
        return sorted(key for key, entry in found if isinstance(entry, BytesStorageMetadata) and key.startswith(prefix))

    # ---------------------------------------------------------------------------------------------------------- reading

    def _file(self, name: str) -> int:
        if name not in self._files:
            with removal_told(self.path, self._first), storage_errors(self.path / name):
                self._files[name] = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[name]

    def _pread(self, name: str, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            with storage_errors(self.path / name):
                count = os.preadv(self._file(name), [buffer[done:]], offset + done)
            if count <= 0:
                raise CheckpointError(
                    "the file ended too early", where=str(self.path / name), fix="it was truncated; restore it"
                )
            done += count
        self.bytes_read += done

    def _locate(self, number: int) -> torch_private.StoredTensor:
        if number not in self._located:
            item = self.items[number]
            path = self.path / item.info.relative_path
            try:
                with removal_told(self.path, self._first), storage_errors(path), path.open("rb") as stream:
                    found = torch_private.locate_tensor(stream, item.info, item.sizes, item.dtype)
            except ValueError as error:
                raise CheckpointError(
                    f"a stored tensor is damaged: {error}",
                    where=f"{path}, key {item.key}, offset {item.offsets}",
                    fix="restore the file, or grow from an earlier iteration",
                ) from None
            self._located[number] = found
        return self._located[number]

    def read(
        self,
        tensor: SourceTensor,
        layer: int | None,
        rows: Range,
        columns: Range,
        out: Tensor,
        seen: OnBytes | None = None,
    ) -> None:
        """Read a rectangle of one parameter into a contiguous tensor.

        Args:
            tensor: of `tensors`.
            layer: old layer, None outside the layers.
            rows, columns: half-open ranges.
            out: (rows, columns) of the tensor's dtype, contiguous.
            seen: called with the stored bytes as they are read: number of the item, offset within its tensor, bytes.

        Raises:
            CheckpointError: the checkpoint does not hold all of it, or a file is damaged.
        """
        found = reads(tensor.boxes.get(layer, []), rows, columns)
        if area(found) != out.numel():
            raise CheckpointError(f"the checkpoint lacks part of a tensor of layer {layer}", where=str(self.path))
        for part in found:
            target = out[part.rows[0] - rows[0] : part.rows[1] - rows[0]]
            self._read_part(part.box, part.rows, part.columns, target, columns[0], seen)

    def rows(self, tensor: SourceTensor, layer: int | None, rows: Range | None = None) -> Tensor:
        """Some rows of a tensor, or all of them, as they are stored: (rows, columns); raises as `read`."""
        start, stop = rows or (0, tensor.shape[0])
        out = torch.empty(stop - start, tensor.columns, dtype=tensor.dtype)
        self.read(tensor, layer, (start, stop), (0, tensor.columns), out)
        return out

    def advise(self, tensor: SourceTensor, layer: int | None, rows: Range, advice: int) -> None:
        """Tell the kernel about the file ranges of some rows: os.POSIX_FADV_WILLNEED, or DONTNEED after reading."""
        for part in reads(tensor.boxes.get(layer, []), rows, (0, tensor.columns)):
            width = (part.box.columns[1] - part.box.columns[0]) * tensor.dtype.itemsize
            start = self._locate(part.box.item).start + part.box.skip * tensor.dtype.itemsize
            start += (part.rows[0] - part.box.rows[0]) * width
            file = self._file(self.items[part.box.item].info.relative_path)
            os.posix_fadvise(file, start, (part.rows[1] - part.rows[0]) * width, advice)

    def _read_part(
        self, box: Box, rows: Range, columns: Range, target: Tensor, column0: int, seen: OnBytes | None
    ) -> None:
        width = box.columns[1] - box.columns[0]
        at = (box.skip + (rows[0] - box.rows[0]) * width) * target.itemsize
        whole = columns == box.columns and width == target.shape[1]
        stored = target if whole else torch.empty(rows[1] - rows[0], width, dtype=target.dtype)
        data = memoryview(stored.view(torch.uint8).numpy()).cast("B")
        self._pread(self.items[box.item].info.relative_path, self._locate(box.item).start + at, data)
        if seen is not None:
            seen(box.item, at, data)
        if whole:
            return
        target[:, columns[0] - column0 : columns[1] - column0].copy_(
            stored[:, columns[0] - box.columns[0] : columns[1] - box.columns[0]]
        )

    def object_bytes(self, key: str) -> bytes:
        """The stored bytes of one object."""
        for index, info in self.metadata.storage_data.items():
            if index.fqn == key:
                data = bytearray(info.length)
                self._pread(info.relative_path, info.offset, memoryview(data))
                return bytes(data)
        raise CheckpointError(f"the checkpoint has no object {key!r}", where=str(self.path))

    def stored_checksum(self, number: int) -> int:
        """The checksum that the writer stored beside one chunk."""
        return self._locate(number).crc32

    def check_items(self, numbers: Sequence[int]) -> Iterator[int]:
        """Compare stored chunks with the checksums that their writer stored; yields the number of each correct one.

        The kernel reads the next chunk ahead while the checksum of one is computed.

        Raises:
            CheckpointError: a bit differs; names the file and the key.
        """
        for number, following in zip_longest(numbers, numbers[1:]):
            if following is not None:
                item, found = self.items[following], self._locate(following)
                os.posix_fadvise(self._file(item.info.relative_path), found.start, found.bytes, os.POSIX_FADV_WILLNEED)
            self.compare_checksum(number, self.checksum_of(number, (0, self._locate(number).bytes)))
            yield number

    def checksum_of(self, number: int, part: Range) -> int:
        """The CRC-32 of a range of one chunk's bytes, read now."""
        item, found = self.items[number], self._locate(number)
        crc, buffer = 0, bytearray(min(_CRC_BLOCK, part[1] - part[0]))
        for at in range(*part, _CRC_BLOCK):
            block = memoryview(buffer)[: min(_CRC_BLOCK, part[1] - at)]
            self._pread(item.info.relative_path, found.start + at, block)
            crc = crc32(block, crc)
        return crc

    def compare_checksum(self, number: int, crc: int) -> None:
        """Compare the checksum of one chunk's bytes with the stored one.

        Raises:
            CheckpointError: a bit differs; names the file and the key.
        """
        item, found = self.items[number], self._locate(number)
        if found.crc32 and crc != found.crc32:
            raise CheckpointError(
                "a stored tensor is corrupt: its checksum differs",
                where=f"{self.path / item.info.relative_path}, key {item.key}, offset {item.offsets}",
                fix="restore the file, or grow from an earlier iteration",
            )

    def close(self) -> None:
        """Close every file."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
