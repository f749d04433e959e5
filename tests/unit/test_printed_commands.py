"""Every command that the package prints, in messages, advice, help and pages, is one that its own parsers take."""

import ast
import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

import megatron_growth
from megatron_growth.cli.main import VERBS, build_parser, spelled_out

PACKAGE = Path(megatron_growth.__file__).parent
SHOWN = {".py", ".html", ".sbatch", ".yaml"}
NAME = "megatron-growth "
# In quotes, tags or a line of its own: a command.  In a sentence, without quotes, the name of the package.
QUOTED = re.compile(r"[`>]megatron-growth ([a-z][^`<]*)[`<]")
LINE = re.compile(r"^\s*(?:srun [^\n]*?)?megatron-growth ([a-z][^\n]*)$", re.MULTILINE)
REMARK = re.compile(r"(?<=\S)\s{3,}(?=[A-Za-z]).*$")


def texts(path: Path) -> list[str]:
    """What a file may print; a formatted value counts as a word X."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return [re.sub(r"\{\{.*?\}\}", "X", source)]
    found = []
    inner: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            inner.update(id(part) for part in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            found.append(node.value)
    return found


def commands(text: str) -> list[str]:
    """The words behind the program's name, without remarks."""
    joined = text.replace("\\\n", " ")
    lines = [REMARK.sub("", line) for line in LINE.findall(joined)]
    return [" ".join(command.split()) for command in (*QUOTED.findall(joined), *lines)]


def problem(command: str) -> str | None:
    """Why a command cannot be given; a verb alone is the name of the verb."""
    words = spelled_out(shlex.split(command))
    if words[0] not in VERBS:
        return f"no verb {words[0]}"
    if len(words) == 1:
        return None
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            build_parser((words[0],)).parse_args(words)
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    return None


FILES = [path for path in sorted(PACKAGE.rglob("*")) if path.suffix in SHOWN and NAME in path.read_text("utf-8")]
FOUND = [(path, command) for path in FILES for text in texts(path) for command in commands(text)]


def test_every_printed_command_is_taken_by_the_parsers():
    assert len(FOUND) > 60
    wrong = [f"{path.name}: {command}: {why}" for path, command in FOUND if (why := problem(command))]
    assert not wrong, "\n".join(wrong)


def test_advice_is_a_whole_command():
    """What to do is no bare verb, where the verb needs more: `train` alone is refused."""
    alone = re.compile(r"(?:^|[ ;])(?:with|run|give|start one with) `megatron-growth ([a-z]+)`", re.IGNORECASE)
    bare = [(path.name, verb) for path in FILES for text in texts(path) for verb in alone.findall(text)]
    assert [(file, verb) for file, verb in bare if verb not in ("doctor", "plan", "demo")] == []


@pytest.mark.fault
@pytest.mark.parametrize("command", ["trian x", "train", "train nano-step --colour red", "submit --cancel"])
def test_a_command_that_cannot_be_given_is_found(command):
    found = commands(f"wait, or give `megatron-growth {command}`")
    assert found == [command]
    assert problem(command) or " " not in command
