"""What the plugin does at Megatron's events: wrappers around functions of `megatron.training.training`.

Each `around_*` method takes an original function and returns one that calls it and adds a little; `rebind.py` puts it
in place.  A wrapper passes on the arguments that it does not use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.training import get_args, training

from megatron_growth.checkpoint.agreement import together
from megatron_growth.plugin import stopping
from megatron_growth.plugin.addition import Addition, Wrap, after_step, named, then
from megatron_growth.plugin.arguments import PluginOptions
from megatron_growth.plugin.late import LateLines, LateNumber
from megatron_growth.plugin.state_by_name import any_rank
from megatron_growth.records.human import plural
from megatron_growth.records.metrics import MetricsFile, MetricsLine

Function = Callable[..., Any]

# What Megatron's train() hands on to an evaluation under the same name.
_HANDED_ON = (
    *("forward_step_func", "model", "process_non_loss_data_func", "config", "non_loss_data_func"),
    *("p2p_communicator", "pg_collection"),
)


class Events:
    """The state of one plugged-in process between Megatron's calls.

    Args:
        options: of the run.
        after_setup, after_iteration: the user's functions (`plug_into`).
    """

    def __init__(
        self, options: PluginOptions, after_setup: Sequence[Function] = (), after_iteration: Sequence[Function] = ()
    ) -> None:
        self.after_setup, self.after_iteration = tuple(after_setup), tuple(after_iteration)
        self._options = options
        self._metrics = MetricsFile(options.metrics) if options.metrics else None
        self._is_open = False
        self._waiting: list[MetricsLine] = []
        self._late = LateLines(self._write)
        self._lacks_rate: bool | None = None  # the rank that writes has no learning rate of its own
        self._evaluation: tuple[int, str] | None = None
        self._validation_loss: float | None = None
        self._mark = time.perf_counter()

    def addition(self) -> Addition:
        """What the flags and the user's functions of this run need."""
        options = self._options
        has_metrics, stops = options.metrics is not None, options.stop_below is not None
        wanted: dict[str, tuple[bool, Wrap]] = {
            "train": (has_metrics or options.evaluate_at_start, self.around_train),
            "training_log": (has_metrics, self.around_training_log),
            "save_checkpoint_and_time": (has_metrics, self.around_save),
            "evaluate": (has_metrics or stops, then(self._evaluated)),
            "evaluate_and_print_results": (has_metrics or stops, self.around_evaluate_and_print),
            "setup_model_and_optimizer": (bool(self.after_setup), then(self._set_up)),
            "post_training_step_callbacks": (bool(self.after_iteration), after_step(self._step)),
        }
        return Addition(bind={name: wrap for name, (is_wanted, wrap) in wanted.items() if is_wanted})

    # Records ------------------------------------------------------------------------------------------------------

    def record(self, record: MetricsLine) -> None:
        """Write one record from the rank that has the loss; one made before the iteration is known waits."""
        if self._writes():
            self._late.flush(wait=True)
            self._write(record)

    def _writes(self) -> bool:
        """Whether this rank writes the metrics."""
        return self._metrics is not None and dist.get_rank() == dist.get_world_size() - 1

    def _write(self, record: MetricsLine) -> None:
        if self._is_open and self._metrics is not None:
            self._metrics.write(record)
        else:
            self._waiting.append(record)

    def _open(self) -> None:
        """Open the metrics at the iteration that was loaded (0 for a new run)."""
        if self._is_open:
            return
        self._is_open = True
        iteration = get_args().iteration
        if self._metrics is not None:
            together(lambda: self._resume(iteration), str(self._options.metrics))
        self.record({"event": "start", "iteration": iteration, "time": round(time.time(), 3)})
        for record in self._waiting:
            self.record(record)
        self._waiting.clear()

    def _resume(self, iteration: int) -> None:
        if self._metrics is not None and self._writes():
            dropped = self._metrics.resume(iteration)
            if dropped:
                what = plural(dropped, "line")
                print(f"growth: removed from {self._options.metrics}: {what} beyond iteration {iteration}")

    # Wrappers -----------------------------------------------------------------------------------------------------

    def _set_up(self, found: tuple[Any, Any, Any]) -> None:
        for hook in self.after_setup:
            hook(*found)

    def _step(self, *now: Any) -> None:
        for hook in self.after_iteration:
            hook(*now)

    def around_train(self, original: Function) -> Function:
        """Open the metrics and evaluate before the first step."""

        def train(*args: Any, **kwargs: Any) -> Any:
            self._open()
            if self._options.evaluate_at_start and get_args().iteration == 0 and get_args().do_valid:
                self._evaluate_at_start(named(original, args, kwargs))
            self._mark = time.perf_counter()
            try:
                result = original(*args, **kwargs)
            except SystemExit:  # how Megatron ends at --exit-interval and on a signal
                self._late.flush(wait=True)
                raise
            except BaseException:  # the GPU may never finish what it was given
                self._late.flush(wait=False)
                raise
            self._late.flush(wait=True)
            return result

        return train

    def _evaluate_at_start(self, given: dict[str, Any]) -> None:
        """One evaluation as train(**given) makes it, with the weights as they were initialised, grown or given."""
        hooked = training.should_disable_forward_pre_hook(get_args())
        if hooked:  # parameters are in place; there is nothing to gather yet
            training.disable_forward_pre_hook(given["model"], param_sync=False)
        training.evaluate_and_print_results(
            prefix="iteration 0",
            data_iterator=given["valid_data_iterator"],
            iteration=0,
            **{name: given[name] for name in _HANDED_ON if name in given},
        )
        if hooked:
            training.enable_forward_pre_hook(given["model"])

    def around_training_log(self, original: Function) -> Function:
        """Write the figures of one iteration without waiting for the GPU where Megatron does not."""

        def training_log(*args: Any, **kwargs: Any) -> Any:
            given = named(original, args, kwargs)
            now = time.perf_counter()
            seconds, self._mark = now - self._mark, now
            rate = self._rate(given["learning_rate"])
            if self._writes():
                self._late.add(_iteration(given, rate, seconds), LateNumber(_loss_tensor(given["loss_dict"])))
            result = original(*args, **kwargs)
            self._late.flush(wait=False)
            return result

        return training_log

    def _rate(self, own: float | None) -> float | None:
        """The learning rate to write; a rank without trainable parameters has none, and asks the others."""
        if not self._options.methods:
            return own
        if self._lacks_rate is None:  # the same in every iteration
            self._lacks_rate = any_rank(self._writes() and own is None)
        return training.reduce_max_stat_across_model_parallel_group(own) if self._lacks_rate else own

    def around_evaluate_and_print(self, original: Function) -> Function:
        """Note which evaluation this is, and leave its time out of the step time."""

        def evaluate_and_print_results(*args: Any, **kwargs: Any) -> Any:
            given = named(original, args, kwargs)
            prefix, iteration = given["prefix"], given["iteration"]
            self._open()
            when = "test" if "test set" in prefix else "final" if "validation set" in prefix else "interval"
            self._evaluation = (iteration, when if iteration or when != "interval" else "start")
            self._validation_loss = None
            result = original(*args, **kwargs)
            self._evaluation = None
            if iteration and when == "interval":
                self._stop_when_reached(iteration)
            self._mark = time.perf_counter()
            return result

        return evaluate_and_print_results

    def _stop_when_reached(self, iteration: int) -> None:
        """Stop on every rank when the evaluation that has just been made reached the target."""
        target = self._options.stop_below
        if target is None:
            return
        loss = stopping.known_to_all(self._validation_loss)
        if loss <= target:
            self.record({"event": "stopped", "iteration": iteration, "loss": loss, "target": target})
            stopping.stop_after_this_iteration()

    def _evaluated(self, found: tuple[dict[str, torch.Tensor] | None, Any, Any]) -> None:
        """Write the loss of one evaluation."""
        if found[0] and self._evaluation is not None:
            iteration, when = self._evaluation
            event = {"event": "test"} if when == "test" else {"event": "validation", "when": when}
            loss = _loss_tensor(found[0])
            self._validation_loss = None if loss is None else float(loss)
            self.record({**event, "iteration": iteration, "loss": self._validation_loss})

    def around_save(self, original: Function) -> Function:
        """Write down each checkpoint and how long it took."""

        def save_checkpoint_and_time(iteration: int, *rest: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = original(iteration, *rest, **kwargs)
            self._mark = time.perf_counter()
            self.record({"event": "checkpoint", "iteration": iteration, "seconds": round(self._mark - begin, 6)})
            if self._metrics is not None:
                self._metrics.sync()
            return result

        return save_checkpoint_and_time


def _iteration(given: dict[str, Any], learning_rate: float | None, seconds: float) -> MetricsLine:
    """The metrics line of an iteration that training_log(**given) is to log, with a place for its loss."""
    args = get_args()
    batch = args.micro_batch_size * args.data_parallel_size * training.get_num_microbatches()
    record = {
        "iteration": given["iteration"],
        "samples": args.consumed_train_samples,
        "tokens": args.consumed_train_samples * args.seq_length,
        "loss": None,
        "lr": learning_rate,
        "grad_norm": None if given["grad_norm"] is None else float(given["grad_norm"]),
        "seconds": round(seconds, 6),
        "tokens_per_second": round(batch * args.seq_length / seconds, 1),
    }
    return {**record, "skipped": True} if given["skipped_iter"] else record


def _loss_tensor(losses: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The language-model loss of a dictionary of losses."""
    return losses.get("lm loss", next(iter(losses.values()), None))
