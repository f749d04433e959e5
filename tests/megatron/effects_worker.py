"""What a command line makes of a training process: model, optimizer, schedule, data, as plain values to compare.

`look_at` runs this package's pretraining script as far as its training loop, many command lines in one process.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from dataclasses import fields, is_dataclass
from typing import Any

STEPS = (1, 2, 5, 9, 12, 20)  # at which the learning rate is looked at


class _Reached(Exception):
    """The training loop was reached."""


def look_at(lines: dict[str, list[str]], source: str = "") -> dict[str, dict[str, Any]]:
    """What each command line makes, by its name.

    Args:
        lines: words by name; those of `small` come before those that grow from it.
        source: where the model of `small` is saved.
    """
    return {name: _look(words, source if name == "small" else "") for name, words in lines.items()}


def _look(words: list[str], save: str) -> dict[str, Any]:
    from megatron.core.enums import ModelType
    from megatron.training import get_args, pretrain, training

    from megatron_growth.run import pretrain as script

    original, given = training.train, []

    @functools.wraps(original)
    def reached(*args: Any, **kwargs: Any) -> Any:
        given.extend(args)
        raise _Reached

    training.train, sys.argv = reached, ["pretrain", *words]
    try:
        container = script.configured()
        pretrain(container, script.datasets, ModelType.encoder_or_decoder, script.forward_step)
    except _Reached:
        _, model, optimizer, scheduler, batches, *_ = given
        seen = _seen(get_args(), container, model, optimizer, scheduler, batches)
        if save:
            get_args().save = save
            training.save_checkpoint(1, model, optimizer, scheduler, 0)
        return seen
    finally:
        training.train = original
        _forget()
    raise AssertionError("training was not reached")


def _seen(args: Any, container: Any, model: Any, optimizer: Any, scheduler: Any, batches: Any) -> dict[str, Any]:
    from megatron_growth.layout.model_names import named_parameters, unwrapped

    parameters = dict(named_parameters(model))
    inner = [unwrapped(chunk) for chunk in model]
    rotary = [chunk.rotary_pos_emb.inv_freq.tolist() for chunk in inner if hasattr(chunk, "rotary_pos_emb")]
    return {
        "arguments": {key: value for key, value in vars(args).items() if _plain(value)},
        "shapes": {name: tuple(p.shape) for name, p in parameters.items()},
        "values": {name: _digest(p) for name, p in parameters.items()},
        "spread": {name: round(p.float().std().item(), 4) for name, p in parameters.items() if p.dim() > 1},
        "dtypes": {name: str(p.dtype) for name, p in parameters.items()},
        "trains": {name: p.requires_grad for name, p in parameters.items()},
        "rotary": rotary,
        "config": _values(inner[0].config),
        "tied": inner[0].share_embeddings_and_output_weights,
        "chunks": len(model),
        "layers": [[type(part).__name__ for part in layer.children()] for layer in inner[0].decoder.layers],
        "modules": sorted({type(m).__name__ for m in inner[0].modules()}),
        "ddp": _values(model[0].ddp_config),
        "optimizer": [type(part).__name__ for part in _parts(optimizer)],
        "clip": [part.config.clip_grad for part in _parts(optimizer)],
        "groups": [_group(group) for part in _parts(optimizer) for group in part.param_groups],
        "rates": _rates(scheduler, optimizer, args),
        "validation": _values(container.validation),
        "checkpoint": _values(container.checkpoint),
        "batch": _first_batch(batches),
    }


def _first_batch(batches: Any) -> str | None:
    """What the first model chunk of this rank reads; None where it reads nothing."""
    first = batches[0] if isinstance(batches, list) else batches
    return None if first is None else _digest(next(first)["tokens"])


def _parts(optimizer: Any) -> list[Any]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _group(group: dict[str, Any]) -> dict[str, Any]:
    keys = ("max_lr", "min_lr", "wd_mult", "weight_decay", "betas", "eps", "default_config")
    return {key: group[key] for key in keys if key in group} | {
        "parameters": sum(p.numel() for p in group["params"]),
    }


def _rates(scheduler: Any, optimizer: Any, args: Any) -> list[list[float]]:
    """Learning rate of every group at some steps; the scheduler is left at the last of them."""
    found = []
    groups = [group for part in _parts(optimizer) for group in part.param_groups]
    for step in STEPS:
        scheduler.num_steps = step * args.global_batch_size
        scheduler.step(0)
        found.append([float(group["lr"]) for group in groups])
    return found


def _values(config: Any) -> dict[str, Any]:
    if not is_dataclass(config):
        return {}
    return {f.name: getattr(config, f.name) for f in fields(config) if _plain(getattr(config, f.name, None))}


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple | list | None) and "object at" not in repr(value)


def _digest(tensor: Any) -> str:
    return hashlib.sha256(tensor.detach().float().contiguous().numpy().tobytes()).hexdigest()[:12]


def _forget() -> None:
    """Take Megatron's global state back; the process group stays."""
    import signal

    from megatron.core import parallel_state, rerun_state_machine
    from megatron.core.num_microbatches_calculator import unset_num_microbatches_calculator
    from megatron.training.global_vars import destroy_global_vars

    import megatron_growth as growth

    growth.unplug()
    destroy_global_vars()
    unset_num_microbatches_calculator()
    parallel_state.destroy_model_parallel()
    rerun_state_machine.destroy_rerun_state_machine()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
