"""Perplexity of held-out text, per token and per word, from the losses that any scorer computes.

    token_perplexity = exp(sum of -log p over all tokens / number of tokens)
    word_perplexity  = exp(sum of -log p over all tokens / number of words)

Words are those of `documents.py` (lm-eval's convention for WikiText), so the second figure does not depend on the
tokenizer.  The first token of a document counts: it is predicted from the token that separates documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from megatron_growth.data.tokenizers import Tokenizer
from megatron_growth.evaluation.documents import Document
from megatron_growth.evaluation.windows import Window, windows

OnProgress = Callable[[int, int], None]


class Scorer(Protocol):
    """A model that predicts tokens: at most `length` at once, and after `start`, which stands before a document."""

    length: int
    start: int
    tokenizer: Tokenizer

    def losses(self, found: Sequence[Window], progress: OnProgress) -> list[float]:
        """Sum of -log p of each window's targets, in nats; `progress` gets (windows done, windows in all)."""
        ...


@dataclass(frozen=True)
class Perplexity:
    """What one text costs a model.

    Attributes:
        nats: sum of -log p over all tokens.
        tokens, words, documents: how many the text has.
        length: most tokens in a window.
        stride: tokens predicted in each window but the first.
    """

    nats: float
    tokens: int
    words: int
    documents: int
    length: int
    stride: int

    @property
    def token_perplexity(self) -> float:
        """Per token of the model's tokenizer."""
        return _exp(self.nats / self.tokens)

    @property
    def word_perplexity(self) -> float:
        """Per word, as it is reported for WikiText."""
        return _exp(self.nats / self.words)

    def to_json(self) -> dict[str, Any]:
        """Both perplexities and the figures behind them."""
        figures = asdict(self)
        return {
            "token_perplexity": self.token_perplexity,
            "word_perplexity": self.word_perplexity,
            "nats_per_token": figures.pop("nats") / self.tokens,
            **figures,
        }


def perplexity(
    scorer: Scorer,
    documents: Sequence[Document],
    *,
    length: int | None = None,
    stride: int | None = None,
    progress: OnProgress = lambda *_: None,
) -> Perplexity:
    """Score a text.

    Args:
        documents: at least one.
        length: tokens in a window; the model's own length when None.
        stride: tokens predicted in a window; all of them when None.
        progress: called with (windows done, windows in all).

    Raises:
        ValueError: stride is not between 1 and length.
    """
    length = length or scorer.length
    ids = scorer.tokenizer.encode_batch([document.text for document in documents])
    found = [window for one in ids for window in windows(one, scorer.start, length, stride)]
    return Perplexity(
        nats=math.fsum(scorer.losses(found, progress)),
        tokens=sum(len(one) for one in ids),
        words=sum(document.words for document in documents),
        documents=len(documents),
        length=length,
        stride=stride or length,
    )


def _exp(value: float) -> float:
    """exp, infinite where the result is too large for a float."""
    return math.exp(value) if value < 700 else math.inf
