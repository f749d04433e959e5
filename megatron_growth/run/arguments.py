"""From a planned stage to the words of Megatron's command line.  Pure functions: no files, no Megatron.

Options that follow from the machine instead of the recipe are in `gpu_options.py`, the user's own in `flags.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_growth.errors import UnsupportedError
from megatron_growth.layout.architecture import ROPE_FACTOR, arguments_of, flags_of
from megatron_growth.methods.rates import multiple
from megatron_growth.planner import StagePlan
from megatron_growth.recipes import Recipe
from megatron_growth.recipes.flags import Flags, merged
from megatron_growth.run import gpu_options
from megatron_growth.run.directory import StageDirectory
from megatron_growth.run.flags import Options, words
from megatron_growth.run.gpu_options import Machine
from megatron_growth.words import write

# Schedules that Megatron's own styles express (WSO is constant); the plugin follows any other.
_MEGATRON_STYLES = ("constant", "cosine", "linear", "wsd", "wso")


@dataclass(frozen=True)
class StageData:
    """What a stage is fed with.

    Attributes:
        flags: Megatron's flags of the dataset and its tokenizer.
        cache: folder for Megatron's sample orders.
        validation_samples: sequences of every evaluation; rounded down to whole batches of the stage.
    """

    flags: Sequence[str]
    cache: Path
    validation_samples: int


@dataclass(frozen=True)
class Place:
    """Where a stage is launched.

    Attributes:
        machine: what it runs on.
        cluster_flags: Megatron flags of the cluster's profile; those of the recipe take precedence.
        wandb_project: Weights & Biases project, or "" for none.
        stop_after: iteration after which a launch saves and ends, to be resumed; None for the stage's last.
    """

    machine: Machine = "gpu"
    cluster_flags: Flags = field(default_factory=dict)
    wandb_project: str = ""
    stop_after: int | None = None


@dataclass(frozen=True)
class Launch:
    """What a launch of a stage adds to its plan.

    Attributes:
        directory: the stage's folder.
        source: checkpoint folder to grow from on load, or None.
        grown: checkpoint folder that offline growth has written, optimizer state included, to start from; or None.
        data: what the stage is fed with.
        place: where it is launched.
        stop_below: validation loss at which training ends early, or None.
        train: False to evaluate the finished stage only; nothing is saved then.
    """

    directory: StageDirectory
    source: Path | None
    data: StageData
    place: Place = Place()
    stop_below: float | None = None
    train: bool = True
    grown: Path | None = None


def megatron_arguments(recipe: Recipe, stage: StagePlan, launch: Launch) -> list[str]:
    """The words of a stage's command line, without those that only a host without a GPU needs.

    Raises:
        UnsupportedError: the stage asks for something that the host cannot do.
        RecipeError: a flag of `megatron:` contradicts the layout.
    """
    if stage.precision == "fp8" and launch.place.machine == "host":
        raise UnsupportedError(
            f"stage {stage.name} trains in FP8, which needs a GPU", fix="set precision: bf16 to train it on the host"
        )
    options: Options = {
        **_model(recipe, stage),
        **gpu_options.precision(stage),
        **stage.layout.flags(),
        "use-distributed-optimizer": gpu_options.distributed_optimizer(stage),
        **_batches(recipe, stage, launch),
        **_optimizer(stage),
        **_schedule(stage),
        **_files(recipe, stage, launch),
        **_growth(stage, launch),
        **gpu_options.speed(stage, launch.place.machine),
        **merged(launch.place.cluster_flags, stage.megatron),
    }
    gpu_options.check_together(stage, options)
    return [*words(options), *launch.data.flags]


def grows_state(stage: StagePlan) -> bool:
    """Whether a stage grows its source's optimizer state, too: offline, before its first launch."""
    return stage.growth is not None and stage.growth.optimizer_state != "reset"


def architecture(recipe: Recipe, stage: StagePlan) -> dict[str, Any]:
    """What decides a stage's function, as Megatron's arguments."""
    model, scaling = recipe.model, recipe.model.rope_scaling
    return arguments_of(stage.shape) | {
        "layernorm_epsilon": stage.norm_epsilon,
        "position_embedding_type": model.position,
        "rotary_base": model.rope_base,
        "use_rope_scaling": scaling is not None,
        "rope_scaling_factor": scaling.factor if scaling else ROPE_FACTOR,
    }


def _model(recipe: Recipe, stage: StagePlan) -> Options:
    shape, model = stage.shape, recipe.model
    layers = max(1, shape.layers)  # Megatron refuses 0; with the sub-layers "none" the one is not built
    return {
        **flags_of(architecture(recipe, stage) | {"num_layers": layers}),
        "seq-length": stage.sequence_length,
        "max-position-embeddings": stage.sequence_length,
        "make-vocab-size-divisible-by": model.vocab_multiple,
        "init-method-std": model.init_std,
        "no-scaled-init": not model.scaled_init,
        "hidden-dropout": 0,
        "attention-dropout": 0,
        "growth-layer-spec": "auto",
        "growth-sublayers": shape.sublayers if shape.layers else "none",
    }


