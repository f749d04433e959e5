"""A picture that cannot be written where it was asked for is the user's mistake, and says so."""

import pytest

from megatron_growth.cli.main import main


@pytest.mark.parametrize("name", ["memory.txt", "nowhere/memory.png", "memory"])
def test_a_picture_that_cannot_be_written(name, tmp_path, capsys):
    (tmp_path / "memory.svg").mkdir()
    name = "memory.svg" if name == "memory" else name
    assert main(["plan", "nano-wso", "--plot-memory", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert "cannot write the picture" in said
    assert f"where: {tmp_path / name}" in said
