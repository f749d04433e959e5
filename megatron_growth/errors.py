"""The errors a user of megatron_growth can meet: what happened, where, and what to do.

Every error that reaches the command line is a `GrowthError`.  `UserError` and its children mean that the input was
wrong (exit code 2); anything else means that we, or the machine, failed (exit code 1).
"""

from __future__ import annotations

import contextlib
import difflib
import traceback
from collections.abc import Iterable, Iterator


class GrowthError(Exception):
    """Something failed that is not the user's mistake.

    Args:
        what: one sentence that says what happened.
        where: the file, key, stage or rank concerned.
        fix: one sentence that says what to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  what to do: {self.fix}")
        return printable("\n".join(lines))


class UserError(GrowthError):
    """The request cannot be carried out as it was made."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe, or a cluster profile, is not valid."""


class ParallelLayoutError(UserError):
    """A tensor-, pipeline- or data-parallel layout does not fit the model."""


class CheckpointError(UserError):
    """A checkpoint is missing, truncated, corrupt, or of another architecture."""


class GrowthPlanError(UserError):
    """An operator cannot take this source to this target."""


class DataError(UserError):
    """A corpus, a tokenizer or an indexed dataset cannot serve the request."""


class RunError(UserError):
    """A run directory does not fit the command."""


class UnsupportedError(UserError):
    """A version, architecture or option that this release does not support."""


class StageFailed(GrowthError):
    """A training process ended without finishing its stage."""


class StorageError(GrowthError):
    """The file system refused: no space left, or a write that failed."""


@contextlib.contextmanager
def within(part: str) -> Iterator[None]:
    """Note in an exception that leaves the block which part of an outside package raised it; its type is kept.

    Args:
        part: what it is called in messages, with its package.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, GrowthError) and not part_of(error):
            at = traceback.extract_tb(error.__traceback__)[-1]
            with contextlib.suppress(AttributeError):  # a class with slots takes no notes
                error.growth_part = (part, f"{at.filename}:{at.lineno}, in {at.name}")  # type: ignore[attr-defined]
                error.add_note(f"raised by the {part}")
        raise


def part_of(error: BaseException) -> str:
    """The outside part that raised an exception, from `within`, or ""."""
    return str(getattr(error, "growth_part", ("",))[0])


def unexpected(error: BaseException, where: str = "") -> GrowthError:
    """A `GrowthError` for an exception of a type that was not expected: for a message, or another process."""
    said = f"{type(error).__name__}: {error}"
    if part := part_of(error):
        place = error.growth_part[1]  # type: ignore[attr-defined]
        fix = "correct or update that package, or choose another; --debug shows the whole traceback"
        return GrowthError(f"the {part} failed: {said}", where=place, fix=fix)
    fix = "add --debug to see where it comes from; it may be a fault of megatron_growth"
    return GrowthError(said, where=where, fix=fix)


def printable(text: str) -> str:
    """Text that is safe to show: what a terminal would obey (escapes, bells, right-to-left marks) is spelt out."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A sentence part that lists the known names closest to `name`, or all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names) or 'none'}"


def first_line(error: BaseException) -> str:
    """The first line of a foreign exception's message, or the name of its type when it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
