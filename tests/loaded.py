"""What verbs import: run one after the other in a process of their own, which has imported nothing yet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# Packages whose import takes from half a second to several.
HEAVY = ("torch", "megatron.core", "transformers", "trl", "datasets", "scipy", "matplotlib")
_PROGRAM = """
import contextlib, importlib, io, json, sys
entry, commands, heavy = json.loads(sys.argv[1])
main = importlib.import_module(entry).main
said = []
for words in commands:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = main(words)
    said.append([code, out.getvalue(), [name for name in heavy if name in sys.modules]])
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Ended:
    """How a verb ended: its exit code, what it printed, and the heavy packages that it or one before it imported."""

    code: int
    out: str
    heavy: tuple[str, ...]


def run_verbs(commands: Sequence[Sequence[str]], entry: str = "megatron_growth.cli.main") -> list[Ended]:
    """Run these command lines, in their order, by the `main` of a module: that of `megatron-growth`."""
    program = [sys.executable, "-c", _PROGRAM, json.dumps([entry, [list(map(str, c)) for c in commands], HEAVY])]
    done = subprocess.run(program, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return [Ended(code, out, tuple(heavy)) for code, out, heavy in json.loads(done.stdout)]
