"""Checkpoints that were once taken silently, obeyed, or met with a traceback: one a fault, named after what it shows.

`python -m tests.cases.checkpoints FOLDER` writes them all; the tests make the one they need.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo as StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_growth.shape import ModelShape
from tests.unit.checkpoint import stored

SHAPE = ModelShape(hidden=4, ffn=6, layers=2, heads=2, vocab=8)
CASES: dict[str, Callable[[Path], None]] = {}
SECRET = b"the bytes of a file that the checkpoint does not own\n"
RAN = "MEGATRON_GROWTH_CASE_RAN"  # set in the environment by code that must not run


class RunsCode:
    """What a harmful checkpoint holds."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        import os

        return (os.putenv, (RAN, "1"))


def case(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Register a function that spoils the whole checkpoint in `folder`/iter_0000007, or its surroundings."""
    CASES[make.__name__.replace("_", "-")] = make
    return make


def make(name: str, folder: Path) -> Path:
    """Write the checkpoint of that name into `folder/NAME`, a --save folder, and return this path."""
    path = folder / name
    stored.write(path / "iter_0000007", SHAPE, stored.random_tensors(SHAPE))
    (path / "iter_0000007" / "metadata.json").write_text("{}")
    (path / "latest_checkpointed_iteration.txt").write_text("7")
    CASES[name](path)
    return path


@contextmanager
def changed(folder: Path) -> Iterator[Metadata]:
    """The metadata of a case's checkpoint, written back."""
    file = folder / "iter_0000007" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    yield metadata
    file.write_bytes(pickle.dumps(metadata))


def add_object(folder: Path, key: str, value: Any) -> None:
    """Store one more object."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    file = folder / "iter_0000007" / "__2_0.distcp"
    file.write_bytes(buffer.getvalue())
    with changed(folder) as metadata:
        metadata.state_dict_metadata[key] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex(key)] = StorageInfo(file.name, 0, len(buffer.getvalue()))


def _object_elsewhere(folder: Path, name: str) -> None:
    """An extra state whose bytes lie in the file of that name."""
    with changed(folder) as metadata:
        key = "decoder.layers.mlp.linear_fc1._extra_state/shard_0_2"
        metadata.state_dict_metadata[key] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex(key)] = StorageInfo(name, 0, len(SECRET))


@case
def file_above_the_checkpoint(folder: Path) -> None:
    (folder / "secret").write_bytes(SECRET)
    _object_elsewhere(folder, "../secret")


@case
def file_by_its_absolute_path(folder: Path) -> None:
    (folder / "secret").write_bytes(SECRET)
    _object_elsewhere(folder, str((folder / "secret").absolute()))


@case
def file_that_is_a_link_out(folder: Path) -> None:
    (folder / "secret").write_bytes(SECRET)
    (folder / "iter_0000007" / "__9_0.distcp").symlink_to(folder / "secret")
    _object_elsewhere(folder, "__9_0.distcp")


@case
def metadata_that_runs_code(folder: Path) -> None:
    (folder / "iter_0000007" / ".metadata").write_bytes(pickle.dumps(RunsCode()))


@case
def metadata_cut_short(folder: Path) -> None:
    file = folder / "iter_0000007" / ".metadata"
    file.write_bytes(file.read_bytes()[:-40])


@case
def metadata_that_is_a_dictionary(folder: Path) -> None:
    (folder / "iter_0000007" / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": {}}))


@case
def metadata_of_a_tensor_larger_than_its_file(folder: Path) -> None:
    with changed(folder) as metadata:
        entry = metadata.state_dict_metadata["embedding.word_embeddings.weight"]
        entry.size = torch.Size((10**9, 4))
        entry.chunks[0] = ChunkStorageMetadata(entry.chunks[0].offsets, torch.Size((10**9, 4)))


@case
def metadata_of_more_layers_than_are_stored(folder: Path) -> None:
    with changed(folder) as metadata:
        key = "decoder.layers.mlp.linear_fc1.weight"
        entry = metadata.state_dict_metadata[key]
        entry.chunks.pop()
        del metadata.storage_data[MetadataIndex(key, torch.Size((1, 0, 0)))]


@case
def place_before_the_file(folder: Path) -> None:
    with changed(folder) as metadata:
        for info in metadata.storage_data.values():
            info.offset = -(10**12)


@case
def extra_state_that_runs_code(folder: Path) -> None:
    add_object(folder, "decoder.layers.mlp.linear_fc1._extra_state/shard_0_2", [RunsCode()])


@case
def arguments_that_run_code(folder: Path) -> None:
    add_object(folder, "common_state/shard_0_1", [{"args": RunsCode()}])


@case
def arguments_that_are_no_numbers(folder: Path) -> None:
    import argparse

    args = argparse.Namespace(num_attention_heads="two", kv_channels=[], ffn_hidden_size=None)
    add_object(folder, "common_state/shard_0_1", [{"args": args, "iteration": 7}])


@case
def common_state_that_is_a_text(folder: Path) -> None:
    add_object(folder, "common_state/shard_0_1", "nothing")


@case
def terminal_escapes_in_a_key(folder: Path) -> None:
    size = torch.Size((1,))
    key = "decoder.layers.mlp.\x1b]0;owned\x07\x1b[2J[red]x[/no].weight"
    buffer = io.BytesIO()
    torch.save(torch.zeros(1), buffer)
    (folder / "iter_0000007" / "__1_0.distcp").write_bytes(buffer.getvalue())
    with changed(folder) as metadata:
        chunk = ChunkStorageMetadata(torch.Size((0,)), size)
        entry = TensorStorageMetadata(TensorProperties(dtype=torch.float32), size, [chunk])
        metadata.state_dict_metadata[key] = entry
        index = MetadataIndex(key, torch.Size((0,)))
        metadata.storage_data[index] = StorageInfo("__1_0.distcp", 0, len(buffer.getvalue()))


@case
def terminal_escapes_in_the_origin(folder: Path) -> None:
    from megatron_growth.testing import saved_arguments

    origin = {"source": "\x1b[2Jwiped", "width": "\x1b]0;owned\x07", "depth": "stack", "seed": 0}
    args = saved_arguments(SHAPE, growth_provenance=origin)
    add_object(folder, "common_state/shard_0_1", [{"args": args, "iteration": 7}])


@case
def tracker_that_is_not_utf8(folder: Path) -> None:
    (folder / "latest_checkpointed_iteration.txt").write_bytes(b"\xff\xfe7\x00")


@case
def tracker_that_leads_out(folder: Path) -> None:
    (folder / "latest_checkpointed_iteration.txt").write_text("../other")


@case
def tracker_that_is_a_folder(folder: Path) -> None:
    (folder / "latest_checkpointed_iteration.txt").unlink()
    (folder / "latest_checkpointed_iteration.txt").mkdir()


@case
def optimizer_state_in_buckets(folder: Path) -> None:
    """What Megatron's distributed optimizer saves by default; a case that grows, not one that is refused."""
    key = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.float32, torch.float32).bucket_idx_0.exp_avg"
    size = torch.Size((3,))
    buffer = io.BytesIO()
    torch.save(torch.zeros(3), buffer)
    (folder / "iter_0000007" / "__1_0.distcp").write_bytes(buffer.getvalue())
    with changed(folder) as metadata:
        chunk = ChunkStorageMetadata(torch.Size((0,)), size)
        metadata.state_dict_metadata[key] = TensorStorageMetadata(
            TensorProperties(dtype=torch.float32), torch.Size((8,)), [chunk]
        )
        index = MetadataIndex(key, torch.Size((0,)))
        metadata.storage_data[index] = StorageInfo("__1_0.distcp", 0, len(buffer.getvalue()))


if __name__ == "__main__":
    for each in CASES:
        print(make(each, Path(sys.argv[1])))
