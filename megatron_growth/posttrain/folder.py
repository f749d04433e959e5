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


@dataclass(frozen=True)
class RateFolder:
    """The folder of one training."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The trainer's checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, as `records.metrics` reads them."""
        return self.path / "metrics.jsonl"

    @property
    def model(self) -> Path:
        """The tuned model."""
        return self.path / "model"

    @property
    def result(self) -> Result | None:
        """The result; None while training is not finished."""
        file = self.path / "result.json"
        if not file.is_file():
            return None
        document = json.loads(file.read_text("utf-8"))
        return Result(**(document | {"notes": tuple(document["notes"])}))

    def finish(self, result: Result) -> None:
        """Write the result, as the last thing that a training does."""
        write_json(self.path / "result.json", asdict(result))


@dataclass(frozen=True)
class Work:
    """The folder of a run that is under way."""

    path: Path

    @property
    def base(self) -> Path:
        """Where a Megatron checkpoint is exported to."""
        return self.path / "base"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's files."""
        return self.path / "tokenizer"

    @property
    def data(self) -> Path:
        """The examples."""
        return self.path / "data"

    @property
    def cache(self) -> Path:
        """Tokenized examples, cached by the library that makes them."""
        return self.path / "cache"

    @property
    def failures(self) -> Path:
        """Where processes leave what ended them."""
        return self.path / "failures"

    @property
    def log(self) -> Path:
        """What the processes print, where there are several."""
        return self.path / "log.txt"

    def rate(self, rate: float) -> RateFolder:
        """The folder of one training."""
        return RateFolder(self.path / "rates" / repr(float(rate)))
