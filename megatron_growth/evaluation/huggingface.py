"""A Hugging Face folder as a model that scores windows and generates text.

Logits are computed for a block of positions at a time, so memory holds hidden states and one block, not
tokens x vocabulary.

Shape legend: b windows, t positions, N scored positions, H hidden, V vocabulary rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_growth.data.tokenizers import Tokenizer
from megatron_growth.data.tokenizers.huggingface import HuggingFaceTokenizer
from megatron_growth.errors import CheckpointError, UnsupportedError, UserError, first_line, nearest
from megatron_growth.evaluation.perplexity import OnProgress
from megatron_growth.evaluation.windows import Window, batches, padded
from megatron_growth.exchange.config import DTYPES
from megatron_growth.exchange.families import FAMILIES
from megatron_growth.exchange.folder import MANIFEST, is_huggingface
from megatron_growth.exchange.source import read_config

ROWS = 256  # positions whose logits are held at a time


class HuggingFaceModel:
    """A Llama, Qwen2 or Qwen3 folder with its tokenizer.

    Args:
        folder: with config.json, safetensors and the tokenizer's files.
        dtype: the one that it computes in.
        device: cpu, cuda, cuda:1 ...; when empty, the GPU if there is one.
        batch: windows at a time.

    Raises:
        CheckpointError: the folder is not a model's, or is damaged.
        DataError: it holds no tokenizer.
        UnsupportedError: its architecture or the dtype is unknown.
        UserError: there is no such device.
    """

    def __init__(self, folder: Path, *, dtype: str = "float32", device: str = "", batch: int = 8) -> None:
        self.folder, self.batch = folder, batch
        self.device = _usable(device) or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer: Tokenizer = HuggingFaceTokenizer(folder)
        self.model = load(folder, dtype, self.device)
        self.length = int(self.model.config.max_position_embeddings)
        self.start = start_of(folder, self.tokenizer.eod)

    def hidden(self, inputs: np.ndarray) -> torch.Tensor:
        """What the output layer reads for token ids (b, t): (b, t, H)."""
        ids = torch.from_numpy(inputs).to(self.device)
        return self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state

    @property
    def output(self) -> torch.Tensor:
        """(V, H) weight of the output layer."""
        return self.model.get_output_embeddings().weight

    @torch.inference_mode()
    def losses(self, found: Sequence[Window], progress: OnProgress = lambda *_: None) -> list[float]:
        """Sum of -log p of each window's targets, in nats."""
        sums, done = [0.0] * len(found), 0
        for numbers in batches(found, self.batch):
            hidden, targets, counts = self.scored([found[number] for number in numbers])
            owner = np.repeat(numbers, counts.sum(axis=1))
            for rows in blocks(len(targets)):
                logits = (hidden[rows] @ self.output.T).float()
                nats = torch.nn.functional.cross_entropy(logits, targets[rows], reduction="none").double().cpu().numpy()
                for number, value in zip(owner[rows], nats, strict=True):
                    sums[number] += float(value)
            done += len(numbers)
            progress(done, len(found))
        return sums

    def scored(self, batch: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Hidden states (N, H) and targets (N,) of the scored positions, and a mask (b, t) of these positions."""
        inputs, targets, counts = padded(batch)
        hidden = self.hidden(inputs)[torch.from_numpy(counts).to(self.device)]
        return hidden, torch.from_numpy(targets[counts]).to(self.device), counts


def blocks(count: int, size: int = ROWS) -> Iterator[slice]:
    """Consecutive slices of at most `size` places."""
    for at in range(0, count, size):
        yield slice(at, min(at + size, count))


def load(folder: Path, dtype: str, device: str) -> Any:
    """The model of a folder, in evaluation mode.

    Raises:
        CheckpointError, UnsupportedError: as for `HuggingFaceModel`.
    """
    import transformers

    if dtype not in DTYPES:
        raise UnsupportedError(f"models are not evaluated in {dtype!r}", where="--dtype", fix=nearest(dtype, DTYPES))
    family = read_config(folder).get("model_type")
    known = FAMILIES.names()
    if family not in known:
        raise UnsupportedError(
            f"models of type {family!r} are not evaluated", where=str(folder), fix=nearest(str(family), known)
        )
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # safetensors, json and transformers raise types of their own for damaged folders
        raise CheckpointError(
            f"transformers cannot load the model: {first_line(error)}",
            where=str(folder),
            fix="export it again, or restore the folder",
        ) from error
    return model.to(device).eval()


def _usable(device: str) -> str:
    """The device's name, after putting a tensor there; "" stays "".

    Raises:
        UserError: torch cannot use it here.
    """
    try:
        # Where Megatron's stand-in for CUDA is installed, a tensor for a GPU lies on the host.
        if device and torch.empty(1, device=device).device.type != torch.device(device).type:
            raise RuntimeError("there is none")
    except Exception as error:  # torch raises several types for a wrong name, and for a device that is missing
        raise UserError(
            f"the device {device!r} cannot be used here: {first_line(error)}",
            where="--device",
            fix="give cpu, cuda or cuda:N, or leave it out",
        ) from None
    return device


def start_of(folder: Path, eod: int) -> int:
    """The token before a document: the one that separated documents in training, or the BOS of a foreign model."""
    if (folder / MANIFEST).is_file() or not is_huggingface(folder):
        return eod
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_text("utf-8")).get("bos_token_id") if path.is_file() else None
        if isinstance(found, int):
            return found
    return eod
