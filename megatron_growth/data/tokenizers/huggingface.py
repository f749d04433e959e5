"""Any Hugging Face tokenizer folder, opened locally."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_growth.data.hub_address import api, hub_errors, parse
from megatron_growth.errors import DataError, first_line
from megatron_growth.records.storage import parse_json, sha256_of

# The files that decide the ids; a model's weights, which do not, may lie in the same folder.
_PATTERNS = ("token*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.model", "spiece*", "*.bpe")
# What transformers calls a tokenizer that is all in its tokenizer.json.
_GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")


def open_folder(folder: Path) -> Any:
    """transformers' tokenizer of a folder, as its own files say.

    AutoTokenizer would take the class of the model beside it for some types (qwen2), whatever the files say: ids of a
    sentencepiece tokenizer come out wrong.  No code of the folder is run; raises what transformers raises.
    """
    import transformers

    kind = getattr(transformers, opened_by(folder))
    return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def opened_by(folder: Path) -> str:
    """The class of transformers that opens a folder's tokenizer, for us and in a model's card."""
    return "PreTrainedTokenizerFast" if _declares_generic(folder) else "AutoTokenizer"


def _declares_generic(folder: Path) -> bool:
    """Whether a tokenizer is all in its tokenizer.json, and of no model's own class."""
    try:
        declared = parse_json((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):  # transformers says what is wrong, if something is
        return False
    own = isinstance(declared, dict) and "auto_map" not in declared and declared.get("tokenizer_class") in _GENERIC
    return own and (folder / "tokenizer.json").is_file()


class HuggingFaceTokenizer:
    """The tokenizer of a folder; its end-of-sequence token ends a document and `add_special_tokens` is off."""

    def __init__(self, folder: Path) -> None:
        """Load from `folder` without network; raises DataError when it holds no tokenizer or no eos token."""
        # The workers are the parallelism; threads of the Rust library under them would only compete.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import transformers

        transformers.logging.set_verbosity_error()
        try:
            self._tokenizer = open_folder(folder)
        except Exception as error:  # transformers raises many types for a folder it cannot read
            raise DataError(
                f"This folder holds no Hugging Face tokenizer: {first_line(error)}",
                where=str(folder),
                fix="Give a folder with tokenizer.json or the files that AutoTokenizer.save_pretrained writes.",
            ) from error
        if self._tokenizer.eos_token_id is None:
            raise DataError(
                "The tokenizer has no end-of-sequence token to separate documents with.",
                where=str(folder),
                fix='Set "eos_token" in its tokenizer_config.json.',
            )
        self.eod = int(self._tokenizer.eos_token_id)
        # Not len(): a vocabulary may have holes, and the embedding needs a row for the largest id.
        self.vocab_size = max(self.eod, *self._tokenizer.get_vocab().values()) + 1
        self.name = f"huggingface {folder.name}"
        self.fingerprint = fingerprint(folder)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids [tokens] (int32) of each text."""
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]


def fetched(address: str) -> Path:
    """The folder with the tokenizer files of `hf:OWNER/NAME`, from the hub or its cache; nothing else is fetched.

    Raises DataError when the hub has no such tokenizer, or refuses access to it.
    """
    where = f"--tokenizer {address}"
    found = parse(address, where)
    with hub_errors(f"The tokenizer {found.name!r}", where):
        folder = api(where).snapshot_download(
            found.name, revision=found.revision, allow_patterns=[*_PATTERNS, "config.json"]
        )
    return Path(folder)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of the tokenizer files in `folder`."""
    files = sorted({path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()})
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
