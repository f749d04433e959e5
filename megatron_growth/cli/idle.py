"""Options that a command would ignore are refused: their user would believe that they had taken effect."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_growth.errors import UserError


def refuse_idle(given: Mapping[str, object], why: str) -> None:
    """Refuse options that do nothing here.

    Args:
        given: value of each flag; None, "" and False where it was not given.
        why: the reason that they do nothing.

    Raises:
        UserError: with the names of those that were given.
    """
    if names := [flag for flag, value in given.items() if value not in (None, "", False)]:
        several = " and ".join(names)
        raise UserError(f"{several} would do nothing: {why}", where=names[0], fix=f"leave out {several}")
