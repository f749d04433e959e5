"""Memory of training per GPU: the papers' formulas, and an estimate of what Megatron allocates on each rank.

Papers (STEP, eq. 1; Reuse, appendix B): 16 bytes per trainable weight (weight 2, gradient 2, master and moments 12), 2
per frozen one.

Megatron, bf16: weight 2; gradient in the DDP buffer 4 (fp32, Megatron's default with bf16); master 4 and moments 8,
divided by DP with the distributed optimizer.  fp32: weight 4, gradient 4, moments 8, no master.  Frozen weights have
neither gradient, master nor moments.

Activations, with a fused attention (flash or SDPA), no dropout, per layer and sample of S tokens: four tensors of S H
(the two residual states and the two norms' outputs; divided by TP only with sequence parallelism) and, divided by TP,
S (2A + 2G) D (queries, keys, values and the attention's output; S (A + G) D more with query and key norms) and S 3F (2F
without gate).

Shape legend: S sequence length, H hidden, F ffn, A query heads, G query groups, D head dim, V padded vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_growth.methods import cost_of
from megatron_growth.planner.inventory import Entry, Inventory
from megatron_growth.planner.parallel import ParallelLayout
from megatron_growth.recipes.blocks import Checkpoint
from megatron_growth.records.human import size
from megatron_growth.shape import ModelShape

# Weights of a bucket of gradients, at least and by data-parallel rank (DistributedDataParallel, when it overlaps).
BUCKET, BUCKET_PER_RANK = 40_000_000, 1_000_000
# What fills a rank's memory while it trains; `RankMemory` has a number of bytes for each.
PARTS = ("weights", "gradients", "masters", "moments", "activations", "logits")


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank, by what they are for.

    Attributes:
        pipeline_rank: the pipeline rank counted.
        micro_batches_in_flight: samples' activations held at once, in micro-batches.
        save_gpu_bytes: what a save adds to the state on the GPU, where activations and logits are free then.
        save_host_bytes: what a save takes of the host's memory, for this rank.
    """

    pipeline_rank: int
    weights_bytes: int
    gradients_bytes: int
    masters_bytes: int
    moments_bytes: int
    activations_bytes: int
    logits_bytes: int
    micro_batches_in_flight: float
    save_gpu_bytes: int = 0
    save_host_bytes: int = 0

    @property
    def state_bytes(self) -> int:
        """Weights, gradients, masters and moments."""
        return self.weights_bytes + self.gradients_bytes + self.masters_bytes + self.moments_bytes

    @property
    def total_bytes(self) -> int:
        """Everything counted here; the CUDA context and NCCL's buffers (1 to 2 GiB) come on top."""
        return self.state_bytes + self.activations_bytes + self.logits_bytes

    @property
    def saving_bytes(self) -> int:
        """GPU memory that a save takes, the state included."""
        return self.state_bytes + self.save_gpu_bytes

    @property
    def peak_bytes(self) -> int:
        """The larger of training and saving."""
        return max(self.total_bytes, self.saving_bytes)

    @property
    def training_in_words(self) -> str:
        """The parts that are not zero, and their sum."""
        sizes = [(part, getattr(self, f"{part}_bytes")) for part in PARTS]
        return " + ".join(f"{part} {size(number)}" for part, number in sizes if number) + f" = {size(self.total_bytes)}"


@dataclass(frozen=True)
class Room:
    """Memory that one rank may fill; infinite where it is not known.

    Attributes:
        gpu: its GPU's.
        host: its share of its node's memory.
    """

    gpu: float = math.inf
    host: float = math.inf

    def lacks(self, memory: RankMemory) -> str | None:
        """Why a rank does not fit, in a clause; None when it does."""
        if memory.total_bytes > self.gpu:
            return f"training needs {size(memory.total_bytes)} of GPU memory a rank, and there are {size(self.gpu)}"
        if memory.saving_bytes > self.gpu:
            return (
                f"a save needs {size(memory.saving_bytes)} of GPU memory a rank ({size(memory.save_gpu_bytes)} of it "
                f"for the save alone), and there are {size(self.gpu)}"
            )
        if memory.save_host_bytes > self.host:
            return f"a save needs {size(memory.save_host_bytes)} of host memory a rank, and there are {size(self.host)}"
        return None


