"""A small corpus that a tiny model learns at once: what Megatron's mock data counts, in a file."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

DOCUMENTS = 200
LONGEST = 4096  # tokens of a document, as in Megatron's mock data


@functools.cache
def counting_corpus(vocab: int) -> Path:
    """Documents that count from 1, modulo `vocab`; they are there until this process ends.

    Megatron's mock data counts as well, but lays out two million samples in each rank at each start, which takes as
    long as four iterations of a tiny model.

    Args:
        vocab: tokens, the last of which ends a document.

    Returns:
        The prefix of an indexed dataset, for --data-path.
    """
    import numpy as np

    from megatron_growth.data.merge import builder_class

    folder = Path(tempfile.mkdtemp(prefix="counting-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    prefix = folder / "corpus"
    builder = builder_class()(f"{prefix}.bin", dtype=np.int32)
    for length in np.random.default_rng(0).integers(1, LONGEST, DOCUMENTS):
        tokens = np.append(np.arange(1, length) % vocab, vocab - 1)
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(f"{prefix}.idx")
    return prefix
