"""Every command in the documentation is one that exists: verbs, options, make targets, files, recipes."""

import re
import shlex
from pathlib import Path

import pytest

from megatron_growth import recipes
from megatron_growth.cli.main import VERBS, build_parser, spelled_out

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:console|bash|sh|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The commands of a page's console blocks, without prompts and comments; a backslash joins lines."""
    found = []
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*$", "", line).strip().removeprefix("$ ").strip()
            if command:
                found.append(command)
    return found


def problem(command: str) -> str | None:
    """Why a command of ours cannot be given, or None; foreign commands and elided ones pass."""
    if "..." in command or "|" in command:
        return None
    if not command.startswith(("make ", "python ", "megatron-growth")):
        return None
    words = shlex.split(command)
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        missing = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"no make target {missing[0]}" if missing else None
    if words[0] == "python":
        return f"no file {words[1]}" if words[1].endswith(".py") and not (ROOT / words[1]).is_file() else None
    return _problem_of_verb(spelled_out(words[1:]))


def _problem_of_verb(words: list[str]) -> str | None:
    verb = next((word for word in words if not word.startswith("-")), None)
    if verb is None:
        return None
    if verb not in VERBS:
        return f"no verb {verb}"
    try:
        args = build_parser((verb,)).parse_args(words)
    except SystemExit:
        return "the command line is refused"
    recipe = getattr(args, "recipe", None)
    shipped = isinstance(recipe, str) and "/" not in recipe and not recipe.endswith((".yaml", ".yml"))
    return f"no recipe {recipe}" if shipped and recipe not in recipes.names() else None


CASES = [(page.name, command) for page in PAGES if page.exists() for command in commands(page.read_text())]


@pytest.mark.parametrize(("page", "command"), CASES)
def test_documented_commands_exist(page, command):
    assert problem(command) is None


def test_the_readme_shows_how_to_start():
    found = commands((ROOT / "README.md").read_text())
    assert {"make demo", "make test"} <= set(found)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("make dmo", "no make target dmo"),
        ("megatron-growth trian x", "no verb trian"),
        ("megatron-growth train nano-progressive --colour red", "the command line is refused"),
        ("megatron-growth plan progressive-9b", "no recipe progressive-9b"),
        ("python benchmarks/absent.py", "no file benchmarks/absent.py"),
    ],
)
def test_commands_that_do_not_exist_are_found(command, found):
    page = f"```console\n$ {command}   # a remark\n```\n"
    assert [problem(one) for one in commands(page)] == [found]