@dataclass(frozen=True, kw_only=True)
class Setting(ParallelLayout):
    """What memory depends on besides the model: the layout, and how a stage trains in it.

    Attributes:
        micro_batches: micro-batches of one step and rank (gradient accumulation).
        overlap_gradients: gradients are reduced, in buckets, while the backward pass goes on.
        overlap_weights: weights are gathered while the forward pass goes on.
        gathered_save: a save gathers the distributed optimizer's state on every rank (fully reshardable).
        async_save: checkpoints are written while training goes on.
    """

    dp: int = 1
    precision: str
    micro_batch_size: int
    micro_batches: int
    sequence_length: int
    overlap_gradients: bool = True
    overlap_weights: bool = True
    gathered_save: bool = False
    async_save: bool = False

    @classmethod
    def of_layout(
        cls,
        layout: ParallelLayout,
        *,
        precision: str,
        global_batch_size: int,
        micro_batch_size: int,
        sequence_length: int,
        checkpoint: Checkpoint,
        state_is_grown: bool,
        flags: Mapping[str, object],
    ) -> Setting:
        """The setting of a stage that trains in a layout; batch sizes in sequences.

        Args:
            state_is_grown: a later stage grows its optimizer state.
            flags: of the escape hatch, which may turn overlapping off.
        """
        dp = layout.dp or 1
        values: dict[str, Any] = vars(layout) | {"dp": dp}
        # fp32 state loads in no other form
        gathered = precision == "fp32" or checkpoint.reshardable == "always" or state_is_grown
        return cls(
            **values,
            precision=precision,
            micro_batch_size=micro_batch_size,
            micro_batches=global_batch_size // (micro_batch_size * dp),
            sequence_length=sequence_length,
            overlap_gradients=flags.get("overlap-grad-reduce", True) is not False,
            overlap_weights=flags.get("overlap-param-gather", True) is not False,
            gathered_save=gathered and layout.distributed_optimizer and dp > 1,
            async_save=checkpoint.async_save,
        )


def paper_bytes(trainable: float, frozen: float, adapters: float = 0.0) -> float:
    """16 P_trainable + 2 P_frozen + 16 E (STEP, eq. 2; Reuse, appendix B)."""
    return 16 * (trainable + adapters) + 2 * frozen


