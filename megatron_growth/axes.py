"""Axis maps: for every new index of a named axis, where its value comes from.  Pure maths: numpy only.

A weight of a grown model is addressed by axes (hidden, ffn, heads, query groups, layers), and every growth operator
is a choice, per axis, of an old index and a coefficient for each new index.  An axis is used in one of three ways:

    write   the weight produces the axis   (rows of an output projection, columns of the embedding)
    read    the weight contracts over it   (columns of QKV, fc1, the output layer)
    norm    a norm weight scales it

For `y = x W`, growing x to x' = x E needs W' = D W with E D = I: E is the `write` side, D the `read` side.  Net2Net's
function-preserving initialisation (FPI; bert2BERT, Chen et al. 2022, eq. 3-6) is write = copy, read = copy / C(i),
where C(i) counts the copies of the old index i.

Nothing here knows a rank, a shard, a parameter name or a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Codes that stand in `Side.source` for "no old index".  Where a row and a column disagree, the first wins.
ZERO, INIT, MEAN = -1, -2, -3


@dataclass(frozen=True, eq=False)
class Side:
    """One use of a grown axis: new index j takes `coefficient[j] * old[source[j]]`.

    Attributes:
        source: (new,) old index, or ZERO, INIT (the model's own initial value) or MEAN (mean over all old indices).
        coefficient: (new,) factor of the copied value.
        from_next: (new,) take the value from the next layer up (AKI); ignored for parameters outside the layers.
        noise: (new,) weight of a noise value shared by all copies of one old index; it must sum to zero over them
            so that the noise cancels (HyperCloning, Samragh et al. 2024).
    """

    source: Indices
    coefficient: Floats
    from_next: Flags
    noise: Floats

    @staticmethod
    def of(source: Indices, coefficient: Floats | float = 1.0, from_next: Flags | bool = False) -> Side:
        """A side without noise; scalars are broadcast."""
        source = np.asarray(source, dtype=np.int64)
        return Side(
            source,
            np.broadcast_to(np.asarray(coefficient, dtype=np.float64), source.shape).copy(),
            np.broadcast_to(np.asarray(from_next, dtype=np.bool_), source.shape).copy(),
            np.zeros(source.shape),
        )

    def __len__(self) -> int:
        return len(self.source)

    @property
    def parts(self) -> tuple[NDArray[Any], ...]:
        """The four arrays, in the order of the fields."""
        return self.source, self.coefficient, self.from_next, self.noise

    @property
    def is_identity(self) -> bool:
        """Every index takes itself, unscaled."""
        return bool(
            np.array_equal(self.source, np.arange(len(self)))
            and np.all(self.coefficient == 1.0)
            and not self.from_next.any()
            and not self.noise.any()
        )

    def blocks(self, size: int) -> Side:
        """The same map for an axis on which every index is a block of `size` consecutive rows (a head of D rows)."""
        inner = np.arange(size)
        source = self.source[:, None]
        return Side(
            np.where(source < 0, source, source * size + inner).reshape(-1),
            np.repeat(self.coefficient, size),
            np.repeat(self.from_next, size),
            np.repeat(self.noise, size),
        )

    def shifted(self, offset: int) -> Side:
        """The same map into old indices that start at `offset` (the up half of a fused gate-and-up projection)."""
        return replace(self, source=np.where(self.source < 0, self.source, self.source + offset))

    @staticmethod
    def join(sides: Sequence[Side]) -> Side:
        """Sides one after the other, as the parts of a fused axis are stored."""
        return Side(*map(np.concatenate, zip(*(side.parts for side in sides), strict=True)))

    def take(self, order: Indices) -> Side:
        """The indices `order` of this side, in that order."""
        return Side(*(part[order] for part in self.parts))


@dataclass(frozen=True, eq=False)
class AxisMap:
    """How one named axis grows from `old` to `new` indices, in each of its three uses."""

    name: str
    old: int
    new: int
    write: Side
    read: Side
    norm: Side
    # Old index that each new index copies, -1 where it copies none.
    copy_of: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @staticmethod
    def identity(name: str, size: int) -> AxisMap:
        """The map that leaves an axis as it is."""
        same = Side.of(np.arange(size))
        return AxisMap(name, size, size, same, same, same, np.arange(size))

    @property
    def is_identity(self) -> bool:
        """Whether no use of the axis changes."""
        return self.write.is_identity and self.read.is_identity and self.norm.is_identity


# ------------------------------------------------------------------------------------------ the choices for one axis


def draw_sources(old: int, new: int, rng: np.random.Generator, draw: str = "balanced") -> Indices:
    """The index map g of bert2BERT (eq. 3): g(i) = i for i < old, a random old index for the others.

    Args:
        draw: "uniform" draws every new index independently, as bert2BERT is printed.  "balanced" takes every old
            index once before any is taken again: at a whole ratio all are copied equally often, which keeps RMSNorm
            exact.  "circular" goes through the old indices in order, again and again (LEMON, HyperCloning).
    """
    extra = new - old
    if draw == "circular":
        drawn = [np.arange(extra) % old]
    elif draw == "uniform":
        drawn = [rng.integers(0, old, size=extra)]
    else:
        drawn = [rng.permutation(old) for _ in range(-(-extra // old))]
    return np.concatenate([np.arange(old), *drawn])[:new].astype(np.int64)


def fan_out(source: Indices, old: int, rng: np.random.Generator | None = None) -> Floats:
    """Read coefficients that sum to one over the copies of every old index; (new,).

    Equal shares 1 / C(i) (Net2Net, FPI), or with `rng` unequal random shares (LEMON, Wang et al. 2024),
    which keep the function and let the copies receive different gradients.
    """
    weight = np.ones(len(source)) if rng is None else rng.uniform(0.5, 1.5, size=len(source))
    kept = source >= 0
    total = np.bincount(source[kept], weights=weight[kept], minlength=old)
    return np.where(kept, weight / np.where(kept, total[np.maximum(source, 0)], 1.0), 1.0)


def duplicate(name: str, old: int, source: Indices, shares: Floats | None = None) -> AxisMap:
    """Copies of old indices: write = copy, read = copy x its share, norm = copy (FPI, bert2BERT eq. 4-6)."""
    plain = Side.of(source)
    read = Side.of(source, fan_out(source, old) if shares is None else shares)
    return AxisMap(name, old, len(source), plain, read, plain, source)


def from_next_layer(own: AxisMap, upper: AxisMap | None) -> AxisMap:
    """AKI (bert2BERT eq. 9): new indices are written by the next layer up, through that layer's own index map.

    `upper` is None for the last layer, which has none above it and keeps FPI.  The reading side stays the layer's own:
    the old unit and the new one from above share what the old unit was read with.
    """
    if upper is None:
        return own
    new = ~is_kept(own.copy_of)
    source = np.where(new, upper.copy_of, own.write.source)
    write = Side.of(source, own.write.coefficient, new)
    return replace(own, write=write, copy_of=np.where(new, -1, own.copy_of))


def is_kept(copy_of: Indices) -> Flags:
    """Which new indices are the first copy of their old index: those carry the old model on."""
    sources, first = np.unique(copy_of, return_index=True)
    kept = np.zeros(len(copy_of), dtype=np.bool_)
    kept[first[sources >= 0]] = True
    return kept


def zero_output(name: str, old: int, copy_of: Indices) -> AxisMap:
    """New units start from the model's own init and are read with zero weight: exact, and free to differentiate."""
    read = Side.of(np.where(is_kept(copy_of), copy_of, ZERO))
    return replace(random_new(name, old, copy_of), read=read)


def random_new(name: str, old: int, copy_of: Indices) -> AxisMap:
    """New indices start from the model's own init wherever they are written or read; not exact."""
    kept = is_kept(copy_of)
    side = Side.of(np.where(kept, copy_of, INIT))
    return AxisMap(name, old, len(copy_of), side, side, side, np.where(kept, copy_of, -1))


def pad(
    name: str, old: int, new: int, *, repeats: int = 1, fill: int = ZERO, rng: np.random.Generator | None = None
) -> AxisMap:
    """`repeats` whole copies of the axis, the rest filled so that the norm cannot see it (LEMON, sec. 4).

    With x' = [x, ..., x, 0, ..., 0] the mean square is (repeats * old / new) times the old one.  So the norm's weight
    is multiplied by eta = sqrt(repeats * old / new), and its epsilon by eta squared.
    RMSNorm needs fill = ZERO; LayerNorm subtracts the mean and needs fill = MEAN.  Padded indices are read with the
    model's own initial weights: the norm gives zero there, so any weight is exact, and these receive gradients.
    `rng` makes the read shares of repeated indices unequal (`fan_out`).
    """
    body = np.tile(np.arange(old, dtype=np.int64), repeats)
    rest = new - repeats * old
    padded = np.full(rest, fill, dtype=np.int64)
    init = np.full(rest, INIT, dtype=np.int64)
    share = fan_out(body, old, rng)
    eta = float(np.sqrt(repeats * old / new))
    return AxisMap(
        name,
        old,
        new,
        write=Side.of(np.concatenate([body, padded])),
        read=Side.of(np.concatenate([body, init]), np.concatenate([share, np.ones(rest)])),
        norm=Side.of(np.concatenate([body, init]), np.concatenate([np.full(len(body), eta), np.ones(rest)])),
        copy_of=np.concatenate([body, np.full(rest, -1, dtype=np.int64)]),
    )


def with_cancelling_noise(axis: AxisMap, scale: float) -> AxisMap:
    """Noise of `scale` x the model's init std on the read side, summing to zero over the copies of each index."""
    order = np.argsort(axis.copy_of, kind="stable")
    _, start, count = np.unique(axis.copy_of[order], return_index=True, return_counts=True)
    rank = np.empty(axis.new, dtype=np.int64)  # how many copies of the same old index come before this one
    rank[order] = np.arange(axis.new) - np.repeat(start, count)
    paired = rank < np.bincount(axis.copy_of + 1)[axis.copy_of + 1] // 2 * 2
    sign = np.where(paired & (axis.copy_of >= 0), 1.0 - 2.0 * (rank % 2), 0.0)
    return replace(axis, read=replace(axis.read, noise=sign * scale))


# ----------------------------------------------------------------------------------------------------- heads and layers


def draw_heads(
    old: tuple[int, int], new: tuple[int, int], rng: np.random.Generator, draw: str = "balanced"
) -> tuple[Indices, Indices]:
    """Index maps of query heads and of query groups that agree with each other.

    Every new head stays with the keys and values of its old head: group(new head) maps to group(old head).

    Args:
        old: (query heads, query groups) of the source.
        new: the same of the target; every old head must fit into the copies of its group.

    Returns:
        (new heads,) old head of each new head and (new groups,) old group of each new group.

    Raises:
        ValueError: the copies of a group have fewer query heads than the group has.
    """
    (old_heads, old_groups), (new_heads, new_groups) = old, new
    per_old, per_new = old_heads // old_groups, new_heads // new_groups
    groups = draw_sources(old_groups, new_groups, rng, draw)
    heads = np.zeros(new_heads, dtype=np.int64)
    for group in range(old_groups):
        where = np.flatnonzero(groups == group)
        slots = len(where) * per_new
        if slots < per_old:
            raise ValueError(f"{slots} new query heads for the {per_old} of query group {group}")
        # With one copy of the group its heads come first, then drawn ones; copies repeat the same order.
        if per_new >= per_old:
            chosen = np.concatenate([draw_sources(per_old, per_new, rng, draw) for _ in where])
        else:
            chosen = draw_sources(per_old, slots, rng, draw)
        for copy, j in enumerate(where):
            heads[j * per_new : (j + 1) * per_new] = group * per_old + chosen[copy * per_new : (copy + 1) * per_new]
    return heads, groups


@dataclass(frozen=True)
class LayerTake:
    """Where one new layer comes from: a weighted sum of old layers, or nothing (the model's own init).

    Attributes:
        sources: (old layer, weight) pairs; empty = initialised by the model.
        attention, ffn: whether that sub-layer (its norm included) is taken; otherwise it is initialised.
        zero_output: the output projections of both sub-layers are zero, so the layer is the identity (LLaMA-Pro).
    """

    sources: tuple[tuple[int, float], ...] = ()
    attention: bool = True
    ffn: bool = True
    zero_output: bool = False

    @staticmethod
    def copy(layer: int) -> LayerTake:
        """One old layer as it is."""
        return LayerTake(((layer, 1.0),))

    @property
    def is_copy(self) -> bool:
        """Whether the layer is one old layer, unchanged in depth."""
        return len(self.sources) == 1 and self.sources[0][1] == 1.0 and self.attention and self.ffn


@dataclass(frozen=True)
class LayerMap:
    """The layers axis: one `LayerTake` for each new layer, bottom to top.

    Attributes:
        old: number of old layers.
        takes: (new layers,) where each comes from.
        old_layers: (new layers,) True where the layer is the carried-on old layer that freezing calls "old".
        final_norm: whether the final norm is taken from the source (Reuse initialises it instead).
    """

    old: int
    takes: tuple[LayerTake, ...]
    old_layers: tuple[bool, ...] = ()
    final_norm: bool = True

    @property
    def new(self) -> int:
        """Number of new layers."""
        return len(self.takes)

    def carries_on(self, layer: int) -> bool:
        """Whether a new layer is the old one rather than a copy of it; without `old_layers` the first copy is."""
        take = self.takes[layer]
        if self.old_layers:
            return self.old_layers[layer]
        return take.is_copy and take not in self.takes[:layer]

    @staticmethod
    def of(old: int, order: Sequence[int]) -> LayerMap:
        """A map that copies old layers in the given order; the first copy of a layer is the old one."""
        first = tuple(layer not in order[:new] for new, layer in enumerate(order))
        return LayerMap(old, tuple(LayerTake.copy(layer) for layer in order), first)
