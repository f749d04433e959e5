"""An error on one rank is raised on every rank: none is left waiting in a collective for a rank that has gone.

An error of any type counts: a stale file handle on one node is an OSError, a defect of ours a KeyError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from megatron_growth.errors import CheckpointError, GrowthError, unexpected
from megatron_growth.records.storage import refusal


def together[T](action: Callable[[], T], where: str, seen: Callable[[T], object] = lambda _: None) -> T:
    """Do something on every rank; collective over all ranks.

    Args:
        action: what this rank does; must not communicate.
        where: what it works on, for errors that do not say so themselves.
        seen: the part of its result that has to be the same on every rank.

    Returns:
        The result on this rank.

    Raises:
        GrowthError: this rank's, else that of the first rank that failed; or the ranks' results differ.
    """
    result, error = None, None
    try:
        result = action()
    except Exception as failure:
        error = _known(failure, where)
        error.__cause__ = None if error is failure else failure
    views = _exchange(error, None if error else seen(result))  # type: ignore[arg-type]
    if error:
        raise error
    for rank, (failed, _) in enumerate(views):
        if failed:
            kind, what, place, fix = failed
            raise kind(what, where=f"rank {rank}: {place}", fix=fix)
    if any(view != views[0][1] for _, view in views):
        raise CheckpointError(
            f"the ranks disagree about the result: {', '.join(str(view)[:16] for _, view in views)}",
            where=where,
            fix="give every rank the same words, and let them see the same files",
        )
    return result  # type: ignore[return-value]


def _known(failure: Exception, where: str) -> GrowthError:
    if isinstance(failure, GrowthError):
        return failure
    return refusal(failure, where) if isinstance(failure, OSError) else unexpected(failure, where)


def _exchange(error: GrowthError | None, view: object) -> list[Any]:
    """(error or None, what was seen) of every rank."""
    mine = (None if error is None else (type(error), error.what, error.where, error.fix), view)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [mine]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered
