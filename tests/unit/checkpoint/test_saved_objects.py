"""Saved objects without Megatron: its enumerations are read as stand-ins, which never reach another checkpoint."""

import copy
import io
import signal

import pytest
import torch
from megatron.core.optimizer import OptimizerConfig
from megatron.core.rerun_state_machine import RerunMode, RerunState
from megatron.core.safe_globals import SAFE_GLOBALS
from megatron.core.transformer.enums import AttnBackend, InferenceCudaGraphScope

from megatron_growth.checkpoint import metadata
from megatron_growth.checkpoint.saved_objects import OF_MEGATRON, StandIn, load_object
from megatron_growth.checkpoint.source import Source
from megatron_growth.cli.main import main
from megatron_growth.shape import ModelShape
from megatron_growth.testing import saved_arguments
from tests import loaded
from tests.unit.checkpoint import stored

SHAPE = ModelShape(hidden=8, ffn=12, layers=2, heads=2, vocab=16)
NOW = {"attention_backend": AttnBackend.auto, "inference_cuda_graph_scope": InferenceCudaGraphScope.none}
RERUN = {"state": RerunState.NOT_RUNNING_YET, "mode": RerunMode.DISABLED}


@pytest.fixture
def fresh():
    """torch's list of allowed classes as it is before Megatron is imported."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(before)


@pytest.fixture
def small(tmp_path):
    """A checkpoint whose saved arguments are those of a run: with enumerations, a path and a signal."""
    args = saved_arguments(SHAPE, **NOW, exit_signal=signal.SIGTERM, data_cache_path=tmp_path)
    common = {"args": args, "rerun_state_machine": RERUN}
    return stored.write(tmp_path / "small", SHAPE, stored.random_tensors(SHAPE), common=common)


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_every_class_that_megatron_allows_has_a_stand_in():
    allowed = {f"{one.__module__}.{one.__name__}" for one in SAFE_GLOBALS}
    assert {name for name in allowed if name.startswith("megatron.")} <= OF_MEGATRON


def test_stand_ins_say_what_the_pickle_says(fresh):
    auto, config = load_object(pickled([AttnBackend.auto, OptimizerConfig(lr=0.5)]), where="here")
    assert isinstance(auto, StandIn)
    assert auto.values == (AttnBackend.auto.value,)
    assert repr(auto) == f"AttnBackend({AttnBackend.auto.value})"
    assert isinstance(config, StandIn)
    assert config.lr == 0.5


def test_a_stand_in_is_not_saved(fresh):
    found = load_object(pickled(AttnBackend.auto), where="here")
    with pytest.raises(TypeError, match="AttnBackend is not saved; load with to_save=True"):
        pickled(found)
    with pytest.raises(TypeError, match="is not saved"):
        copy.deepcopy(found)


def test_what_will_be_saved_has_megatrons_own_classes(fresh):
    assert load_object(pickled(AttnBackend.auto), where="here", to_save=True) is AttnBackend.auto


def test_stand_ins_are_allowed_only_while_they_are_read(fresh):
    load_object(pickled(AttnBackend.auto), where="here")
    names = [one[1] for one in torch.serialization.get_safe_globals() if isinstance(one, tuple)]
    assert names == []


def test_a_grown_checkpoint_holds_megatrons_own_classes(fresh, small, tmp_path):
    assert main(["grow", "--from", str(small), "--to", str(tmp_path / "large"), "--num-layers", "3"]) == 0
    args = metadata.common_state(Source(tmp_path / "large"), to_save=True)["args"]
    assert {name: getattr(args, name) for name in NOW} == NOW
    assert args.exit_signal is signal.SIGTERM


def test_verbs_that_only_read_a_checkpoint_do_not_import_megatron(small, tmp_path, capsys):
    """They say the same as with it."""
    main(["grow", "--from", str(small), "--to", str(tmp_path / "grown"), "--num-layers", "3"])
    verbs = [
        ["inspect", str(small), "--json"],
        ["verify", str(tmp_path / "grown"), "--source", str(small), "--json"],
        ["grow", "--from", str(small), "--to", str(tmp_path / "x"), "--num-layers", "4", "--dry-run", "--json"],
        ["evaluate", "words", str(small), "--agree-with", str(small), "--top", "2", "--json"],
        ["export", str(small), "--to", str(tmp_path / "export"), "--no-tokenizer", "--json"],
        ["verify", str(tmp_path / "export"), "--source", str(small), "--json"],
    ]
    capsys.readouterr()
    for words, ended in zip(verbs, loaded.run_verbs(verbs), strict=True):
        assert (ended.code, ended.heavy) == (0, ("torch",)), words
        if words[0] != "export":  # which says how long it took
            assert (main(words), capsys.readouterr().out) == (0, ended.out)
