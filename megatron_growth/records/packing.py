"""Items in order, grouped into files or shards of limited size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator


def packed[T](items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[tuple[T, ...]]:
    """The items in order, in groups of at most `limit`; one that is larger is a group of its own."""
    group: list[T] = []
    total = 0
    for item in items:
        own = size(item)
        if group and total + own > limit:
            yield tuple(group)
            group, total = [], 0
        group.append(item)
        total += own
    if group:
        yield tuple(group)
