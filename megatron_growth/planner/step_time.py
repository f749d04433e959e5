"""Seconds of one optimizer step and of one checkpoint on a cluster, term by term, each with its formula in words.

    compute    FLOPs (exact accounting) / (GPUs x peak x MFU), times the imbalance of the pipeline's ranks; the layers'
               matrices at the FP8 peak and MFU where the stage trains in FP8
    bubble     compute x (P - 1) / (v M)
    TP         4 all-reduces a layer and micro-batch (6 with recomputation) of s b H activations, ring: 2 (t - 1) / t of
               their bytes over NVLink
    gradients  fp32, reduced and scattered (distributed optimizer) or all-reduced once a step, ring: (d - 1) / d of
               their bytes, or twice that; what the backward pass of the last micro-batch does not hide
    weights    gathered once a step (distributed optimizer): (d - 1) / d of their bytes; what the forward pass of the
               first micro-batch does not hide
    save       checkpoint / bandwidth of the storage; in the background with asynchronous saving

P pipeline ranks, v virtual stages, M micro-batches, t TP, d DP, s tokens of a sample, b micro-batch, H hidden.
(Narayanan et al. 2021, sections 2.2 and 3.)

A data-parallel group inside a node has NVLink's bandwidth.  Over nodes the adapters of a node together carry one ring
(the bus bandwidth that nccl-tests' all_reduce_perf prints); the t groups of a node that send at the same time share it.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_growth.planner import flops
from megatron_growth.planner.inventory import Inventory
from megatron_growth.planner.memory import RankMemory, Setting
from megatron_growth.recipes.cluster import ClusterProfile
from megatron_growth.records.human import size


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step; what is hidden behind computing is not in `gradients` and `weights`.

    Attributes:
        gradients_hidden, weights_hidden: communication that computing hides.
        save: of one checkpoint, while training waits.
        formulas: how each came about, in numbers.
    """

    compute: float
    bubble: float
    tensor: float
    gradients: float
    weights: float
    gradients_hidden: float
    weights_hidden: float
    save: float
    formulas: dict[str, str]

    @property
    def step(self) -> float:
        """One step, without saving."""
        return self.compute + self.bubble + self.tensor + self.gradients + self.weights

    def hours(self, iterations: int, save_interval: int) -> float:
        """Of a stage, its checkpoints included."""
        return (iterations * self.step + -(-iterations // save_interval) * self.save) / 3600


def step_time(
    inventory: Inventory, setting: Setting, memory: RankMemory, profile: ClusterProfile, checkpoint_bytes: int
) -> StepTime:
    """The estimate for one layout.

    Args:
        memory: of the rank that needs most.
    """
    computing, compute_words = _computing(inventory, setting, profile)
    imbalance = _imbalance(setting)
    compute = computing * imbalance
    bubble = computing * (setting.pp - 1) / (setting.vpp * setting.micro_batches)
    tensor, tensor_words = _tensor(inventory, setting, profile)
    bus, bus_words = data_parallel_bus(setting, profile)
    ring = (setting.dp - 1) / setting.dp / (bus * 1e9)
    micro_batch = computing / setting.micro_batches
    reduce = memory.gradients_bytes * ring * (1 if setting.distributed_optimizer else 2)
    gather = memory.weights_bytes * ring if setting.distributed_optimizer else 0.0
    reduce_hidden = min(reduce, micro_batch * 2 / 3) if setting.overlap_gradients else 0.0
    gather_hidden = min(gather, micro_batch / 3) if setting.overlap_weights else 0.0
    save = 0.0 if setting.async_save else checkpoint_bytes / (profile.storage.write * 1e9)
    share = f"{setting.dp - 1}/{setting.dp} / {bus:g} GB/s ({bus_words})"
    formulas = {
        "compute": compute_words + (f" x {imbalance:.3g}" if imbalance != 1 else "") + f" = {compute:.3g} s",
        "bubble": f"{computing:.3g} s x {setting.pp - 1} / ({setting.vpp} x {setting.micro_batches}) = {bubble:.3g} s",
        "TP": tensor_words,
        "gradients": f"{size(memory.gradients_bytes)} x {'' if setting.distributed_optimizer else '2 x '}{share} = "
        f"{reduce:.3g} s, {reduce_hidden:.3g} s hidden",
        "weights": f"{size(memory.weights_bytes)} x {share} = {gather:.3g} s, {gather_hidden:.3g} s hidden",
        "save": f"{size(checkpoint_bytes)} / {profile.storage.write:g} GB/s = {save:.3g} s each"
        if save
        else "in the background",
    }
    shown = {"bubble": setting.pp > 1, "TP": setting.tp > 1, "gradients": reduce > 0, "weights": gather > 0}
    return StepTime(
        compute=compute,
        bubble=bubble,
        tensor=tensor,
        gradients=reduce - reduce_hidden,
        weights=gather - gather_hidden,
        gradients_hidden=reduce_hidden,
        weights_hidden=gather_hidden,
        save=save,
        formulas={name: words for name, words in formulas.items() if shown.get(name, True)},
    )


def _computing(inventory: Inventory, setting: Setting, profile: ClusterProfile) -> tuple[float, str]:
    """Seconds of computing one step if all ranks were equally busy, and their formula."""
    parts = flops.exact_flops_by_part(inventory, setting.sequence_length, recompute=setting.recompute == "full")
    tokens = setting.sequence_length * setting.micro_batch_size * setting.micro_batches * setting.dp
    gpu, count = profile.gpu, profile.gpus
    plain, fast = sum(parts.values()) * tokens, 0.0
    if setting.precision == "fp8" and gpu.fp8_tflops:
        fast = parts["linear"] * tokens
        plain -= fast
    words = f"{plain:.3g} FLOPs / ({count} x {gpu.peak_tflops:g} TFLOP/s x {gpu.mfu:g})"
    seconds = plain / (count * gpu.peak_tflops * 1e12 * gpu.mfu)
    if fast and gpu.fp8_tflops:
        seconds += fast / (count * gpu.fp8_tflops * 1e12 * gpu.fp8_mfu)
        words += f" + {fast:.3g} FLOPs / ({count} x {gpu.fp8_tflops:g} TFLOP/s x {gpu.fp8_mfu:g})"
    return seconds, words


def _tensor(inventory: Inventory, setting: Setting, profile: ClusterProfile) -> tuple[float, str]:
    width = 4 if setting.precision == "fp32" else 2
    passes = 4 + (2 if setting.recompute == "full" else 0)
    layers = max(setting.layers_per_chunk) * setting.vpp
    activations = width * setting.sequence_length * setting.micro_batch_size * inventory.shape.hidden
    total = setting.micro_batches * passes * layers * activations
    share = 2 * (setting.tp - 1) / setting.tp
    seconds = total * share / (profile.network.inside_node * 1e9)
    words = (
        f"{setting.micro_batches} micro-batches x {passes} x {layers} layers x {size(activations)} x "
        f"{share:.3g} / {profile.network.inside_node:g} GB/s = {seconds:.3g} s"
    )
    return seconds, words


def data_parallel_bus(setting: Setting, profile: ClusterProfile) -> tuple[float, str]:
    """(GB/s, in words) of one data-parallel group's ring."""
    network = profile.network
    if setting.dp * setting.tp <= profile.gpus_per_node:
        return network.inside_node, "NVLink"
    sharing = min(setting.tp, profile.gpus_per_node)
    node = network.node_bus(profile.gpus_per_node)
    return node / sharing, f"{node:g} a node" + (f", {sharing} groups" if sharing > 1 else "")


def _imbalance(setting: Setting) -> float:
    """How much longer the pipeline rank with most layers computes than the average one."""
    layers = [sum(setting.layers_per_chunk[rank :: setting.pp]) for rank in range(setting.pp)]
    return max(layers) * setting.pp / sum(layers) if sum(layers) else 1.0