def _batches(recipe: Recipe, stage: StagePlan, launch: Launch) -> Options:
    """Batch sizes, duration and evaluation; the plan's iterations stay the same in every launch of a stage."""
    return {
        "micro-batch-size": stage.micro_batch_size,
        "global-batch-size": stage.global_batch_size,
        "train-iters": stage.iterations,
        "eval-interval": recipe.evaluation.interval,
        "eval-iters": max(1, launch.data.validation_samples // stage.global_batch_size),
        "growth-evaluate-at-start": True,
        "seed": recipe.seed,
    }


def _optimizer(stage: StagePlan) -> Options:
    optimizer = stage.optimizer
    return {
        "optimizer": "adam",
        "adam-beta1": optimizer["beta1"],
        "adam-beta2": optimizer["beta2"],
        "adam-eps": optimizer["eps"],
        "weight-decay": optimizer["weight_decay"],
        "clip-grad": optimizer["clip"],
        "lr": stage.lr,
    }


def _schedule(stage: StagePlan) -> Options:
    """Megatron's own schedules where it has them; the plugin follows any other by a rule for all (`_rules`)."""
    schedule, style = stage.schedule, stage.schedule["name"]
    iterations, warmup = schedule["iterations"], stage.warmup_iterations
    options: Options = {"lr-decay-iters": iterations, "lr-warmup-iters": warmup, "min-lr": stage.min_lr}
    if style == "wsd":
        stable = warmup + schedule["stable_fraction"] * (iterations - warmup)
        decay = {"lr-wsd-decay-style": "linear", "lr-wsd-decay-iters": iterations - round(stable)}
        return options | {"lr-decay-style": "WSD", **decay}
    return options | {"lr-decay-style": style if style in ("cosine", "linear") else "constant"}


def _rules(stage: StagePlan) -> list[str]:
    """PATTERN=SCHEDULE for --growth-schedule; the first match wins.

    A multiple is one of Megatron's own schedule; where the stage's is another, it is that one with another peak.
    """
    if (name := stage.schedule["name"]) in _MEGATRON_STYLES:
        return [f"{pattern}={schedule}" for pattern, schedule in stage.rules]
    common = ("name", "peak", "iterations", "warmup_iterations")
    own = {key: value for key, value in stage.schedule.items() if key not in common}

    def scaled(factor: float) -> str:
        return write(name, own | {"peak": factor * stage.lr})

    multiples = [(pattern, schedule, multiple(schedule)) for pattern, schedule in stage.rules]
    rules = [f"{pattern}={schedule if factor is None else scaled(factor)}" for pattern, schedule, factor in multiples]
    return [*rules, f"*={write(name, own)}"]


def _files(recipe: Recipe, stage: StagePlan, launch: Launch) -> Options:
    folder = launch.directory
    options: Options = {
        "load": launch.grown or folder.checkpoints,
        "ckpt-format": "torch_dist",
        "tensorboard-dir": folder.tensorboard,
        "log-interval": 1,
        "growth-metrics": folder.metrics,
        "data-cache-path": launch.data.cache,
        "dataloader-type": "single",
        # SIGTERM: finish the iteration, save, end.
        "exit-signal-handler": True,
    }
    if launch.train:
        options |= {"save": folder.checkpoints, "save-interval": min(recipe.checkpoint.interval, stage.iterations)}
        if launch.stop_below is not None:
            options["growth-stop-below"] = launch.stop_below
        if launch.place.stop_after is not None:
            options["exit-interval"] = launch.place.stop_after
        options |= gpu_options.saving(recipe, stage)
    else:
        options["skip-train"] = True
    if launch.grown:
        options |= {"growth-start-anew": True, "override-opt_param-scheduler": True, "no-load-rng": True}
    if launch.place.wandb_project:
        options |= {
            "wandb-project": launch.place.wandb_project,
            "wandb-exp-name": f"{recipe.name}-{stage.name}",
            "wandb-save-dir": folder.path / "wandb",
        }
    return options


def _growth(stage: StagePlan, launch: Launch) -> Options:
    options: Options = {"growth-data-start": stage.data_start, "growth-data-pool": stage.data_pool}
    if stage.data_start + stage.samples > stage.data_pool:
        options["growth-data-repeat"] = True
    if launch.source is not None and stage.growth is not None:
        options |= {"growth-from": launch.source, **stage.growth.flags("growth-")}
    if stage.freeze:
        options["growth-freeze"] = ",".join(stage.freeze)
    if rules := _rules(stage):
        options["growth-schedule"] = rules
    if stage.methods:
        options["growth-method"] = list(stage.methods)
    return options
