"""A picture that cannot be written where it was asked for is the user's mistake, and says so."""

import dataclasses
import errno

import pytest

from megatron_growth import recipes
from megatron_growth.cli.main import main
from megatron_growth.errors import StorageError
from megatron_growth.planner import picture, plan_run


@pytest.mark.parametrize("name", ["memory.txt", "nowhere/memory.png", "memory", "no-ending"])
def test_a_picture_that_cannot_be_written(name, tmp_path, capsys):
    (tmp_path / "memory.svg").mkdir()
    name = "memory.svg" if name == "memory" else name
    assert main(["plan", "nano-wso", "--plot-memory", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert "cannot write the picture" in said
    assert f"where: {tmp_path / name}" in said
    assert [path.name for path in tmp_path.iterdir()] == ["memory.svg"]


def test_a_picture_that_is_there_outlives_a_full_disk(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def full(self, file, **_):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.svg").write_text("whole")
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(StorageError, match="No space left"):
        picture.learning_rates(plan_run(recipes.load("nano-wso")), tmp_path / "a.svg")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_many_stages_and_baselines_are_all_drawn_and_told_apart(monkeypatch):
    figures = []
    monkeypatch.setattr(picture, "_save", lambda figure, _: figures.append(figure))
    plan = plan_run(recipes.load("step-368m"))
    many = dataclasses.replace(plan, stages=plan.stages * 6, baselines=plan.baselines * 2)
    picture.learning_rates(many, "lr.png")
    lines = [line for line in figures[0].axes[0].lines if not line.get_label().startswith("_")]
    assert len(lines) == len(many.stages) + len(many.baselines)
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == len(lines)


def test_learning_rates_are_written_out(monkeypatch):
    """Not as multiples of a power of ten that stands above the axis."""
    figures = []
    monkeypatch.setattr(picture, "_save", lambda figure, _: figures.append(figure))
    picture.learning_rates(plan_run(recipes.load("progressive-8b")), "lr.png")
    figures[0].draw_without_rendering()
    axis = figures[0].axes[0].yaxis
    assert "0.0012" in [label.get_text() for label in axis.get_ticklabels()]
    assert axis.get_offset_text().get_text() == ""
