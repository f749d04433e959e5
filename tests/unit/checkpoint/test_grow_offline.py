"""Offline growth: the target equals the plan's values, survives SIGKILL, and follows optimizer state by its policy."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_growth.checkpoint import grow_offline, metadata, target
from megatron_growth.checkpoint.compute import Computer
from megatron_growth.checkpoint.plan import Planner, Region
from megatron_growth.checkpoint.source import Source
from megatron_growth.checkpoint.verify import verify
from megatron_growth.errors import CheckpointError, RunError
from megatron_growth.operators import get
from megatron_growth.shape import ModelShape
from tests.unit.checkpoint import stored

SOURCE = ModelShape(hidden=8, ffn=12, layers=3, heads=4, vocab=16, query_groups=2)
TARGET = {"hidden": 12, "ffn": 20, "layers": 5, "heads": 6}
MOMENT_PREFIX = {"exp_avg": "optimizer.state.exp_avg.", "exp_avg_sq": "optimizer.state.exp_avg_sq."}
GROUP = {"wd_mult": 1.0, "lr_mult": 1.0, "max_lr": 1e-3, "min_lr": 1e-4, "step": 7}
PROGRESS = {
    "optimizer": {"optimizer": {"param_groups": [dict(GROUP), {**GROUP, "max_lr": 5e-4, "wd_mult": 0.0}]}},
    "opt_param_scheduler": {"max_lr": 1e-3, "min_lr": 1e-4, "num_steps": 70},
}


def make_source(folder, *, optimizer=False, dtype=torch.bfloat16, stacked=True):
    weights = stored.random_tensors(SOURCE, 1, dtype)
    moments = []
    if optimizer:
        moments = [(prefix, stored.random_tensors(SOURCE, n)) for n, prefix in enumerate(MOMENT_PREFIX.values(), 2)]
        moments += [("optimizer.state.fp32_param.", stored.random_tensors(SOURCE, 1))]
    return stored.write(
        folder,
        SOURCE,
        weights,
        rng=np.random.default_rng(0),
        stacked=stacked,
        moments=moments,
        common=PROGRESS if optimizer else None,
    )


def planned(source, width="aki", depth="stack", **options):
    return grow_offline.plan(
        source, lambda shape: shape.with_(**TARGET, head_dim=2), get("width", width), get("depth", depth), **options
    )


def everything(path):
    """Every tensor of a checkpoint, read by torch's own loader."""
    folder = Source(path).path
    reader = dcp.FileSystemReader(folder)
    state = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in reader.read_metadata().state_dict_metadata.items()
        if hasattr(entry, "size")
    }
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def test_torch_loads_what_the_plan_computes(tmp_path):
    job = planned(make_source(tmp_path / "source"))
    report = grow_offline.grow(job, tmp_path / "grown", processes=2)
    assert (tmp_path / "grown" / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grown", "source"]
    loaded = everything(tmp_path / "grown")
    assert report.tensors == len(loaded)
    assert report.bytes_written == sum(t.numel() * t.element_size() for t in loaded.values())
    computer = Computer(Source(tmp_path / "source"), Planner(job.growth), 0.02)
    for item in (item for part in job.parts for item in part.items):
        want = torch.empty(item.sizes[-2:] if item.region.parameter.columns else item.sizes[-1:], dtype=item.dtype)
        computer.fill(item.region, want)
        layer = item.region.layer
        got = loaded[item.key] if layer is None else loaded[item.key][layer]
        assert torch.equal(got[slice(*item.region.rows)], want)


def test_the_target_says_what_it_is(tmp_path):
    job = planned(make_source(tmp_path / "source"))
    grow_offline.grow(job, tmp_path / "grown")
    grown = Source(tmp_path / "grown")
    common = metadata.common_state(grown)
    assert metadata.shape_of(grown, common["args"]) == job.growth.target
    assert (common["iteration"], common["args"].consumed_train_samples) == (0, 0)
    assert "optimizer" not in common
    assert verify(tmp_path / "grown", tmp_path / "source", everything=True).provenance["width"] == "aki"


@pytest.mark.parametrize("stacked", [True, False])
def test_key_style_follows_the_source(tmp_path, stacked):
    job = planned(make_source(tmp_path / "source", stacked=stacked))
    grow_offline.grow(job, tmp_path / "grown")
    keys = everything(tmp_path / "grown")
    assert ("decoder.layers.4.mlp.linear_fc2.weight" in keys) == (not stacked)
    assert ("decoder.layers.mlp.linear_fc2.weight" in keys) == stacked


def in_child(function):
    """Run in a forked process; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("kill_at", [("check", 2), ("write", 0), ("write", 1), ("write", 3), ("rename", 0)])
def test_killed_and_run_again(tmp_path, kill_at, monkeypatch):
    """SIGKILL leaves no target; the same command then gives what an undisturbed one gives."""
    source = make_source(tmp_path / "source")
    grow_offline.grow(planned(source), tmp_path / "undisturbed", processes=2)
    calls = {"check": 0, "write": 0, "rename": 0}

    def die(what, *_):
        calls[what] += 1
        if kill_at[0] == what and calls[what] > kill_at[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    def grow_and_die():
        if kill_at[0] == "rename":
            monkeypatch.setattr(grow_offline, "publish", lambda *_: die("rename"))
        grow_offline.grow(planned(source), tmp_path / "grown", processes=2, progress=die)

    assert os.WTERMSIG(in_child(grow_and_die)) == signal.SIGKILL
    assert not (tmp_path / "grown").exists()
    grow_offline.grow(planned(source), tmp_path / "grown", processes=1)
    assert not (tmp_path / "grown.partial").exists()
    want, got = everything(tmp_path / "undisturbed"), everything(tmp_path / "grown")
    assert want.keys() == got.keys()
    assert all(torch.equal(want[key], got[key]) for key in want)


def test_finished_parts_are_not_written_again(tmp_path, monkeypatch):
    source = make_source(tmp_path / "source")
    job = planned(source)

    def grow_until_all_parts_are_written():
        monkeypatch.setattr(grow_offline, "_complete", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        grow_offline.grow(planned(source), tmp_path / "grown")

    in_child(grow_until_all_parts_are_written)
    # As a kill between a part's data and its record leaves it; which parts a real kill finds depends on the machine.
    partial = tmp_path / "grown.partial" / "release"
    cut = [grow_offline.writer.done_file(partial, number) for number in (0, len(job.parts) - 1)]
    for record in cut:
        record.unlink()
    report = grow_offline.grow(job, tmp_path / "grown")
    assert report.parts_resumed == len(job.parts) - len(cut)
    verify(tmp_path / "grown", source, everything=True)


def test_another_job_does_not_take_up_the_parts(tmp_path):
    source = make_source(tmp_path / "source")
    in_child(lambda: grow_offline.grow(planned(source), tmp_path / "grown", progress=_kill_when_written))
    assert grow_offline.grow(planned(source, seed=1), tmp_path / "grown").parts_resumed == 0
    verify(tmp_path / "grown", source, everything=True)


def _kill_when_written(what, done, total):
    if what == "write" and done == total:
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_existing_target_is_left_alone(tmp_path):
    source = make_source(tmp_path / "source")
    grow_offline.grow(planned(source), tmp_path / "grown")
    again = grow_offline.grow(planned(source), tmp_path / "grown")
    assert again.parts_resumed == len(planned(source).parts)
    with pytest.raises(RunError, match="exists already"):
        grow_offline.grow(planned(source, seed=5), tmp_path / "grown")
    with pytest.raises(RunError, match="exists already"):
        grow_offline.grow(planned(source), source)
    os.truncate(next((tmp_path / "grown").glob("*/*.distcp")), 100)  # it was called something else
    with pytest.raises(RunError, match=r"exists already, and cannot be read .*: the file is truncated: 100 of"):
        grow_offline.grow(planned(source), tmp_path / "grown")


def test_corruption_of_the_target_is_found(tmp_path):
    source = make_source(tmp_path / "source")
    grow_offline.grow(planned(source), tmp_path / "grown")
    flip_a_bit(tmp_path / "grown", "decoder.layers.mlp.linear_fc1.weight")
    with pytest.raises(CheckpointError, match="checksum") as error:
        verify(tmp_path / "grown", source)
    assert "decoder.layers.mlp.linear_fc1.weight" in error.value.where


def test_wrong_values_with_right_checksums_are_found(tmp_path):
    """A target written from another seed but claiming this one."""
    source = make_source(tmp_path / "source")
    grow_offline.grow(planned(source), tmp_path / "grown")
    grow_offline.grow(planned(source, width="fpi"), tmp_path / "other")
    for file in (tmp_path / "other" / "release").glob("__*_0.distcp"):
        if "common" not in str(file) and file.name != f"__{len(planned(source).parts)}_0.distcp":
            shutil.copy(file, tmp_path / "grown" / "release" / file.name)
    with pytest.raises(CheckpointError, match="differ from what the source gives"):
        verify(tmp_path / "grown", source, everything=True)


def flip_a_bit(path, key):
    """Change one bit in the middle of the first stored chunk of a key."""
    source = Source(path)
    number = next(n for n, item in enumerate(source.items) if item.key == key)
    found, item = source._locate(number), source.items[number]
    with (source.path / item.info.relative_path).open("r+b") as stream:
        stream.seek(found.start + found.bytes // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 4]))


# ------------------------------------------------------------------------------------------------------ optimizer state


def moments(path, moment):
    prefix = {"param": "optimizer.state.fp32_param."} | MOMENT_PREFIX
    return {k.removeprefix(prefix[moment]): t for k, t in everything(path).items() if k.startswith(prefix[moment])}


def test_grow_policy_follows_the_weights(tmp_path):
    """Masters as weights in fp32; moments from the same places, scaled as the gradient (test_grown_moments.py)."""
    source = make_source(tmp_path / "source", optimizer=True)
    job = planned(source, width="fpi", policy="grow")
    grow_offline.grow(job, tmp_path / "grown", rates=(2e-3, 2e-4))
    old = {m: moments(source, m) for m in ("exp_avg", "exp_avg_sq", "param")}
    g = job.growth.width.hidden.copy_of
    share = np.array([1 / list(g).count(i) for i in g], dtype=np.float32)
    factors = {
        "output_layer.weight": {"param": share, "exp_avg": 1.0, "exp_avg_sq": 1.0},
        "embedding.word_embeddings.weight": {"param": 1.0, "exp_avg": share, "exp_avg_sq": share.astype(float) ** 2},
    }
    for name, by_moment in factors.items():
        for moment, factor in by_moment.items():
            want = old[moment][name].numpy()[:, g] * np.float32(factor)
            np.testing.assert_array_equal(moments(tmp_path / "grown", moment)[name].numpy(), want)
    common = metadata.common_state(Source(tmp_path / "grown"))
    groups = common["optimizer"]["optimizer"]["param_groups"]
    assert [g["max_lr"] for g in groups] == [2e-3, 1e-3]
    assert [g["min_lr"] for g in groups] == [2e-4, 2e-4]
    assert common["opt_param_scheduler"]["max_lr"] == 2e-3
    assert (common["iteration"], groups[0]["step"]) == (7, 7)
    assert (tmp_path / "grown" / "latest_checkpointed_iteration.txt").read_text() == "7"


def test_asymmetric_policy_keeps_old_entries_only(tmp_path):
    source = make_source(tmp_path / "source", optimizer=True)
    grow_offline.grow(planned(source, width="fpi", policy="asymmetric"), tmp_path / "grown")
    old, new = moments(source, "exp_avg"), moments(tmp_path / "grown", "exp_avg")
    name = "output_layer.weight"  # its gradient is that of the source; other tensors: test_grown_moments.py
    assert torch.equal(new[name][:, :8], old[name])
    assert (new[name][:, 8:] == 0).all()
    name = "embedding.word_embeddings.weight"
    assert (new[name][:, 8:] == 0).all()
    assert torch.equal(moments(tmp_path / "grown", "param")[name][:, :8], moments(source, "param")[name])


def test_new_values_start_with_zero_moments(tmp_path):
    source = make_source(tmp_path / "source", optimizer=True)
    grow_offline.grow(planned(source, width="random", depth="random", policy="grow"), tmp_path / "grown")
    moment = moments(tmp_path / "grown", "exp_avg")["decoder.layers.mlp.linear_fc2.weight"]
    assert (moment[3:] == 0).all()
    assert (moment[:3, 8:] == 0).all()
    assert (moments(tmp_path / "grown", "param")["decoder.layers.mlp.linear_fc2.weight"][3:] != 0).all()


def test_masters_round_to_the_weights(tmp_path):
    """The bf16 weights of the target are its fp32 masters, rounded."""
    source = make_source(tmp_path / "source", optimizer=True)
    grow_offline.grow(planned(source, width="zero-pad", depth="stack", policy="grow"), tmp_path / "grown")
    weights = everything(tmp_path / "grown")
    for name, master in moments(tmp_path / "grown", "param").items():
        if "norm" not in name:
            assert torch.equal(weights[name], master.bfloat16()), name


def test_parts_hold_every_element_once(tmp_path):
    job = planned(make_source(tmp_path / "source"))
    small = target.ITEM_BYTES
    try:
        target.ITEM_BYTES = 100
        parts = target.target_parts(job.growth, job.source, optimizer=False)
    finally:
        target.ITEM_BYTES = small
    counts = {}
    for item in (item for part in parts for item in part.items):
        counts.setdefault(item.key, np.zeros(item.shape, dtype=int))[
            tuple(slice(o, o + s) for o, s in zip(item.offsets, item.sizes, strict=True))
        ] += 1
        assert isinstance(item.region, Region)
    assert all((count == 1).all() for count in counts.values())


@pytest.mark.parametrize(
    ("small", "depth"),
    [
        (SOURCE.with_(layers=0), "reuse:middle=none"),
        (SOURCE.with_(layers=1, sublayers="attention"), "reuse:middle=attn"),
        (SOURCE.with_(layers=1), "reuse:middle=attn-ffn"),
    ],
)
def test_reuse_fills_what_the_source_lacks(tmp_path, small, depth):
    """Embedding and output layer are the source's; sub-layers that it lacks are initialised by the model."""
    source = stored.write(tmp_path / "source", small, stored.random_tensors(small))
    job = grow_offline.plan(
        source, lambda s: s.with_(layers=3, sublayers="full"), get("width", "fpi"), get("depth", depth)
    )
    grow_offline.grow(job, tmp_path / "grown")
    old, new = everything(source), everything(tmp_path / "grown")
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert torch.equal(old[name], new[name])
    assert (new["decoder.final_layernorm.weight"] == 1).all()
    assert new["decoder.layers.mlp.linear_fc1.weight"].shape == (3, 24, 8)
    attention = "decoder.layers.self_attention.linear_qkv.weight"
    assert torch.equal(old[attention][0], new[attention][0]) if attention in old else attention in new
    verify(tmp_path / "grown", source, everything=True)
