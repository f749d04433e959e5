"""The private names of torch: they still mean what the package takes them to mean."""

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_growth.checkpoint import metadata_file, torch_private
from megatron_growth.checkpoint.source import Source
from megatron_growth.errors import CheckpointError


def test_a_checkpoint_of_torch_is_found_byte_for_byte(tmp_path):
    """Saved by torch's own writer, located by ours."""
    state = {
        "decoder.layers.mlp.linear_fc2.weight": torch.randn(2, 3, 5),
        "output_layer.weight": torch.randn(7, 5).bfloat16(),
    }
    dcp.save(dict(state), checkpoint_id=tmp_path / "c", no_dist=True)
    source = Source(tmp_path / "c")
    for item in source.items:
        want = state[item.key]
        with (source.path / item.info.relative_path).open("rb") as stream:
            found = torch_private.locate_tensor(stream, item.info, item.sizes, item.dtype)
            stream.seek(found.start)
            got = torch.frombuffer(bytearray(stream.read(found.bytes)), dtype=item.dtype).view(item.sizes)
        assert torch.equal(got, want)
    numbers = list(range(len(source.items)))
    assert list(source.check_items(numbers)) == numbers


def test_the_installed_torch_is_one_that_was_tested():
    assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
    info = torch_private.StorageInfo("f", 1, 2)
    assert (info.relative_path, info.offset, info.length, info.transform_descriptors) == ("f", 1, 2, None)


def test_metadata_that_names_other_code_is_refused(tmp_path):
    class Bad:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Bad()))
    with pytest.raises(CheckpointError, match="not part of a checkpoint's metadata"):
        torch_private.read_metadata(tmp_path)
    with pytest.raises(CheckpointError, match="not part of a checkpoint's metadata"):
        metadata_file.read_bare(tmp_path)


def test_metadata_without_torch_are_the_same(tmp_path):
    state = {"weight": torch.randn(2, 3, 5), "bias": torch.zeros(4, dtype=torch.bfloat16), "note": {"step": 3}}
    dcp.save(state, checkpoint_id=tmp_path / "c", no_dist=True)
    bare, own = metadata_file.read_bare(tmp_path / "c"), torch_private.read_metadata(tmp_path / "c")
    places = [sorted((i.relative_path, i.offset, i.length) for i in m.storage_data.values()) for m in (bare, own)]
    assert places[0] == places[1]
    for name, entry in own.state_dict_metadata.items():
        found = bare.state_dict_metadata[name]
        if hasattr(entry, "chunks"):
            assert (found.size, f"torch.{found.properties.dtype}") == (entry.size, str(entry.properties.dtype))
            assert [chunk.offsets for chunk in found.chunks] == [chunk.offsets for chunk in entry.chunks]


def test_every_dtype_of_torch_is_known_and_no_other_name_is():
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype) and name == str(value).removeprefix("torch."):
            assert metadata_file.bare("torch", name) == name
        elif name != "Size" and not isinstance(value, torch.dtype):
            with pytest.raises(metadata_file.Unlisted):
                metadata_file.bare("torch", name)


def test_the_layouts_are_torchs():
    assert {str(value) for value in vars(torch).values() if isinstance(value, torch.layout)} == metadata_file.LAYOUTS
