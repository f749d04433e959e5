"""Which documents are for validation: decided by a keyed hash of each document's text.

So the order of the files, the number of workers and the stage do not matter, and exact duplicates fall on the same
side: no validation document is trained on.
"""

from __future__ import annotations

import hashlib


class ValidationSplit:
    """Sends a fraction of all documents, as chosen by `seed`, to validation."""

    def __init__(self, fraction: float, seed: int) -> None:
        """`fraction` of the documents in [0, 1); `seed` chooses another selection of the same size."""
        self._threshold = int(fraction * 2**64)
        self._key = str(seed).encode()

    def is_validation(self, document: bytes) -> bool:
        """Whether the document with this UTF-8 text is for validation."""
        if not self._threshold:
            return False
        digest = hashlib.blake2b(document, digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "big") < self._threshold
