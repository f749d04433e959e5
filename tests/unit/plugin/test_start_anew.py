"""--growth-start-anew begins with what was grown, and never again over what this run has trained."""

from __future__ import annotations

import argparse

import pytest

from megatron_growth.checkpoint.target_state import grown_arguments
from megatron_growth.errors import UserError
from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import saved_arguments

SHAPE = ModelShape(hidden=8, ffn=12, layers=2, heads=2, head_dim=4, vocab=16)
AT = 4  # the iteration of the source


def refuse(monkeypatch, saved: argparse.Namespace, load: str, save: str, iteration: int = AT) -> None:
    """Start anew with this checkpoint in `load`."""
    from megatron_growth.plugin import anew

    monkeypatch.setattr(anew, "hold_checkpoints", lambda *_: (True, load == save))
    monkeypatch.setattr(anew, "get_load_checkpoint_path_by_args", lambda _: load)
    common = {"args": saved, "iteration": iteration}
    monkeypatch.setattr(anew.dist_checkpointing, "load_common_state_dict", lambda _: common)
    anew._refuse_own_checkpoint(argparse.Namespace(load=load, save=save))


@pytest.fixture
def grown():
    """Arguments of a checkpoint that was grown from a run which had begun anew itself."""
    before = saved_arguments(SHAPE)
    before.growth_start_anew = True
    growth = build_map(SHAPE, SHAPE.with_(layers=4), get("width", "fpi"), get("depth", "stack"))
    return grown_arguments(before, growth, {"source_iteration": AT})


@pytest.mark.parametrize("save", ["grown", "own"])
def test_what_was_grown_begins(monkeypatch, grown, save):
    refuse(monkeypatch, grown, "grown", save)


@pytest.mark.parametrize("iteration", [2, AT])
@pytest.mark.parametrize("flag", [True, False])
def test_what_the_run_has_trained_does_not_begin_again(monkeypatch, grown, iteration, flag):
    """Also at the source's own iteration, and after a launch without the flag."""
    grown.growth_start_anew = flag  # as the run's checkpoints have it
    with pytest.raises(UserError, match="has begun already"):
        refuse(monkeypatch, grown, "own", "own", iteration)
