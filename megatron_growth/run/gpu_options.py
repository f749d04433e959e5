"""Megatron's options that follow from the machine and not from the recipe: speed, precision, checkpoints.

Every one of them can be changed by `megatron:` in a recipe or a cluster profile; those of precision and checkpoints
follow from the recipe's own keys.
"""

from __future__ import annotations

from typing import Literal

from megatron_growth import methods
from megatron_growth.backend import nvml
from megatron_growth.errors import RecipeError
from megatron_growth.planner import StagePlan
from megatron_growth.recipes import ClusterProfile, Recipe
from megatron_growth.recipes.flags import merged
from megatron_growth.run.flags import Options

Machine = Literal["gpu", "host"]

# Left alone, Python's garbage collector pauses each rank at other moments; now all pause together, and seldom.
GC_INTERVAL = 100
# Reading 100 GB of checkpoint, or building a sample order on rank 0, takes longer than Megatron's 10 minutes.
TIMEOUT_MINUTES = 60
LOADER_WORKERS = 2


def local_devices() -> int:
    """GPUs of this machine, 0 where there are none."""
    if not nvml.has_driver():
        return 0
    import torch

    return torch.cuda.device_count()


def machine_here() -> Machine:
    """Whether this process would train on a GPU or on the host."""
    return "gpu" if local_devices() else "host"


def speed(stage: StagePlan, machine: Machine) -> Options:
    """Options that make training faster on a GPU and change no result; on the host the loader stays in the process."""
    if machine == "host":
        return {"num-workers": 0}
    options: Options = {
        "cross-entropy-loss-fusion": True,
        "cross-entropy-fusion-impl": "native",
        "num-workers": LOADER_WORKERS,
        "manual-gc": True,
        "manual-gc-interval": GC_INTERVAL,
        "distributed-timeout-minutes": TIMEOUT_MINUTES,
    }
    if (stage.layout.dp or 1) > 1:
        # Each rank reads a share of the checkpoint and sends it to the others, which else would all read all of it.
        options |= {"ckpt-fully-parallel-load": True, "overlap-grad-reduce": True}
        if stage.layout.distributed_optimizer:
            options["overlap-param-gather"] = True
    return options


def cluster_flags(profile: ClusterProfile, stage: StagePlan) -> Options:
    """Megatron flags that a cluster's profile adds to a stage: its switches where they apply, and its `megatron:`."""
    switches, layout = profile.communication, stage.layout
    found: Options = {}
    if switches.tp_overlap and layout.tp > 1 and layout.sequence_parallel:
        found["tp-comm-overlap"] = True
    if switches.user_buffers and distributed_optimizer(stage):
        found["use-nccl-ub"] = True
    if switches.pad_buckets and distributed_optimizer(stage):
        found["ddp-pad-buckets-for-high-nccl-busbw"] = True
    return found | merged(profile.megatron)


def check_together(stage: StagePlan, options: Options) -> None:
    """Refuse flags that contradict the stage's layout or each other, before Megatron's assertion fails on every GPU.

    Args:
        options: all options of the stage, those of `megatron:` included.

    Raises:
        RecipeError: names the flag, what it needs and what to do.
    """
    layout = stage.layout
    needs = {
        "tp-comm-overlap": (layout.tp > 1 and layout.sequence_parallel, "tensor and sequence parallelism"),
        "overlap-param-gather": (distributed_optimizer(stage), "the distributed optimizer"),
        "use-nccl-ub": (distributed_optimizer(stage), "the distributed optimizer"),
    }
    for flag, (is_there, what) in needs.items():
        if options.get(flag) and not is_there:
            raise RecipeError(
                f"--{flag} needs {what}, and the layout of this stage ({layout}) has none",
                where=f"stage {stage.name}, megatron",
                fix=f"take {flag} out of `megatron:` for this stage, or change its layout",
            )
    if options.get("use-precision-aware-optimizer") and stage.state_is_grown and stage.precision != "fp32":
        raise RecipeError(
            "--use-precision-aware-optimizer keeps of each fp32 weight the 16 bits that the bf16 weight lacks, and a "
            "later stage grows this one's optimizer state",
            where=f"stage {stage.name}, megatron",
            fix="leave the flag out, or set growth: {optimizer_state: reset} in the later stage",
        )
    if options.get("overlap-param-gather") and not options.get("overlap-grad-reduce"):
        raise RecipeError(
            "--overlap-param-gather needs --overlap-grad-reduce, which is turned off",
            where=f"stage {stage.name}, megatron",
            fix="turn both off: megatron: {overlap-grad-reduce: false, overlap-param-gather: false}",
        )


def precision(stage: StagePlan) -> Options:
    """fp32, bf16, or bf16 with the layers' matrices in FP8: E4M3 forward, E5M2 backward, one scale a tensor."""
    options: Options = {"bf16": stage.precision != "fp32"}
    if stage.precision == "fp8":
        options |= {"fp8-format": "hybrid", "fp8-recipe": "tensorwise"}
        # The distributed optimizer then holds weights in FP8 and gathers them so after a step.  A stage that grows
        # holds them in bf16, since Megatron takes the masters of FP8 weights from values kept aside before growth; so
        # does a stage whose method adds to its weights.
        held = stage.source is None and all(methods.get(word).takes_fp8_weights for word in stage.methods)
        options["fp8-param-gather"] = held and distributed_optimizer(stage)
    return options


def saving(recipe: Recipe, stage: StagePlan) -> Options:
    """How checkpoints are written."""
    options: Options = {}
    if recipe.checkpoint.async_save:
        # Megatron drops --async-save without a lasting worker, and its default strategy is another package's.
        options |= {"async-save": True, "use-persistent-ckpt-worker": True, "async-strategy": "mcore"}
    return options | resharding(recipe, stage)


def resharding(recipe: Recipe, stage: StagePlan) -> Options:
    """The form in which the distributed optimizer's state is stored.

    The fully reshardable form gathers a tensor-parallel shard's whole state on one rank at every save.  The default
    form writes each rank's buckets as they are: only the data-parallel size may change, and fp32 is not supported.
    """
    if not distributed_optimizer(stage):
        return {}
    if stage.precision == "fp32" or recipe.checkpoint.reshardable == "always":
        return {"dist-ckpt-optim-fully-reshardable": True}
    return {"growth-reshardable-end": True} if stage.state_is_grown else {}


def distributed_optimizer(stage: StagePlan) -> bool:
    """Whether the optimizer's state is divided among data-parallel ranks."""
    return stage.layout.distributed_optimizer and (stage.layout.dp or 1) > 1
