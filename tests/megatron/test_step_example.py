"""examples/03-step/step.sh: its own words for torchrun, run on prepared processes."""

import os
import subprocess
from pathlib import Path

from megatron_growth.checkpoint.source import Source
from megatron_growth.testing import run_script

SCRIPT = Path(__file__).parents[2] / "examples" / "03-step" / "step.sh"
TORCHRUN = """#!/bin/sh
printf '%s\\n' "$@" >> "$WORDS"
echo ---- >> "$WORDS"
"""


def launches(folder):
    """What step.sh gives to torchrun: (processes, script, its arguments) of every launch."""
    stand_in, words = folder / "bin" / "torchrun", folder / "words"
    stand_in.parent.mkdir()
    stand_in.write_text(TORCHRUN)
    stand_in.chmod(0o755)
    variables = os.environ | {"PATH": f"{stand_in.parent}:{os.environ['PATH']}", "WORDS": str(words)}
    subprocess.run(["bash", SCRIPT, folder / "out"], env=variables, check=True, timeout=500)
    for text in words.read_text().split("----\n")[:-1]:
        standalone, flag, processes, module, backend, script, *rest = text.splitlines()
        assert [standalone, flag, module] == ["--standalone", "--nproc-per-node", "-m"]
        assert backend == "megatron_growth.backend.cpu"
        yield int(processes), script, rest


def test_the_script_trains_grows_freezes_and_goes_on_from_the_merged_model(tmp_path):
    small, step, after = (run_script(script, rest, number).losses for number, script, rest in launches(tmp_path))
    last = list(small.values())[-1]
    assert last < small[1] / 2
    assert step[1] < last + 0.5  # interpolation keeps most of what was learned
    assert list(step.values())[-1] < step[1] / 2
    assert after[1] < list(step.values())[-1] + 0.1  # the merged model is the one that was trained
    assert not any(".lora_" in name for name, _ in Source(tmp_path / "out" / "step").tensors)
