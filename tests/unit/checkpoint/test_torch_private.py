"""The private names of torch: they still mean what the package takes them to mean."""

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_growth.checkpoint import torch_private
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
