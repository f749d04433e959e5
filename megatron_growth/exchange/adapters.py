"""Export the adapters alone, from the middle of a reset interval, as PEFT loads them (`adapter_model.safetensors`).

Megatron's fused QKV has one A, and a B with the rows of query, key and value; PEFT adapts the three separately, so A is
written three times and B is split.  The same goes for gate and up of SwiGLU.  The adapters belong to the weights of
the same checkpoint: they do not hold what was merged before, nor what trained in full.

Shapes: A (r, in), B (out, r).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_growth import methods
from megatron_growth.checkpoint import metadata
from megatron_growth.checkpoint.source import Source
from megatron_growth.errors import CheckpointError, UserError
from megatron_growth.exchange.config import family_of
from megatron_growth.exchange.names import pieces
from megatron_growth.methods.relora import ReLoRA
from megatron_growth.records.storage import storage_errors, write_json, write_whole
from megatron_growth.records.unfinished import publish, unfinished

_PREFIX = "base_model.model."
_PURPOSE = "adapters for PEFT"


@dataclass(frozen=True)
class AdapterExport:
    """What was written; `bytes` are those of the tensors."""

    path: Path
    rank: int
    layers: tuple[int, ...]
    bytes: int


def export_adapters(source: Source, target: Path, *, trust_checkpoint: bool = False) -> AdapterExport:
    """Write the adapters of an opened Megatron checkpoint as a PEFT folder.

    Raises:
        CheckpointError: it has no adapters, because they are merged or it never had any.
    """
    args = metadata.arguments_of(source, trust=trust_checkpoint)
    method = method_of(args)
    if method is None or not any(name.endswith(".lora_a") for name, _ in source.tensors):
        raise CheckpointError(
            "the checkpoint has no adapters of its own: they are merged into its weights, or it never had any",
            where=str(source.path),
            fix="export it without --adapters, or name a checkpoint from the middle of a ReLoRA run",
        )
    shape = metadata.shape_of(source, args, unmerged=True)
    tensors: dict[str, torch.Tensor] = {}
    for piece in pieces(family_of(shape, args), shape):
        stem = piece.parameter.name.removesuffix(".weight")
        if (f"{stem}.lora_a", None) not in source.tensors or piece.layer is None:
            continue
        if piece.layer in source.tensors[f"{stem}.lora_a", None].boxes:
            a, b = (source.rows(source.tensors[f"{stem}.{name}", None], piece.layer) for name in ("lora_a", "lora_b"))
            module = _PREFIX + piece.name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = a
            tensors[f"{module}.lora_B.weight"] = torch.cat([b[start:stop] for start, stop in piece.ranges])
    layers = tuple(sorted({int(name.split(".layers.")[1].split(".")[0]) for name in tensors}))
    everything = list(layers) == list(range(shape.layers))
    _write(target, tensors, _config(method, tensors, None if everything else list(layers)))
    return AdapterExport(target, method.rank, layers, sum(t.numel() * t.element_size() for t in tensors.values()))


def method_of(args: Any) -> ReLoRA | None:
    """The method that made a checkpoint's adapters, from its saved arguments."""
    written = getattr(args, "growth_method", None) or ()
    return next((m for m in map(methods.get, written) if isinstance(m, ReLoRA)), None)


def _config(method: ReLoRA, tensors: dict[str, torch.Tensor], layers: list[int] | None) -> dict[str, Any]:
    """PEFT's LoraConfig."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "target_modules": sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors}),
        "layers_to_transform": layers,
        "layers_pattern": "layers" if layers is not None else None,
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
    }


def _write(target: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    from safetensors.torch import save

    with unfinished(target, _PURPOSE) as folder, storage_errors(target):
        if folder is None:
            raise UserError("the folder exists already", where=str(target), fix="name another one with --to")
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        # Not save_file: it would turn a refusal of the file system into an error without its errno.
        write_whole(folder / "adapter_model.safetensors", save(whole, {"format": "pt"}))
        write_json(folder / "adapter_config.json", config)
        publish(folder, target, _PURPOSE)
