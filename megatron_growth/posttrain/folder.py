"""The folder in which a run works, and what it becomes.

WORK/                    TARGET.partial, locked and claimed (records/unfinished.py)
  request.json           what was asked for
  inputs.json            SHA-256 of the model, its tokenizer and its chat template
  base/                  the exported model, when a Megatron checkpoint was given
  tokenizer/             with its chat template
  data/                  train.jsonl, valid.jsonl, examples.json
  cache/                 tokenized examples
  gathering.json         while the best model moves up: what posttrain.json will hold
  rates/1e-05/           one training: checkpoints/, metrics.jsonl, result.json, model/ (of the best rate only)
TARGET/                  the model as transformers loads it, with posttrain.json, metrics.jsonl and, of a sweep,
                         sweep.json and sweep.png
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_growth.records.storage import write_json

WHOLE = "whole"  # in a checkpoint folder: every process has written its part


@dataclass(frozen=True)
class Result:
    """The result of one training.

    Attributes:
        rate: largest learning rate.
        steps: optimizer steps.
        examples: rows of the data set; a packed sequence counts as one.
        tokens: tokens that were read, over all epochs.
        train_loss: mean over the last tenth of the steps, in nats per token (DPO: its own loss).
        valid_loss_before, valid_loss: of the held-out examples; None without any.
        valid_accuracy: SFT: share of the answers' tokens that are predicted; DPO: share of the pairs in which the
            chosen answer has the larger reward.
        seconds: time of the last process, from its start to its end.
        diverged: step at which the loss was not finite; None for a training that ended well.
        notes: what was done differently from the request, and why.
    """

    rate: float
    steps: int
    examples: int
    tokens: int
    train_loss: float | None
    valid_loss_before: float | None
    valid_loss: float | None
    valid_accuracy: float | None
    seconds: float
    diverged: int | None = None
    notes: tuple[str, ...] = ()


class RateFolder:
    """The folder of one training."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"  # the trainer's
        self.metrics = path / "metrics.jsonl"  # as `records.metrics` reads them
        self.model = path / "model"
        self._result = path / "result.json"

    @property
    def result(self) -> Result | None:
        """The result; None while training is not finished."""
        if not self._result.is_file():
            return None
        document = json.loads(self._result.read_text("utf-8"))
        return Result(**(document | {"notes": tuple(document["notes"])}))

    def finish(self, result: Result) -> None:
        """Write the result, as the last thing that a training does."""
        write_json(self._result, asdict(result))


class Work:
    """The folder of a run that is under way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base = path / "base"
        self.tokenizer = path / "tokenizer"
        self.data = path / "data"
        self.cache = path / "cache"
        self.failures = path / "failures"  # where processes leave what ended them
        self.log = path / "log.txt"  # what the processes print, where there are several

    def rate(self, rate: float) -> RateFolder:
        """The folder of one training."""
        return RateFolder(self.path / "rates" / repr(float(rate)))
