"""What a post-training run is asked to do, as one frozen record; it is written into the run's folder for a restart."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from megatron_growth.errors import UserError
from megatron_growth.posttrain.presets import Kind
from megatron_growth.records.place import plain
from megatron_growth.records.storage import reading_record

FILE_NAME = "request.json"


@dataclass(frozen=True)
class Request:
    """One SFT or DPO run, or a sweep of SFT runs over several rates.

    Attributes:
        preset: name of the preset that the settings come from.
        model: as it was given, but by its whole path when the command line gave it.
        data, valid_data: what --data and --valid-data name.
        rates: learning rates, one training each; the best is kept.
        epochs, batch, warmup, max_length, betas, weight_decay, clip, beta: as in `Preset`.
        valid: share of the examples that is held out.
        max_steps: number of steps that ends training early; 0 for all epochs.
        micro_batch: most examples that one process takes at a time.
        packing: whether to put several examples, which do not see each other, into one sequence (SFT).
        dtype: of the forward pass: bfloat16 or float32.
        zero: stage of DeepSpeed's ZeRO; 0 without DeepSpeed.
        seed: of all random choices, such as the split and the order.
        tokenizer, chat_template: as for `load_tokenizer_of`.
        best_by: figure that chooses among the rates: `valid_loss` or `valid_accuracy` (of single tokens).
        saves: checkpoints per training.
    """

    kind: Kind
    preset: str
    model: str
    data: str
    rates: tuple[float, ...]
    epochs: float
    batch: int
    warmup: float
    max_length: int
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    beta: float = 0.0
    valid: float = 0.0
    valid_data: str = ""
    max_steps: int = 0
    micro_batch: int = 4
    packing: bool = False
    dtype: str = "bfloat16"
    zero: int = 0
    seed: int = 0
    tokenizer: str = ""
    chat_template: str = ""
    best_by: str = "valid_loss"
    saves: int = 10

    def to_json(self) -> dict[str, Any]:
        """Plain types; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Lists become tuples again."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
        return cls(**values)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The request with which a folder was begun."""
        file = folder / FILE_NAME
        with reading_record(file, "what was asked for", f"remove {folder}, and give the command again"):
            return cls.from_json(json.loads(file.read_text("utf-8")))

    def placed(self, *, missing: bool = False) -> Self:
        """With what is here by its whole path: the command means the same from another working directory.

        Args:
            missing: also what is not here, to compare with a request whose files were removed since.
        """
        keys = ("model", "data", "valid_data", "tokenizer", "chat_template")
        given = {key: getattr(self, key) for key in keys if getattr(self, key)}
        paths: dict[str, Any] = {key: plain(text) for key, text in given.items() if missing or Path(text).exists()}
        return replace(self, **paths)

    def text(self) -> str:
        """One setting a line, for comparing two requests."""
        document = self.to_json()
        return "".join(f"{f.name}: {json.dumps(document[f.name])}\n" for f in fields(self))

    def accumulation(self, processes: int) -> tuple[int, int]:
        """(examples at a time, number of times) for one process in one update.

        Raises:
            UserError: the batch does not split over the processes.
        """
        share, rest = divmod(self.batch, processes)
        if rest or not share:
            raise UserError(
                f"a batch of {self.batch} does not split over {processes} processes",
                where="--batch",
                fix="take a multiple of the number of processes",
            )
        micro = max(size for size in range(1, min(self.micro_batch, share) + 1) if share % size == 0)
        return micro, share // micro
