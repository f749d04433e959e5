"""The paper's shapes for the benchmarks of growth and export, and the work that they do in processes of its own.

python benchmarks/growth_cases.py make CASE FOLDER reset|grow       a source with random weights
python benchmarks/growth_cases.py make-model SIZE FOLDER            the same by size: 1b, 2b, 4b, 8b
python benchmarks/growth_cases.py copy SOURCE TARGET                plain DCP load and save
python benchmarks/growth_cases.py usual CASE SOURCE TARGET          grow as scripts for one layout do
"""

from __future__ import annotations

import io
import pickle
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_growth.layout import parameters_of
from megatron_growth.layout.parameters import dimensions
from megatron_growth.shape import ModelShape
from megatron_growth.testing import saved_arguments

VOCAB = 50304  # GPT-2's 50257, padded to a multiple of 128
SLICE_BYTES = 6 << 30
FAMILY = {
    "1b": ModelShape(hidden=2048, ffn=7168, layers=18, heads=16, vocab=VOCAB),
    "2b": ModelShape(hidden=2560, ffn=8960, layers=22, heads=20, vocab=VOCAB),
    "4b": ModelShape(hidden=3200, ffn=11200, layers=27, heads=25, vocab=VOCAB),
    "8b": ModelShape(hidden=4096, ffn=14336, layers=33, heads=32, vocab=VOCAB),
}


@dataclass(frozen=True)
class Case:
    """One growth step."""

    source: ModelShape
    target: ModelShape


CASES = {f"{a}-{b}": Case(FAMILY[a], FAMILY[b]) for a, b in (("1b", "2b"), ("2b", "4b"), ("4b", "8b"))}


def make_model(shape: ModelShape, folder: Path, optimizer_state: str) -> None:
    """A checkpoint with random weights, chunked as Megatron saves it with TP 1 (fc1 in its two halves)."""
    folder.mkdir(parents=True)
    noise = (torch.randn(1 << 22) * 0.02).repeat(64)
    kinds = [("", torch.bfloat16)]
    if optimizer_state == "grow":
        kinds += [(f"optimizer.state.{kind}.", torch.float32) for kind in ("exp_avg", "exp_avg_sq", "fp32_param")]
    entries: dict[str, object] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    start = 0
    with (folder / "__0_0.distcp").open("wb") as stream:
        for prefix, dtype in kinds:
            block = noise.to(dtype)
            for key, size, offsets, body in _chunks(shape):
                start = (start + 7919) % (1 << 20)  # other numbers for every chunk
                values = block[start : start + torch.Size(body).numel()].clone()
                values = values.view((1,) * (len(size) - len(body)) + body)
                entry = entries.setdefault(
                    prefix + key, TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(size), [])
                )
                at = stream.tell()
                torch.save(values, stream)
                entry.chunks.append(ChunkStorageMetadata(torch.Size(offsets), values.shape))
                storage[MetadataIndex(prefix + key, torch.Size(offsets))] = _StorageInfo(
                    "__0_0.distcp", at, stream.tell() - at
                )
        at = stream.tell()
        stream.write(_common(shape))
        entries["common_state/shard_0_1"] = BytesStorageMetadata()
        storage[MetadataIndex("common_state/shard_0_1")] = _StorageInfo("__0_0.distcp", at, stream.tell() - at)
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(entries, storage_data=storage)))


