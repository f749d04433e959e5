"""Which checkpoints go, and that none goes before its successor is whole."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_growth.errors import StorageError
from megatron_growth.recipes.schema import Checkpoint
from megatron_growth.records import owned
from megatron_growth.run import checkpoints, train
from megatron_growth.run.checkpoints import prune, superfluous
from megatron_growth.run.directory import RunDirectory, StageDirectory
from megatron_growth.run.screen import Screen


def stale(_: Path) -> int:
    """What a network file system says of a file whose server was restarted."""
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Real checkpoints of iterations 10 to 50."""
    import torch
    import torch.distributed.checkpoint as dcp

    owned.claim(tmp_path, checkpoints.PURPOSE)
    for iteration in range(10, 60, 10):
        target = checkpoints.folder_of(tmp_path, iteration)
        dcp.save({"weight": torch.arange(8.0)}, checkpoint_id=target, no_dist=True)
        (target / "metadata.json").write_text("{}")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("50")
    return tmp_path


def test_last_and_milestones_stay() -> None:
    all_of_them = list(range(10, 110, 10))
    assert superfluous(all_of_them, 100, Checkpoint(keep=2)) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert superfluous(all_of_them, 100, Checkpoint(keep=2, keep_every=40)) == [10, 20, 30, 50, 60, 70]


def test_what_is_being_written_is_not_counted() -> None:
    assert superfluous([10, 20, 30, 40], 30, Checkpoint(keep=2)) == [10]


def test_prune(folder: Path) -> None:
    assert prune(folder, Checkpoint(keep=2, keep_every=20)) == [10, 30]
    assert checkpoints.iterations(folder) == [20, 40, 50]
    assert checkpoints.verify(folder, 50)


def test_nothing_goes_while_the_newest_is_not_whole(folder: Path) -> None:
    data = next(checkpoints.folder_of(folder, 50).glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-20])
    assert prune(folder, Checkpoint(keep=1)) == []
    assert checkpoints.iterations(folder) == [10, 20, 30, 40, 50]


@pytest.mark.fault
def test_the_check_would_find_a_prune_that_does_not_verify(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "problem_of", lambda _: None)
    with pytest.raises(AssertionError):
        test_nothing_goes_while_the_newest_is_not_whole(folder)


@pytest.mark.parametrize("obstacle", ["no mark", "link", "unreadable"])
def test_doubt_removes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str) -> None:
    there = checkpoints.folder_of(folder, 10)
    if obstacle == "no mark":
        (folder / owned.MARKER).unlink()
    elif obstacle == "link":
        there.rename(folder / "elsewhere")
        there.symlink_to(folder / "elsewhere")
    else:
        monkeypatch.setattr(checkpoints, "_size", stale)
    gone = prune(folder, Checkpoint(keep=1))
    assert gone == ([20, 30, 40] if obstacle == "link" else [])
    assert (there / ".metadata").exists()


def test_somebodys_files_in_a_checkpoint_stay(folder: Path) -> None:
    """Notes, results of an evaluation, a link: the checkpoint goes, by its own files, and nothing else."""
    old = checkpoints.folder_of(folder, 10)
    (old / "results.json").write_text("mine")
    (old / "more").mkdir()
    (old / "__9_0.distcp").symlink_to(folder / "latest_checkpointed_iteration.txt")
    assert prune(folder, Checkpoint(keep=2)) == [10, 20, 30]
    assert sorted(path.name for path in old.iterdir()) == ["__9_0.distcp", "more", "results.json"]
    assert not checkpoints.folder_of(folder, 20).exists()
    assert checkpoints.repair(folder) == (50, [])
    half = checkpoints.folder_of(folder, 60)
    half.mkdir()
    for name in ("__0_0.distcp", ".metadata.tmp", "notes.txt"):
        (half / name).write_text("half")
    assert checkpoints.repair(folder)[0] == 50
    assert [path.name for path in half.iterdir()] == ["notes.txt"]


def watched(run: RunDirectory, stream: io.StringIO) -> tuple[train._Watch, StageDirectory]:
    """What follows a stage that has begun, and its folder."""
    folder = StageDirectory(run.stage("a").path)
    folder.checkpoints.mkdir(parents=True)
    folder.metrics.write_text('{"event": "start", "iteration": 0, "time": 1.0}\n')
    job: Any = SimpleNamespace(
        run=run, screen=Screen(stream).stage("stage 1/1 a", 4), recipe=SimpleNamespace(checkpoint=Checkpoint())
    )
    opened: Any = SimpleNamespace(stage=SimpleNamespace(name="a"), directory=folder, grows=False, reached=0)
    return train._Watch(job, opened, begin=0.0), folder


def saved(folder: StageDirectory, iteration: int, *, whole: bool = True) -> None:
    """What training leaves at a save: a line of the metrics and, once the checkpoint is whole, the tracker."""
    with folder.metrics.open("a") as file:
        file.write(json.dumps({"event": "checkpoint", "iteration": iteration}) + "\n")
    if whole:
        (folder.checkpoints / "latest_checkpointed_iteration.txt").write_text(str(iteration))


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ending it would lose what was trained since; the disk may have refused for a moment only."""
    stream = io.StringIO()
    watch, folder = watched(RunDirectory(tmp_path), stream)

    def refuse(*_: object) -> None:
        raise StorageError("The file system refused: Stale file handle.", where="iter_0000001")

    monkeypatch.setattr(checkpoints, "prune", refuse)
    for iteration in (2, 4):
        saved(folder, iteration)
        watch.look()
    assert stream.getvalue().count("training goes on, but: The file system refused: Stale file handle.") == 1


def test_old_checkpoints_go_when_one_that_is_saved_asynchronously_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics speak of it when it is begun; were that the moment, the last one would leave one too many."""
    watch, folder = watched(RunDirectory(tmp_path), io.StringIO())
    pruned: list[int | None] = []
    monkeypatch.setattr(checkpoints, "prune", lambda of, _: pruned.append(checkpoints.tracked(of)))
    saved(folder, 2)
    watch.look()
    saved(folder, 4, whole=False)
    watch.look()
    assert pruned == [2]
    saved(folder, 4)
    watch.look()
    watch.look()
    assert pruned == [2, 4]
