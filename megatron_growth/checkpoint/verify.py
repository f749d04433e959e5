"""Check a grown checkpoint: its checksums, its origin, and random slices recomputed from the source.

A checkpoint that has trained since it was grown no longer equals its recomputed values, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_growth.checkpoint import metadata
from megatron_growth.checkpoint.compute import Computer
from megatron_growth.checkpoint.init_values import Deviations
from megatron_growth.checkpoint.plan import Planner, Region
from megatron_growth.checkpoint.sides import MomentRule
from megatron_growth.checkpoint.source import Source
from megatron_growth.checkpoint.target import Part, TargetItem, target_parts
from megatron_growth.errors import CheckpointError
from megatron_growth.operators import GrowthMap, build_map, get

SLICE_ROWS = 64


@dataclass(frozen=True)
class Slice:
    """One compared slice.

    Attributes:
        key: of the target.
        layer: target layer, None outside the layers.
        rows: compared rows.
        norm, expected_norm: of the stored and of the recomputed values.
        differing: number of elements that are not bitwise equal.
    """

    key: str
    layer: int | None
    rows: tuple[int, int]
    norm: float
    expected_norm: float
    differing: int


@dataclass(frozen=True)
class Verification:
    """What was checked; a failure is raised, not returned.

    Attributes:
        chunks, bytes_checked: stored chunks of the target compared with their checksums.
        slices: compared slices.
        provenance: where the target says it comes from.
    """

    chunks: int
    bytes_checked: int
    slices: tuple[Slice, ...]
    provenance: dict[str, Any]


def verify(
    target: Path,
    source: Path | Source,
    *,
    samples: int = 4,
    everything: bool = False,
    seed: int = 0,
    trust_checkpoint: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Verification:
    """Check a grown checkpoint against the one that it was grown from.

    Args:
        target, source: --save folders or iter_* folders; the source may be open already.
        samples: slices of each parameter to recompute.
        everything: recompute every element instead.
        seed: of the random choice of slices.

    Raises:
        CheckpointError: names the file and key that are wrong.
    """
    opened, origin = Source(target), source if isinstance(source, Source) else Source(source)
    checked = check_chunks(opened, progress)
    provenance = metadata.provenance_of(opened, trust=trust_checkpoint)
    growth = rebuild(opened, origin, provenance, trust=trust_checkpoint)
    policy = provenance["optimizer_state"]
    rule = None if policy == "reset" else MomentRule(policy)
    computer = Computer(origin, Planner(growth, rule), Deviations(**provenance["init_std"]))
    parts = target_parts(growth, origin, optimizer=policy != "reset")
    rng = np.random.default_rng(seed)
    slices = []
    for item, region in _regions(parts, samples, everything, rng):
        slices.append(_compare(opened, computer, item, region))
        if slices[-1].differing:
            raise _difference(opened, slices[-1], provenance)
    return Verification(len(opened.items), checked, tuple(slices), provenance)


def check_chunks(source: Source, progress: Callable[[str, int, int], None]) -> int:
    """Compare every stored chunk with its checksum; the number of bytes checked."""
    total, done = sum(item.bytes for item in source.items), 0
    for number in source.check_items(range(len(source.items))):
        done += source.items[number].bytes
        progress("check", done, total)
    return done


def rebuild(target: Source, source: Source, provenance: dict[str, Any], *, trust: bool = False) -> GrowthMap:
    """The growth map that made the target, from what it says about itself.

    Raises:
        CheckpointError: the target was grown from another source, or the map comes out differently.
    """
    if metadata.content_hash(source) != provenance["source_hash"]:
        raise CheckpointError(
            "the target was grown from another checkpoint",
            where=f"{source.path}; the target names {provenance['source']}",
            fix="give the checkpoint that it names",
        )
    old, new = (metadata.shape_of(c, metadata.arguments_of(c, trust=trust)) for c in (source, target))
    width = get("width", {"name": provenance["width"], **provenance["width_parameters"]})
    depth = get("depth", {"name": provenance["depth"], **provenance["depth_parameters"]})
    growth = build_map(old, new, width, depth, provenance["seed"])
    if growth.fingerprint() != provenance["map"]:
        raise CheckpointError(
            "the growth map comes out differently from when the target was grown",
            where=str(target.path),
            fix=f"verify with the versions that grew it: {provenance['versions']}",
        )
    return growth


def _regions(
    parts: list[Part], samples: int, everything: bool, rng: np.random.Generator
) -> Iterator[tuple[TargetItem, Region]]:
    """What to compare: every item, or a few random slices of each key, at random layers."""
    by_key: dict[tuple[str, str | None], list[TargetItem]] = {}
    for item in (item for part in parts for item in part.items):
        by_key.setdefault((item.region.parameter.name, item.region.moment), []).append(item)
    for items in by_key.values():
        if everything:
            yield from ((item, item.region) for item in items)
            continue
        for number in rng.choice(len(items), size=samples, replace=samples > len(items)):
            item = items[number]
            first, last = item.region.rows
            start = int(rng.integers(first, max(first + 1, last - SLICE_ROWS + 1)))
            yield item, replace(item.region, rows=(start, min(start + SLICE_ROWS, last)))


def _compare(target: Source, computer: Computer, item: TargetItem, region: Region) -> Slice:
    """Recompute one region and compare it bit by bit with what is stored."""
    shape = (region.rows[1] - region.rows[0], region.columns[1] - region.columns[0])
    want, got = torch.empty(shape, dtype=item.dtype), torch.empty(shape, dtype=item.dtype)
    computer.fill(region, want)
    tensor = target.tensors[region.parameter.name, region.moment]
    target.read(tensor, region.layer, region.rows, region.columns, got)
    differing = int((want.view(torch.uint8) != got.view(torch.uint8)).view(*shape, -1).any(dim=2).sum())
    norms = [float(t.double().norm()) for t in (got, want)]
    return Slice(item.key, region.layer, region.rows, norms[0], norms[1], differing)


def _difference(target: Source, found: Slice, provenance: dict[str, Any]) -> CheckpointError:
    where = f"{target.path}, key {found.key}" + ("" if found.layer is None else f", layer {found.layer}")
    return CheckpointError(
        f"{found.differing} of the elements in rows {found.rows[0]} to {found.rows[1]} differ from what the source "
        f"gives (norm {found.norm:.6g}, expected {found.expected_norm:.6g})",
        where=where,
        fix="the target is corrupt, or has trained since it was grown; grow it again from "
        f"{provenance['source']} to compare",
    )
