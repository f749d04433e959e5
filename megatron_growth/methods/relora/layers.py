"""Low-rank adapters on Megatron's parallel linear layers: y = W x + alpha/r B A dropout(x) (LoRA, arXiv 2106.09685).

An adapted layer stays the module it was: its class is swapped for a subclass with two more parameters, `lora_a` and
`lora_b`.  So the name, the checkpoint key and the sharding of its weight are the stock ones, and detaching gives the
stock module back.  Wrapping or parametrizing the module instead would rename the weight, and Megatron would then save a
shard of it as if it were whole.

Shapes, on a rank (TP tensor-parallel ranks, r rank, m out and n in features):

    column parallel (QKV, FFN up)     W m/TP x n    A r x n, whole       B m/TP x r, cut with W
    row parallel (output projections) W m x n/TP    A r x n/TP, cut      B m x r, whole

Only z = A x, r numbers a token, travels between tensor-parallel ranks.  With sequence parallelism the whole factor sees
a part of the sequence: it carries Megatron's `sequence_parallel` mark, for which Megatron sums its gradient.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import mappings
from megatron.core.tensor_parallel.layers import RowParallelLinear, set_tensor_model_parallel_attributes
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint

from megatron_growth.errors import UnsupportedError, UserError
from megatron_growth.layout.model_names import global_name, unwrapped

TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
FACTORS = ("lora_a", "lora_b")
MASTER = "lora_master"  # of the frozen weight, where that is kept in bf16


@dataclass(frozen=True)
class Form:
    """Size, scale and randomness of adapters.

    Attributes:
        rank: r.
        alpha: the product B A is scaled by alpha / r.
        dropout: of the adapter's input.
        seed: of A's initial values, and of those after each restart.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    seed: int = 0


