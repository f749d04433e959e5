"""Checkpoints made by hand: whole tensors cut into chunks as wanted, in torch's own file format, without processes."""

import io
import itertools
import pickle

import numpy as np
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_growth.layout.parameters import dimensions, parameters_of
from megatron_growth.testing import saved_arguments


def random_tensors(shape, seed=0, dtype=torch.float32):
    """{(name, layer): tensor} of a whole model."""
    rng = np.random.default_rng(seed)
    return {
        (p.name, layer): torch.from_numpy(rng.standard_normal(dimensions(p, shape)).astype(np.float32)).to(dtype)
        for p in parameters_of(shape)
        for layer in (range(shape.layers) if p.layered else [None])
    }


def write(folder, shape, tensors, *, rng=None, stacked=True, prefix="", common=None, moments=()):
    """Write a checkpoint; with `rng`, every tensor is cut at random rows and columns.

    Args:
        moments: (prefix, tensors) pairs of optimizer tensors.
    """
    folder.mkdir(parents=True)
    entries, storage = {}, {}
    with (folder / "__0_0.distcp").open("wb") as stream:
        for start, whole in (("", tensors), *moments):
            for (name, layer), tensor in whole.items():
                _write_tensor(stream, entries, storage, shape, start, name, layer, tensor, rng, stacked)
        args = saved_arguments(shape, consumed_train_samples=100)
        state = {"args": args, "iteration": 7, "checkpoint_version": 3.0} | (common or {})
        buffer = io.BytesIO()
        torch.save([state], buffer)
        _write_bytes(stream, entries, storage, "common_state/shard_0_1", buffer.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(entries, storage_data=storage)))
    return folder


def _write_tensor(stream, entries, storage, shape, start, name, layer, tensor, rng, stacked):
    key, lead, global_shape = start + name, (), tuple(tensor.shape)
    if layer is not None and stacked:
        lead, global_shape = (layer,), (shape.layers, *tensor.shape)
    elif layer is not None:
        key = key.replace("layers.", f"layers.{layer}.", 1)
    entry = entries.setdefault(
        key, TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(global_shape), [])
    )
    for box in _boxes(tensor.shape, rng):
        chunk = tensor[tuple(slice(a, b) for a, b in box)].clone()
        offsets = torch.Size((*lead, *(a for a, _ in box)))
        sizes = torch.Size((*(1 for _ in lead), *chunk.shape))
        at = stream.tell()
        torch.save(chunk.view(sizes), stream)
        entry.chunks.append(ChunkStorageMetadata(offsets, sizes))
        storage[MetadataIndex(key, offsets)] = _StorageInfo("__0_0.distcp", at, stream.tell() - at)


def _write_bytes(stream, entries, storage, key, data):
    at = stream.tell()
    stream.write(data)
    entries[key] = BytesStorageMetadata()
    storage[MetadataIndex(key)] = _StorageInfo("__0_0.distcp", at, len(data))


def _boxes(sizes, rng):
    """A grid of boxes; without rng one box."""
    cuts = []
    for size in sizes:
        inner = [] if rng is None else sorted(set(rng.integers(1, max(2, size), size=rng.integers(0, 3)).tolist()))
        edges = [0, *[c for c in inner if c < size], size]
        cuts.append(list(itertools.pairwise(edges)))
    boxes = [[]]
    for pieces in cuts:
        boxes = [[*box, piece] for box in boxes for piece in pieces]
    return boxes
