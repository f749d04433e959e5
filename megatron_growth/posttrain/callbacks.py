"""Callbacks of the trainer: metrics, a line for people, marks on whole checkpoints, and a gentle stop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from megatron_growth.posttrain.folder import WHOLE
from megatron_growth.records.metrics import MetricsFile, MetricsLine, read
from megatron_growth.records.storage import write_whole

_EXTRA = {
    "mean_token_accuracy": "accuracy",
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
}


class Recorder(TrainerCallback):
    """Writes metrics.jsonl, on the first process only.

    Args:
        batch: examples per step.
        start: step from which training goes on.
        show: called with each line and the total number of steps.
    """

    def __init__(self, path: Path, batch: int, start: int, show: Callable[[MetricsLine, int], None]) -> None:
        self._file, self._batch, self._show = MetricsFile(path), batch, show
        self._file.resume(start)
        self._tokens_before = read(path).tokens if start else 0
        self._time = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Write a start, an event as in the metrics of a stage."""
        self._file.write(
            {"event": "start", "iteration": state.global_step, "steps": state.max_steps, "time": time.time()}
        )
        self._time = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:  # noqa: ARG002
        """Write one line for each step."""
        if "loss" not in logs or not state.is_world_process_zero:
            return
        now = time.perf_counter()
        seconds, self._time = now - self._time, now
        tokens = self._tokens_before + int(logs.get("num_tokens", 0))
        line = {
            "iteration": state.global_step,
            "samples": state.global_step * self._batch,
            "tokens": tokens,
            "loss": float(logs["loss"]),
            "lr": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "seconds": seconds,
        }
        line |= {ours: logs[theirs] for theirs, ours in _EXTRA.items() if theirs in logs}
        self._file.write(line)
        self._show(line, state.max_steps)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **kwargs: Any) -> None:  # noqa: ARG002
        """Write the held-out loss before and after training."""
        when = "final" if state.global_step else "start"
        self._file.write(
            {"event": "validation", "iteration": state.global_step, "when": when, "loss": metrics["eval_loss"]}
        )
        self._time = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Put the lines up to a checkpoint on the disk, as the checkpoint is."""
        self._file.write({"event": "checkpoint", "iteration": state.global_step})
        self._file.sync()
        self._time = time.perf_counter()


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint once every process has written its part: a save that is killed leaves no mark."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Wait for every process to save, then mark."""
        if dist.is_initialized():
            dist.barrier()
        if state.is_world_process_zero:
            write_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE, "")


class NoNumber(TrainerCallback):
    """Ends training when the loss is not finite; `step` is the one at which that happened, or None."""

    def __init__(self) -> None:
        self.step: int | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:  # noqa: ARG002
        """Stop; every process sees the same loss."""
        if not math.isfinite(float(logs.get("loss", 0.0))):
            self.step = state.global_step
            control.should_training_stop, control.should_save = True, False


class GentleStop(TrainerCallback):
    """On SIGTERM: finish the step, save and leave, which `stopped` tells; all processes must save at the same step."""

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Stop between two steps if any process was asked to."""
        asked = torch.tensor([int(self._asked)], device=args.device)
        if dist.is_initialized():
            dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked.item() and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True
