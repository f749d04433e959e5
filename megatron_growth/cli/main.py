"""Entry point of `megatron-growth`: finds the verb, runs it, and turns errors into one message and an exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import keyword
import logging
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from typing import TextIO

from megatron_growth import __version__
from megatron_growth.backend.processes import end_without_collection
from megatron_growth.cli.parser import Parser
from megatron_growth.errors import GrowthError, UserError, nearest, part_of, unexpected
from megatron_growth.records.storage import refusal

# In the order in which a run uses them.
VERBS = (
    *("plan", "prepare", "train", "grow", "inspect", "verify", "import", "export", "evaluate", "posttrain", "submit"),
    *("status", "report", "doctor", "demo"),
)

EPILOG = """\
a first run, on a laptop:
  megatron-growth plan nano-progressive            what will be trained, and what it will cost
  megatron-growth train nano-progressive           four stages, each grown from the last
  megatron-growth report runs/nano-progressive     loss against FLOPs, and what was saved
"""


def build_parser(verbs: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """The whole command line; only the modules of the named verbs are imported."""
    parser = Parser(
        prog="megatron-growth",
        description="Pre-train a family of language models for the price of its largest member, on NVIDIA Megatron.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"megatron-growth {__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in verbs:
        module = importlib.import_module(f"megatron_growth.cli.{name}{'_' * keyword.iskeyword(name)}")
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(execute=module.run)
    return parser


def spelled_out(words: Sequence[str]) -> list[str]:
    """`submit posttrain KIND ...` is `posttrain KIND ... --submit`, whose options it has.

    A shell leaves the home folder of `--run=~/runs` as it is written.
    """
    words = [re.sub(r"^(--[\w-]+=)?(~(?:/.*)?)$", lambda m: (m[1] or "") + os.path.expanduser(m[2]), w) for w in words]
    if words[:2] == ["submit", "posttrain"]:
        return [*words[1:], *(["--submit"] if len(words) > 2 else [])]
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns 0, 2 for the user's mistake, or 1 for a failure of ours."""
    words = spelled_out(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words else ""
    end_without_collection()
    if not words:
        build_parser().print_help(sys.stderr)
        return 2
    if verb and not verb.startswith("-") and verb not in VERBS:
        print(f"megatron-growth: no verb {verb!r}; {nearest(verb, VERBS)}", file=sys.stderr)
        return 2
    _prepare_process()
    try:
        _refuse_unreadable(words)
        args = build_parser((verb,) if verb in VERBS else VERBS).parse_args(_respelled(words))
        code = int(args.execute(args) or 0)  # a verb that could do what it was asked for may return nothing
        sys.stdout.flush()  # what is refused here would else be refused when Python ends, and said in its words
        return code
    except KeyboardInterrupt:
        print("megatron-growth: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except Exception as error:
        return _told(error, "--debug" in words)


def _prepare_process() -> None:
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text in this locale
    if not os.environ.get("COLUMNS", "1").strip("0"):  # what has no columns gives this, and nothing would be printed
        del os.environ["COLUMNS"]
    # torch warns where there is a CUDA toolkit but no GPU, as on a login node; no verb needs one.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def _told(error: Exception, debug: bool) -> int:
    """Print an error as one message and return the exit code; a fault of ours is raised again: its traceback helps."""
    if isinstance(error, GrowthError):
        text, code = str(error), error.exit_code
    elif part_of(error):
        text, code = str(unexpected(error)), GrowthError.exit_code
    elif isinstance(error, BrokenPipeError) and (unread := _without_reader()):
        return 128 + signal.SIGPIPE if sys.stderr in unread else 0  # messages come before the work is done
    elif isinstance(error, OSError | MemoryError):
        text, code = _refused_by_the_machine(error), GrowthError.exit_code
    else:
        raise error
    if debug:
        traceback.print_exception(error)
    print(f"megatron-growth: {text}", file=sys.stderr)
    return code


def _without_reader() -> list[TextIO]:
    """The streams that nobody reads any more, as after `| head`; what is left of them goes nowhere."""
    found = []
    for stream in (sys.stdout, sys.stderr):
        if _is_unread(stream):
            found.append(stream)
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return found


def _is_unread(stream: TextIO) -> bool:
    """Whether a pipe has lost its reader.  Refused text may be lost to a flush, so the pipe is asked."""
    try:
        stream.flush()
        pipe = select.poll()
        pipe.register(stream.fileno(), 0)  # its errors are told without being asked for
        return bool(pipe.poll(0))
    except BrokenPipeError:
        return True
    except OSError:  # not a file, as under a test
        return False


def _refuse_unreadable(words: Sequence[str]) -> None:
    """Refuse an empty word, which would be the current folder as a path, and no value at all to an option; and a word
    that is not UTF-8, which some libraries do not take as a path.

    Raises:
        UserError: with the option that the word belongs to.
    """
    for before, word in pairwise(("", *words)):
        option, equals, value = word.partition("=")
        if word == "" or (option.startswith("--") and equals and not value):
            of = option if word else before
            raise UserError(
                f"a word of the command is empty{f', after {of}' if of.startswith('-') else ''}",
                where=of if of.startswith("-") else "",
                fix="a shell variable that is not set gives such a word: set it, or leave the word out",
            )
        if not word.isascii() and word != word.encode(errors="replace").decode():
            raise UserError("a word of the command is not UTF-8", where=word, fix="rename the file or folder")


def _respelled(words: list[str]) -> list[str]:
    """The command line in today's spelling; `evaluate` reads an older one."""
    if words[:1] != ["evaluate"]:
        return words
    from megatron_growth.cli.evaluate import respelled

    return ["evaluate", *respelled(words[1:])]


def _refused_by_the_machine(error: OSError | MemoryError) -> str:
    """What the machine refused, which no part of the program expected."""
    found = GrowthError("no memory left") if isinstance(error, MemoryError) else refusal(error, error.filename or "")
    found.fix += " (--debug shows where it happened)" if found.fix else ""
    return str(found)


if __name__ == "__main__":
    sys.exit(main())
