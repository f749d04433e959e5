"""The indexed dataset that we write is, byte for byte, the one that Megatron's own builder writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_growth.data.indexed import IndexedWriter

DOCUMENTS = [[5, 1, 2], [9], [7, 7, 7, 300]]


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("parts", [[], [DOCUMENTS], [DOCUMENTS[:1], [], DOCUMENTS[1:]]], ids=["none", "one", "three"])
def test_both_files_are_megatrons(tmp_path, dtype, parts):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    ours, theirs = IndexedWriter(tmp_path / "our.split", dtype), tmp_path / "theirs"
    builder = IndexedDatasetBuilder(f"{theirs}.bin", dtype=np.dtype(dtype).type)
    for documents in parts:
        tokens = np.array([token for document in documents for token in document], dtype=dtype)
        ours.add(tokens, np.array([len(document) for document in documents], dtype=np.int64))
        for document in documents:
            builder.add_document(np.array(document), [len(document)])
    ours.finish()
    builder.finalize(f"{theirs}.idx")
    for end in ("bin", "idx"):
        assert (tmp_path / f"our.split.{end}").read_bytes() == Path(f"{theirs}.{end}").read_bytes()