def rank_memory(inventory: Inventory, setting: Setting, pipeline_rank: int) -> RankMemory:
    """The estimate for one pipeline rank; its tensor-parallel ranks are alike."""
    weight = 4 if setting.precision == "fp32" else 2
    held, trained, moments = _on_rank(inventory, setting, pipeline_rank)
    shards = setting.dp if setting.distributed_optimizer else 1
    activations, in_flight = _activations(inventory.shape, setting, pipeline_rank, weight)
    last = pipeline_rank == setting.pp - 1
    weights = weight * held
    save_gpu, save_host = _saving(setting, pipeline_rank, weights, trained)
    return RankMemory(
        pipeline_rank=pipeline_rank,
        weights_bytes=weights,
        gradients_bytes=4 * trained,
        masters_bytes=-(-4 * trained // shards) if setting.precision != "fp32" else 0,
        moments_bytes=-(-4 * moments // shards),
        activations_bytes=activations,
        logits_bytes=_logits(inventory.shape, setting, weight) if last else 0,
        micro_batches_in_flight=in_flight,
        save_gpu_bytes=save_gpu,
        save_host_bytes=save_host,
    )


def _saving(setting: Setting, pipeline_rank: int, weights: int, trained: int) -> tuple[int, int]:
    """(GPU, host) bytes that a save takes on one rank.

    Every rank writes its share of weights and state, 1 / DP of them, from host memory.  A gathered save (fully
    reshardable, Megatron's `get_parameter_state_dp_zero`) first gathers the state of the whole tensor- and pipeline-
    parallel shard on every rank: three fp32 numbers a weight on the host, and for the largest bucket of gradients one
    number a weight on the GPU and two more on the host.
    """
    share = -(-weights // setting.dp)
    if not setting.gathered_save:
        return 0, share + -(-12 * trained // setting.dp)
    bucket = trained
    if setting.overlap_gradients and pipeline_rank == 0:  # elsewhere Megatron has one bucket
        bucket = min(trained, max(BUCKET, setting.dp * BUCKET_PER_RANK))
    return 4 * bucket, share + 12 * trained + 8 * bucket


def peak_memory(inventory: Inventory, setting: Setting) -> RankMemory:
    """The estimate for the pipeline rank that needs most."""
    ranks = [rank_memory(inventory, setting, rank) for rank in range(setting.pp)]
    return max(ranks, key=lambda rank: (rank.peak_bytes, rank.total_bytes))


def _on_rank(inventory: Inventory, setting: Setting, pipeline_rank: int) -> tuple[int, int, int]:
    """Numbers on one rank, adapters included: held, trained, and fp32 numbers of optimizer state."""
    owner = [c % setting.pp for c, count in enumerate(setting.layers_per_chunk) for _ in range(count)]  # of each layer
    held = trained = moments = 0
    for p in inventory.parameters:
        if pipeline_rank not in _places(p, owner, setting, inventory.shape):
            continue
        size = -(-p.size // setting.tp) if p.split != "none" else p.size
        adapter = sum(factor.on_rank(setting.tp) for factor in p.factors)
        own = cost_of(inventory.methods, p, setting.tp).optimizer_numbers
        held += size + adapter
        trained += adapter
        moments += 2 * adapter
        if p.trainable:
            trained += size
            moments += 2 * size if own is None else own
    return held, trained, moments


def _places(p: Entry, owner: list[int], setting: Setting, shape: ModelShape) -> set[int]:
    """Pipeline ranks that hold a parameter: a tied embedding lies on the first and the last."""
    if p.kind == "embedding":
        return {0, setting.pp - 1} if shape.tied_embeddings else {0}
    return {owner[p.layer]} if p.layer < shape.layers else {setting.pp - 1}


def _activations(shape: ModelShape, setting: Setting, pipeline_rank: int, width: int) -> tuple[int, float]:
    """(bytes, micro-batches in flight) of the activations of one rank at its peak."""
    tokens = setting.sequence_length * setting.micro_batch_size
    whole = tokens * shape.hidden // (setting.tp if setting.sequence_parallel else 1)
    split = tokens * (2 * (shape.heads + shape.query_groups) * shape.head_dim) // setting.tp
    if shape.qk_norm:  # what the norms give, beside the queries and keys that they take
        split += tokens * (shape.heads + shape.query_groups) * shape.head_dim // setting.tp
    norms = 2
    if shape.sublayers == "full":
        norms, split = 4, split + tokens * shape.ffn * (3 if shape.gated else 2) // setting.tp
    per_layer, working = width * (norms * whole + split), 0
    if setting.recompute == "full":
        per_layer, working = width * whole, per_layer
    layers = sum(setting.layers_per_chunk[pipeline_rank :: setting.pp])
    in_flight = chunks_in_flight(setting, pipeline_rank) / setting.vpp
    return int(in_flight * layers * per_layer) + working, in_flight


def chunks_in_flight(setting: Setting, pipeline_rank: int) -> int:
    """Model chunks whose activations a rank holds at once: 1F1B, interleaved when vpp > 1 (Narayanan et al. 2021)."""
    behind = setting.pp - pipeline_rank - 1
    if setting.vpp == 1:
        return min(behind + 1, setting.micro_batches)
    return min((setting.vpp - 1) * setting.pp + 2 * behind + 1, setting.vpp * setting.micro_batches)


def _logits(shape: ModelShape, setting: Setting, width: int) -> int:
    """Logits, their fp32 copy and the softmax kept for the backward pass, on the last pipeline rank."""
    tokens = setting.sequence_length * setting.micro_batch_size
    return tokens * shape.vocab // setting.tp * (width + (8 if width == 2 else 4))