def generator(*words: object) -> torch.Generator:
    """Random numbers on the host that depend on these words only: not on the rank, the layout or what ran before."""
    digest = hashlib.sha256(repr(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


class Adapter:
    """Put in front of a parallel linear class; adds `lora_a` and `lora_b`.

    Attributes:
        lora_name: layout-free name of the layer, `decoder.layers.3.mlp.linear_fc1`.
        lora_master: fp32 weight on the host that a bf16 weight is rounded from; None until something is merged.
        lora_hidden: leave the adapter out of the sharded state, to load a checkpoint that has none.
    """

    lora_name: str
    lora_form: Form
    lora_row: bool
    lora_gated: bool  # rows of the weight are [all gate; all up], each cut over the ranks
    lora_group: torch.distributed.ProcessGroup
    lora_stock: type[torch.nn.Module]
    lora_master: torch.Tensor | None
    lora_hidden: bool
    lora_a: torch.nn.Parameter
    lora_b: torch.nn.Parameter
    weight: torch.nn.Parameter
    sequence_parallel: bool
    training: bool

    def forward(self, input_: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the stock layer returns, (output, bias), with the adapter's part in the output."""
        found = super().forward(input_, *args, **kwargs)  # type: ignore[misc]
        output, normed, bias = _parts(found, input_)
        return output + self.lora_delta(normed), bias

    def lora_delta(self, x: torch.Tensor) -> torch.Tensor:
        """The adapter's part of the output for the layer's (normed) input on this rank."""
        z = F.linear(self.lora_drop(x), self.lora_a)
        if self.lora_row:
            if self.sequence_parallel:
                z = mappings.reduce_scatter_to_sequence_parallel_region(z, group=self.lora_group)
            else:
                z = mappings.reduce_from_tensor_model_parallel_region(z, group=self.lora_group)
        elif self.sequence_parallel:
            z = mappings.gather_from_sequence_parallel_region(
                z, tensor_parallel_output_grad=True, group=self.lora_group
            )
        else:
            z = mappings.copy_to_tensor_model_parallel_region(z, group=self.lora_group)
        return F.linear(z, self.lora_b) * self.lora_scale

    def lora_drop(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout: ranks that hold different elements draw independently, ranks that hold the same ones drop alike."""
        if not (self.lora_form.dropout and self.training):
            return x
        if self.lora_row or self.sequence_parallel:
            with tensor_parallel.get_cuda_rng_tracker().fork():
                return F.dropout(x, self.lora_form.dropout)
        return F.dropout(x, self.lora_form.dropout)

    @property
    def lora_scale(self) -> float:
        """alpha / r."""
        return self.lora_form.alpha / self.lora_form.rank

    @torch.no_grad()
    def lora_product(self) -> torch.Tensor:
        """What the adapter adds to this rank's part of the weight.  Needs no communication, since one factor is whole;
        in fp64, so that every tensor-parallel size rounds alike."""
        return self.lora_scale * (self.lora_b.double() @ self.lora_a.double())

    @torch.no_grad()
    def lora_initial(self, count: int) -> torch.Tensor:
        """A after restart number `count` (0 at the beginning), this rank's part: nn.Linear's own uniform values.

        LoRA and ReLoRA draw A with Kaiming's uniform and a = sqrt(5), which is +-1 / sqrt(in features).
        """
        ranks, inputs = self.lora_group.size(), self.weight.size(1)
        columns = inputs * ranks if self.lora_row else inputs
        words = generator(self.lora_form.seed, self.lora_name, count)
        a = (torch.rand((self.lora_form.rank, columns), generator=words) * 2 - 1) / math.sqrt(columns)
        part = a.chunk(ranks, dim=1)[self.lora_group.rank()] if self.lora_row else a
        # Not contiguous(): a part of one row passes for that with the whole row's stride, which no checkpoint restores.
        part = part.to(device=self.weight.device, dtype=self.weight.dtype)
        return part.clone(memory_format=torch.contiguous_format)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """The stock layer's entries, unchanged, and the adapter's with their own sharding."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)  # type: ignore[misc]
        for name in FACTORS:  # the stock method takes what it does not know for whole tensors
            state.pop(f"{prefix}{name}", None)
        return state if self.lora_hidden else state | self._lora_sharded(prefix, sharded_offsets, metadata)

    def _lora_sharded(self, prefix: str, sharded_offsets: Any, metadata: dict[str, Any]) -> dict[str, Any]:
        tensors = {"lora_a": self.lora_a, "lora_b": self.lora_b}
        cut = {"lora_a": 1} if self.lora_row else {"lora_b": 0}
        if self.weight.dtype != torch.float32:
            tensors[MASTER], cut[MASTER] = lora_master(self), 1 if self.lora_row else 0
        state: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            tensors,
            prefix,
            cut,
            sharded_offsets,
            tp_group=self.lora_group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        if self.lora_gated:  # Megatron's MLP does this for the weight and the bias only
            for name in set(cut) & {"lora_b", MASTER}:
                state[f"{prefix}{name}"] = apply_swiglu_sharded_factory(
                    state[f"{prefix}{name}"],
                    sharded_offsets,
                    metadata.get("singleton_local_shards", False),
                    tp_group=self.lora_group,
                    dp_group=metadata["dp_cp_group"],
                )
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take the master, which is neither parameter nor buffer: those would follow the model to the GPU and bf16."""
        master = state_dict.pop(f"{prefix}{MASTER}", None)
        if master is not None:
            lora_master(self).copy_(master)
        elif f"{prefix}weight" in state_dict:
            self.lora_master = None  # made again, from the loaded weight
        if self.lora_hidden:
            for name in FACTORS:
                state_dict.setdefault(f"{prefix}{name}", getattr(self, name).detach())
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]


@torch.no_grad()
def lora_master(module: Adapter) -> torch.Tensor:
    """The fp32 weight on the host that this rank's weight is rounded from; made from the weight when there is none."""
    if module.lora_master is None:
        module.lora_master = module.weight.detach().to(device="cpu", dtype=torch.float32, copy=True)
    return module.lora_master


def _parts(found: Any, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(output, the layer's input after its norm, bias) of what a stock layer returned.

    Transformer Engine's fused norm and linear, asked for the norm's output, returns ((output, normed), None), or
    (output, bias, normed) when it hands its bias on.
    """
    if len(found) == 3:
        output, bias, normed = found
        return output, normed, bias
    output, bias = found
    if isinstance(output, tuple):
        output, given = output
    return output, given, bias


@functools.cache
def adapted(stock: type[Any]) -> type[Any]:
    """The class of an adapted layer of this stock class."""
    return type(f"LoRA{stock.__name__}", (Adapter, stock), {"__module__": __name__})


def attach(chunks: Sequence[torch.nn.Module], form: Form, layers: Sequence[int] | None = None) -> list[Adapter]:
    """Adapt the linear layers of these Transformer layers and freeze their weights; before Megatron wraps the model.

    Args:
        layers: numbers in the whole model, from 0; None for all.

    Raises:
        UnsupportedError: a layer is of a kind that adapters cannot be put on.
        UserError: the rank is larger than a side of a matrix.
    """
    found = []
    for chunk in chunks:
        model = unwrapped(chunk)
        for local, module in list(model.named_modules()):
            if local.rsplit(".", 1)[-1] not in TARGETS:
                continue
            name = global_name(model, f"{local}.weight").removesuffix(".weight")
            if name.startswith("decoder.layers.") and (layers is None or int(name.split(".")[2]) in layers):
                found.append(_adapt(module, name, form))
    return found


def _adapt(module: Any, name: str, form: Form) -> Adapter:
    stock: Any = type(module)
    if issubclass(stock, Adapter):
        raise UnsupportedError("the layer has an adapter already", where=name, fix="plug in once")
    row = _is_row(module, name)
    group = getattr(module, "tp_group", None) or module._tp_group
    _check_rank(module, name, form, group.size(), row)
    if hasattr(module, "return_layernorm_output"):  # Transformer Engine's fused norm: the adapter reads what W reads
        module.return_layernorm_output, module.return_layernorm_output_gathered = True, False
    module.__class__ = adapted(stock)
    module.lora_name, module.lora_form, module.lora_row, module.lora_stock = name, form, row, stock
    module.lora_group, module.lora_master, module.lora_hidden = group, None, False
    module.lora_gated = name.endswith("linear_fc1") and bool(module.config.gated_linear_unit)
    weight = module.weight
    weight.requires_grad_(False)
    a = torch.nn.Parameter(module.lora_initial(0))
    b = torch.nn.Parameter(torch.zeros((weight.size(0), form.rank), dtype=weight.dtype, device=weight.device))
    cut, whole = (a, b) if row else (b, a)
    set_tensor_model_parallel_attributes(cut, True, 1 if row else 0, 2 if module.lora_gated else 1)
    whole.sequence_parallel = module.sequence_parallel
    for name, factor in zip(FACTORS, (a, b), strict=True):
        factor.allreduce = True
        module.register_parameter(name, factor)
    adapter: Adapter = module
    return adapter


def _is_row(module: Any, name: str) -> bool:
    """Whether the layer is row parallel; UnsupportedError when it is not a layer that adapters know."""
    if getattr(module, "gather_output", False) or getattr(module, "is_expert", False):
        raise UnsupportedError("adapters go on dense parallel linear layers only", where=name, fix="leave it out")
    if getattr(module, "parallel_mode", None) in ("row", "column"):  # Transformer Engine's
        return bool(module.parallel_mode == "row")
    if not isinstance(module, RowParallelLinear | tensor_parallel.ColumnParallelLinear):
        raise UnsupportedError(
            f"adapters do not know the layer class {type(module).__name__}",
            where=name,
            fix="use Megatron's own or Transformer Engine's parallel linear layers",
        )
    return isinstance(module, RowParallelLinear)


def _check_rank(module: Any, name: str, form: Form, ranks: int, row: bool) -> None:
    """Refuse a rank above a side of the whole matrix."""
    rows, columns = module.weight.shape
    size = (rows, columns * ranks) if row else (rows * ranks, columns)
    if not 1 <= form.rank <= min(size):
        raise UserError(
            f"adapters of rank {form.rank} do not fit a matrix of {size[0]} x {size[1]}",
            where=name,
            fix=f"give a rank from 1 to {min(size)}",
        )


def adapters(chunks: Sequence[torch.nn.Module]) -> Iterator[Adapter]:
    """The adapted layers of this rank, in the order of the model."""
    for chunk in chunks:
        yield from (module for module in unwrapped(chunk).modules() if isinstance(module, Adapter))


def detach(chunks: Sequence[torch.nn.Module]) -> None:
    """Give every adapted layer its stock class back, without its adapter: merge first, or the adapters are lost."""
    for module in list(adapters(chunks)):
        for name in FACTORS:
            del module._parameters[name]  # type: ignore[attr-defined]
        if hasattr(module, "return_layernorm_output"):
            module.return_layernorm_output = False
        module.lora_master = None
        module.__class__ = module.lora_stock