def _chunks(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """(key, global size, offsets, chunk size without the layers axis) of every chunk."""
    for p in parameters_of(shape):
        body = dimensions(p, shape)
        for layer in range(shape.layers) if p.layered else [None]:
            lead = () if layer is None else (layer,)
            size = (*(() if layer is None else (shape.layers,)), *body)
            halves = 2 if p.rows[0] == "gate_up" else 1
            step = body[0] // halves
            for half in range(halves):
                yield p.name, size, (*lead, half * step, *(0,) * (len(body) - 1)), (step, *body[1:])


def _common(shape: ModelShape) -> bytes:
    args = saved_arguments(shape)
    group = {"wd_mult": 1.0, "lr_mult": 1.0, "max_lr": 1e-3, "min_lr": 1e-4, "step": 10}
    state = {
        "args": args,
        "iteration": 10,
        "checkpoint_version": 3.0,
        "optimizer": {"optimizer": {"param_groups": [group]}},
        "opt_param_scheduler": {"max_lr": 1e-3, "min_lr": 1e-4},
    }
    buffer = io.BytesIO()
    torch.save([state], buffer)
    return buffer.getvalue()


def _folder(path: Path) -> Path:
    """The folder of a checkpoint that holds .metadata."""
    return next(path.rglob(".metadata")).parent


def _load(path: Path, keys: list[str]) -> dict[str, torch.Tensor]:
    entries = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    state = {k: torch.empty(entries[k].size, dtype=entries[k].properties.dtype) for k in keys}
    dcp.load(state, checkpoint_id=path, no_dist=True)
    return state


def _slices(path: Path) -> Iterator[list[str]]:
    """Keys whose tensors fit into memory together."""
    entries = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    batch: list[str] = []
    size = 0
    for key, entry in entries.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        count = entry.size.numel() * entry.properties.dtype.itemsize
        if batch and size + count > SLICE_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(key)
        size += count
    yield batch


def copy(source: Path, target: Path) -> None:
    """Plain DCP load and save of everything; slices that are written go where the disk could not hold them all."""
    folder = _folder(source)
    target.mkdir(parents=True, exist_ok=True)
    size = sum(path.stat().st_size for path in folder.glob("*.distcp"))
    tight = shutil.disk_usage(target).free < size + SLICE_BYTES
    for number, keys in enumerate(_slices(folder)):
        dcp.save(_load(folder, keys), checkpoint_id=target / str(number), no_dist=True)
        if tight:
            shutil.rmtree(target / str(number))


def usual(case: str, source: Path, target: Path) -> None:
    """Load all, expand whole tensors, save, load and save again: what scripts for one layout do."""
    from megatron_growth.checkpoint.sides import sides
    from megatron_growth.layout import lookup
    from megatron_growth.operators import build_map, get

    growth = build_map(CASES[case].source, CASES[case].target, get("width", "aki"), get("depth", "stack"), 0)
    keys = [p.name for p in parameters_of(growth.source)]
    old = _load(_folder(source), keys)
    new = {}
    for key in keys:
        p = lookup(key)
        if p.layered:
            new[key] = torch.stack(
                [_expand(old[key], *sides(p, growth, t.sources[0][0]), t.sources[0][0]) for t in growth.layers.takes]
            )
        else:
            new[key] = _expand(old[key][None], *sides(p, growth, None), 0)
    dcp.save(new, checkpoint_id=target / "whole", no_dist=True)
    del old, new
    copy(target / "whole", target / "resharded")


def _expand(old: torch.Tensor, rows: object, columns: object, layer: int) -> torch.Tensor:
    """One dense layer of the grown model (AKI: new rows from the next layer up)."""
    upper = min(layer + 1, len(old) - 1)
    index = torch.from_numpy(rows.source)
    fresh = torch.from_numpy(rows.from_next).view(-1, *[1] * (old.dim() - 2))
    picked = torch.where(fresh, old[upper][index], old[layer][index])
    if columns is not None:
        picked = picked[:, torch.from_numpy(columns.source)]
        factor = torch.from_numpy(columns.coefficient).float()
        if (factor != 1).any():
            picked = (picked.float() * factor).to(old.dtype)
    return picked


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["make", name, folder, ("reset" | "grow") as state]:
            make_model(CASES[name].source, Path(folder), state)
        case ["make-model", size, folder]:
            make_model(FAMILY[size], Path(folder), "reset")
        case ["copy", source, target]:
            copy(Path(source), Path(target))
        case ["usual", name, source, target]:
            usual(name, Path(source), Path(target))
        case _:
            sys.exit(__doc__)
