"""A user's mistake in a training script: reported once, as the last thing, with exit code 2 and without a traceback.

Megatron's ranks all meet the same mistake.  Rank 0 reports it, or hands it to torchrun, which prints what a process
left in TORCHELASTIC_ERROR_FILE at the end of its own report.  The others wait for their launcher to end them, because
the report of the first rank to end is the one that counts; a rank that is alone with its mistake reports it after
PATIENCE_SECONDS.  Processes exit without cleaning up: that would meet the others' closed connections and abort.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from megatron_growth.errors import UserError

PATIENCE_SECONDS = 20.0

_original = sys.excepthook


def install() -> None:
    """Report a user's mistake like this in this process; any other exception ends it as before."""
    global _original
    if sys.excepthook is not _say:
        _original, sys.excepthook = sys.excepthook, _say


def uninstall() -> None:
    """Restore the hook that `install` replaced."""
    if sys.excepthook is _say:
        sys.excepthook = _original


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, UserError):
        _original(kind, error, trace)
        return
    if rank() != 0:
        time.sleep(PATIENCE_SECONDS)
    if sys.__stderr__ is not None:
        # Once ranks have met, torch's own hook wraps this one: it collects what is printed, to print it later.
        sys.stderr = sys.__stderr__
    leave(error, os.environ.get("TORCHELASTIC_ERROR_FILE"))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.exit_code)


def leave(error: UserError, file: str | None) -> None:
    """Hand the mistake to torchrun, or print it."""
    if file:
        document = {"message": f"{error}", "timestamp": str(int(time.time()))}
        with suppress(OSError):  # it is printed below
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(json.dumps(document), encoding="utf-8")
            return
    print(f"megatron_growth: {error}", file=sys.stderr)


def rank() -> int:
    """Rank of this process in the run, by torchrun's or Slurm's variables."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
