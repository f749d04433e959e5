"""How far two models' predictions agree: KL divergence and top-1 agreement on a text (Family: neighbouring sizes).

    KL(A || B) = sum over v of p_A(v) (log p_A(v) - log p_B(v)), averaged over the predicted positions, in nats
    top-1      = share of positions at which both put the same token first

The vocabulary is read in blocks, with a running maximum and running sums, so memory is bounded by positions x block,
not positions x vocabulary.

Shape legend: N positions, H hidden (the models' may differ), V vocabulary rows, B rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_growth.errors import DataError
from megatron_growth.evaluation.documents import Document
from megatron_growth.evaluation.huggingface import ROWS, HuggingFaceModel, blocks
from megatron_growth.evaluation.perplexity import OnProgress
from megatron_growth.evaluation.windows import batches, windows

VOCABULARY_BLOCK = 8192


@dataclass(frozen=True)
class Agreement:
    """How far models A and B agree on one text.

    Attributes:
        kl, kl_reverse: means of KL(A || B) and KL(B || A) in nats.
        top1: share of positions at which both put the same token first.
        positions: number of predicted tokens.
    """

    kl: float
    kl_reverse: float
    top1: float
    positions: int


def agreement(
    a: HuggingFaceModel,
    b: HuggingFaceModel,
    documents: Sequence[Document],
    *,
    length: int,
    progress: OnProgress = lambda *_: None,
) -> Agreement:
    """Compare two models on a text.

    Args:
        a, b: models with the same tokenizer.
        length: tokens in a window.
        progress: called with (windows done, windows in all).

    Raises:
        DataError: the tokenizers differ.
    """
    if a.tokenizer.fingerprint != b.tokenizer.fingerprint or len(a.output) != len(b.output):
        raise DataError(
            f"the models have different tokenizers: {len(a.output)} and {len(b.output)} tokens",
            where=f"{a.folder}, {b.folder}",
            fix="compare models that were trained with the same tokenizer",
        )
    ids = a.tokenizer.encode_batch([document.text for document in documents])
    found = [window for one in ids for window in windows(one, a.start, length)]
    sums, done = torch.zeros(3, dtype=torch.float64), 0
    with torch.inference_mode():
        for numbers in batches(found, a.batch):
            batch = [found[number] for number in numbers]
            (first, _, counts), (second, _, _) = a.scored(batch), b.scored(batch)
            for rows in blocks(int(counts.sum()), ROWS):
                sums += compare(first[rows], a.output, second[rows].to(first.device), b.output, VOCABULARY_BLOCK).cpu()
            done += len(numbers)
            progress(done, len(found))
    positions = sum(len(window.targets) for window in found)
    kl, reverse, top1 = (sums / positions).tolist()
    return Agreement(max(kl, 0.0), max(reverse, 0.0), top1, positions)


def compare(
    hidden_a: torch.Tensor, output_a: torch.Tensor, hidden_b: torch.Tensor, output_b: torch.Tensor, block: int
) -> torch.Tensor:
    """Sums over positions of KL(A || B), KL(B || A) and equal first tokens: (3,) in float64.

    Args:
        hidden_a, hidden_b: (N, H) what each model's output layer reads.
        output_a, output_b: (V, H) output weights, of which B = `block` rows are read at a time.
    """
    total_a, total_b = _Softmax(len(hidden_a), hidden_a.device), _Softmax(len(hidden_b), hidden_b.device)
    for rows in blocks(len(output_a), block):
        a = (hidden_a @ output_a[rows].T).double()
        b = (hidden_b @ output_b[rows].to(hidden_b.device).T).double()
        total_a.add(a, b, rows.start)
        total_b.add(b, a, rows.start)
    # log p = logit - log Z; the cross term is the expectation of the other model's logits under this one's softmax.
    kl = total_a.mean_own - total_a.log_z - total_a.mean_other + total_b.log_z
    reverse = total_b.mean_own - total_b.log_z - total_b.mean_other + total_a.log_z
    same = (total_a.best == total_b.best).double()
    return torch.stack([kl.sum(), reverse.sum(), same.sum()])


class _Softmax:
    """A softmax seen block by block: log Z, likeliest token, expectations of its own and of another model's logits."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._peak = torch.full((count,), -math.inf, dtype=torch.float64, device=device)
        self._z, self._own, self._other = torch.zeros((3, count), dtype=torch.float64, device=device)
        self.best = torch.zeros(count, dtype=torch.int64, device=device)

    def add(self, own: torch.Tensor, other: torch.Tensor, at: int) -> None:
        """Add a block that begins at row `at` of the vocabulary; sums are rescaled where it has a new maximum."""
        high, place = own.max(dim=1)
        self.best = torch.where(high > self._peak, place + at, self.best)
        peak = torch.maximum(high, self._peak)
        scale, weights = torch.exp(self._peak - peak), torch.exp(own - peak[:, None])
        self._z = self._z * scale + weights.sum(dim=1)
        self._own = self._own * scale + (weights * own).sum(dim=1)
        self._other = self._other * scale + (weights * other).sum(dim=1)
        self._peak = peak

    @property
    def log_z(self) -> torch.Tensor:
        """(N,) log of the sum of exponentials."""
        return self._peak + torch.log(self._z)

    @property
    def mean_own(self) -> torch.Tensor:
        """(N,) expectation of its own logits."""
        return self._own / self._z

    @property
    def mean_other(self) -> torch.Tensor:
        """(N,) expectation of the other model's logits."""
        return self._other / self._z
