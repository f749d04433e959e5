"""The objects of a grown checkpoint: arguments, iteration, optimizer groups, and the extra state of each layer."""

from __future__ import annotations

import argparse
import copy
import io
import re
from typing import Any

import torch

from megatron_growth.checkpoint.metadata import COMMON, PROVENANCE
from megatron_growth.checkpoint.optimizer_state import rewrite_rates
from megatron_growth.checkpoint.saved_objects import load_object
from megatron_growth.checkpoint.source import Source
from megatron_growth.layout.architecture import NORM_EPSILON, SIZES
from megatron_growth.operators import GrowthMap

_EXTRA = re.compile(r"^(decoder\.layers\.)(?:(\d+)\.)?(.+\._extra_state)/shard_(\d+)_(\d+)$")
# What a run counts; a grown model that starts from scratch has seen nothing.
_COUNTERS = ("consumed_train_samples", "consumed_valid_samples", "skipped_train_samples", "iteration")

_OF_OPTIMIZER = ("distrib_optim", "growth_optimizer")  # how content metadata of optimizer state begin


def grown_arguments(args: argparse.Namespace, growth: GrowthMap, provenance: dict[str, Any]) -> argparse.Namespace:
    """Megatron's saved arguments with the target's sizes."""
    out, target = copy.copy(args), growth.target
    sizes = {name: getattr(target, field) for name, field in SIZES.items()} | {
        "encoder_num_layers": target.layers,
        "padded_vocab_size": target.vocab,
        "layernorm_epsilon": growth.norm_epsilon(NORM_EPSILON.of(args)),
    }
    for name, value in sizes.items():
        if hasattr(out, name) or name == "layernorm_epsilon":
            setattr(out, name, value)
    out.group_query_attention = target.query_groups != target.heads
    vars(out).pop("growth_start_anew", None)  # every run that trains it has one of its own (`plugin/anew.py`)
    setattr(out, PROVENANCE, provenance)
    return out


def grown_common(
    common: dict[str, Any],
    growth: GrowthMap,
    provenance: dict[str, Any],
    *,
    keep_progress: bool,
    rates: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """The common state of the target.

    Args:
        keep_progress: keep iteration, scheduler and optimizer groups (optimizer state is grown); otherwise the target
            starts at iteration 0 with nothing consumed.
        rates: (--lr, --min-lr) of the run that will load it, where they differ from the source's.
    """
    out = dict(common)
    out["args"] = grown_arguments(common["args"], growth, provenance)
    if keep_progress:
        return rewrite_rates(out, *rates)
    for name in _COUNTERS:
        if hasattr(out["args"], name):
            setattr(out["args"], name, 0)
    for name in ("optimizer", "opt_param_scheduler", "rerun_state_machine"):
        out.pop(name, None)
    if described := out.get("content_metadata"):  # how layers are stored stays; of optimizer state there is none
        out["content_metadata"] = {k: v for k, v in described.items() if not k.startswith(_OF_OPTIMIZER)}
    return {**out, "iteration": 0, "num_floating_point_operations_so_far": 0.0}


def grown_objects(
    source: Source, growth: GrowthMap, common: dict[str, Any], *, keep_progress: bool, trust: bool = False
) -> dict[str, bytes]:
    """Every stored object of the target: {key: bytes}.

    No pickle of the source is passed on unchecked: each is loaded from the allow-list first, unless it is trusted.
    Random states are kept with the progress: Megatron uses them when the layout is the source's, and ignores them
    otherwise.

    Raises:
        CheckpointError: an object names code that is not on the allow-list, or is damaged.
    """
    objects = {COMMON: _stored([common]), **_extra_states(source, growth, trust)}
    if keep_progress:
        for prefix in ("rng_state/", "rerun_state_machine_state/"):
            for key in source.objects(prefix):
                _load(source, key, trust)
                objects[key] = source.object_bytes(key)
    return objects


def _load(source: Source, key: str, trust: bool) -> Any:
    return load_object(source.object_bytes(key), where=f"{source.path}, key {key}", trust=trust)


def _stored(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _extra_states(source: Source, growth: GrowthMap, trust: bool) -> dict[str, bytes]:
    """Extra state of every new layer: Transformer Engine's, which is empty unless FP8 was calibrated.

    An empty one follows the first source layer of its new layer.  A calibration describes the source's own activations,
    and is a pickle within the pickle: the grown model starts without one and calibrates again.
    """
    found: dict[str, dict[int, bytes]] = {}
    out: dict[str, bytes] = {}
    for key in source.objects(""):
        if "_extra_state" not in key:
            continue
        value = _load(source, key, trust)
        data = source.object_bytes(key) if _is_empty(value) else _stored(_emptied(value))
        if match := _EXTRA.match(key):
            layer = int(match.group(2) if match.group(2) is not None else match.group(4))
            name = match.group(1) + "{layer}" + match.group(3) if match.group(2) else key.rsplit("/", 1)[0]
            found.setdefault(name, {})[layer] = data
        else:
            out[key] = data
    layers = growth.target.layers
    for name, by_layer in found.items():
        for layer, take in enumerate(growth.layers.takes):
            data = by_layer.get(take.sources[0][0] if take.sources else min(by_layer), by_layer[min(by_layer)])
            if "{layer}" in name:
                out[name.replace("{layer}", f"{layer}.") + "/shard_0_1"] = data
            else:
                out[f"{name}/shard_{layer}_{layers}"] = data
    return out


def _is_empty(value: Any) -> bool:
    """Whether a value is empty, or a list or dictionary of empty values."""
    if isinstance(value, list | tuple | dict):
        return all(_is_empty(v) for v in (value.values() if isinstance(value, dict) else value))
    if isinstance(value, io.BytesIO):
        return not value.getbuffer().nbytes
    return value is None or (isinstance(value, torch.Tensor) and value.numel() == 0)


def _emptied(value: Any) -> Any:
    """The same lists around an empty tensor, which Transformer Engine takes for "no calibration"."""
    if isinstance(value, list):
        return [_emptied(v) for v in value]
    return torch.empty(0, dtype=torch.uint8)
