"""How a user's mistake ends a process; under torchrun see tests/megatron/test_mistakes.py."""

import json
import subprocess
import sys

from megatron_growth import mistakes
from megatron_growth.errors import UserError

PROGRAM = """
import sys
from megatron_growth import mistakes
from megatron_growth.errors import {error}
mistakes.install()
{more}
raise {error}("too much", fix="give less")
"""


ONE_RANK = """
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
"""


def end_of(error, more="", **variables):
    words = [sys.executable, "-c", PROGRAM.format(error=error, more=more)]
    return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=500)


def test_a_mistake_ends_with_2_and_a_sentence_and_anything_else_as_before():
    done = end_of("UserError", PYTHONPATH=":".join(sys.path))
    assert done.returncode == 2
    assert done.stderr == "megatron_growth: too much\n  what to do: give less\n"
    done = end_of("GrowthError", PYTHONPATH=":".join(sys.path))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_mistake_is_said_after_torchs_process_group_has_put_its_own_hook_around():
    done = end_of("UserError", ONE_RANK, PYTHONPATH=":".join(sys.path))
    assert done.returncode == 2
    assert done.stderr.endswith("megatron_growth: too much\n  what to do: give less\n")


def test_torchrun_gets_the_words_and_nothing_is_printed(tmp_path, capsys):
    file = tmp_path / "0" / "error.json"
    mistakes.leave(UserError("too much"), str(file))
    assert json.loads(file.read_text())["message"] == "too much"
    (tmp_path / "taken").touch()
    mistakes.leave(UserError("too much"), str(tmp_path / "taken" / "error.json"))
    assert capsys.readouterr().err == "megatron_growth: too much\n"


def test_installing_twice_and_taking_back_leaves_what_was_there():
    before = sys.excepthook
    mistakes.install()
    mistakes.install()
    assert sys.excepthook is not before
    mistakes.uninstall()
    assert sys.excepthook is before
