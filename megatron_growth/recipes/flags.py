"""`megatron: {flag: value}` of a recipe, a stage and a cluster profile: which flags it may set.

A recipe's own keys decide what the plan counts with (sizes, layout, batches, budget, schedule, data, files), so the
flags that say these are refused by name, with the key that sets them.  Every other flag of Megatron passes; whether
Megatron has it, and takes the value, is checked against its own parser (`run/flags.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FlagValue = bool | int | float | str | tuple[int | float | str, ...]
Flags = Mapping[str, FlagValue]

# Flag -> what sets it.  A flag that Megatron reads as another spelling of a planned one is here too.
OWNED: dict[str, str] = {
    # The model.
    "num-layers": "layers of the stage",
    "encoder-num-layers": "layers of the stage",
    "decoder-num-layers": "layers of the stage",
    "hidden-size": "hidden of the stage",
    "ffn-hidden-size": "ffn of the stage",
    "num-attention-heads": "heads of the stage",
    "group-query-attention": "query_groups of the stage",
    "num-query-groups": "query_groups of the stage",
    "kv-channels": "model.head_dim",
    "seq-length": "model.sequence_length",
    "encoder-seq-length": "model.sequence_length",
    "decoder-seq-length": "model.sequence_length",
    "max-position-embeddings": "model.sequence_length",
    "normalization": "model.norm",
    "norm-epsilon": "model.norm_epsilon",
    "apply-layernorm-1p": "model.norm",
    "position-embedding-type": "model.position",
    "use-rotary-position-embeddings": "model.position",
    "no-position-embedding": "model.position",
    "rope-type": "model.position",
    "rotary-base": "model.rope_base",
    "use-rope-scaling": "model.rope_scaling",
    "rope-scaling-factor": "model.rope_scaling.factor",
    "make-vocab-size-divisible-by": "model.vocab_multiple",
    "no-pad-vocab-size": "model.vocab_multiple",
    "disable-pad-vocab-size": "model.vocab_multiple",
    "vocab-size": "model.vocab",
    "padded-vocab-size": "model.vocab",
    "init-method-std": "model.init_std",
    "embedding-init-method-std": "model.init_std",
    "init-method-xavier-uniform": "model.init_std",
    "no-scaled-init": "model.scaled_init",
    "swiglu": "model.gated",
    "squared-relu": "model.gated",
    "disable-bias-linear": "model.bias",
    "add-qkv-bias": "model.qkv_bias",
    "qk-layernorm": "model.qk_norm",
    "untie-embeddings-and-output-weights": "model.tied_embeddings",
    "spec": "the recipe's model",
    "num-experts": "nothing: models are dense",
    "hybrid-layer-pattern": "nothing: models are dense",
    "hybrid-override-pattern": "nothing: models are dense",
    "is-hybrid-model": "nothing: models are dense",
    "heterogeneous-layers-config-path": "nothing: all layers of a model are alike",
    "heterogeneous-layers-config-encoded-json": "nothing: all layers of a model are alike",
    "multi-latent-attention": "nothing: models have grouped-query attention",
    "mtp-num-layers": "nothing: there is no multi-token prediction",
    "bf16": "precision",
    "fp16": "precision",
    "fp8-format": "precision",
    "fp8-recipe": "precision",
    "fp8-param-gather": "precision",
    "fp4-format": "precision",
    "fp4-recipe": "precision",
    "fp4-param-gather": "precision",
    # The layout.
    "tensor-model-parallel-size": "layout.tp",
    "pipeline-model-parallel-size": "layout.pp",
    "num-virtual-stages-per-pipeline-rank": "layout.vpp",
    "num-layers-per-virtual-pipeline-stage": "layout.vpp",
    "pipeline-model-parallel-layout": "layout.pipeline_layout",
    "decoder-first-pipeline-num-layers": "layout.pipeline_layout",
    "decoder-last-pipeline-num-layers": "layout.pipeline_layout",
    "account-for-embedding-in-pipeline-split": "layout.pipeline_layout",
    "account-for-loss-in-pipeline-split": "layout.pipeline_layout",
    "sequence-parallel": "layout.sequence_parallel",
    "context-parallel-size": "nothing: the plan has no context parallelism",
    "hybrid-context-parallel": "nothing: the plan has no context parallelism",
    "hierarchical-context-parallel-sizes": "nothing: the plan has no context parallelism",
    "num-distributed-optimizer-instances": "layout.distributed_optimizer",
    "expert-model-parallel-size": "nothing: models are dense",
    "expert-tensor-parallel-size": "nothing: models are dense",
    "recompute-activations": "layout.recompute",
    "recompute-granularity": "layout.recompute",
    "recompute-method": "layout.recompute",
    "recompute-num-layers": "layout.recompute",
    "use-distributed-optimizer": "layout.distributed_optimizer",
    "use-megatron-fsdp": "nothing: growth works on DDP's own shards",
    "use-torch-fsdp2": "nothing: growth works on DDP's own shards",
    "init-model-with-meta-device": "nothing: growth fills weights that are there",
    # Batches and budget.
    "micro-batch-size": "micro_batch_size of the stage",
    "eval-micro-batch-size": "micro_batch_size of the stage",
    "eval-global-batch-size": "global_batch_size of the stage",
    "global-batch-size": "global_batch_size of the stage",
    "rampup-batch-size": "global_batch_size of the stage",
    "step-batch-size-schedule": "global_batch_size of the stage",
    "decrease-batch-size-if-needed": "global_batch_size of the stage",
    "train-iters": "budget",
    "train-samples": "budget",
    "phase-transition-iterations": "budget",
    "iterations-to-skip": "budget",
    "exit-interval": "budget",
    "skip-train": "the run: a finished stage is only evaluated",
    "eval-interval": "evaluation.interval",
    "eval-iters": "evaluation.iterations",
    "seed": "seed",
    # Optimizer and schedule.
    "optimizer": "methods",
    "adam-beta1": "optimizer.beta1",
    "adam-beta2": "optimizer.beta2",
    "adam-eps": "optimizer.eps",
    "weight-decay": "optimizer.weight_decay",
    "start-weight-decay": "optimizer.weight_decay",
    "end-weight-decay": "optimizer.weight_decay",
    "weight-decay-incr-style": "optimizer.weight_decay",
    "clip-grad": "optimizer.clip",
    "optimizer-cpu-offload": "nothing: the plan keeps the optimizer's state on the GPU",
    "hidden-dropout": "nothing: models train without dropout",
    "attention-dropout": "nothing: models train without dropout",
    "lr": "lr of the stage",
    "min-lr": "schedule.min_lr_ratio",
    "decoupled-lr": "rules of the stage",
    "decoupled-min-lr": "rules of the stage",
    "freeze-all-layers": "freeze of the stage",
    "lr-decay-style": "schedule",
    "lr-warmup-init": "schedule",
    "override-opt-param-scheduler": "schedule",
    "override-opt_param-scheduler": "schedule",
    "use-checkpoint-opt-param-scheduler": "schedule",
    "use-checkpoint-opt_param-scheduler": "schedule",
    "lr-decay-iters": "schedule",
    "lr-decay-samples": "schedule",
    "lr-warmup-iters": "schedule.warmup_iterations",
    "lr-warmup-samples": "schedule.warmup_iterations",
    "lr-warmup-fraction": "schedule.warmup_fraction",
    "lr-wsd-decay-style": "schedule",
    "lr-wsd-decay-iters": "schedule.stable_fraction",
    "lr-wsd-decay-samples": "schedule.stable_fraction",
    # Files and data.
    "load": "the run directory",
    "save": "the run directory",
    "pretrained-checkpoint": "`from` of the stage",
    "finetune": "`from` of the stage",
    "use-checkpoint-args": "the recipe",
    "yaml-cfg": "the recipe",
    "save-interval": "checkpoint.interval",
    "persistent-save-interval": "checkpoint.interval",
    "ckpt-format": "nothing: checkpoints are torch_dist",
    "dist-ckpt-format": "nothing: checkpoints are torch_dist",
    "use-dist-ckpt": "nothing: checkpoints are torch_dist",
    "ckpt-step": "the run directory",
    "async-save": "checkpoint.async_save",
    "use-persistent-ckpt-worker": "checkpoint.async_save",
    "async-strategy": "checkpoint.async_save",
    "dist-ckpt-optim-fully-reshardable": "checkpoint.reshardable",
    "save-retain-interval": "checkpoint.keep_every",
    "no-save-rng": "nothing: stages are resumed with their random state",
    "no-save-optim": "nothing: stages are resumed with their optimizer",
    "no-load-optim": "nothing: stages are resumed with their optimizer",
    "tensorboard-dir": "the run directory",
    "data-cache-path": "the run directory",
    "wandb-project": "train --wandb",
    "wandb-exp-name": "train --wandb",
    "wandb-save-dir": "train --wandb",
    "data-path": "data",
    "data-args-path": "data",
    "per-split-data-args-path": "data",
    "train-data-path": "data",
    "valid-data-path": "data",
    "test-data-path": "data",
    "mock-data": "data",
    "split": "data.valid_fraction",
    "dataloader-type": "data.stages",
    "tokenizer-type": "data.tokenizer",
    "tokenizer-model": "data.tokenizer",
    "null-tokenizer-eod-id": "data.tokenizer",
    "reset-attention-mask": "data",
    "reset-position-ids": "data",
    "exit-signal-handler": "nothing: a stage ends after a checkpoint when it is told to stop",
}
_GROWTH = "growth-"


def spelled(flag: str) -> str:
    """A flag as Megatron's parser writes it, without the dashes before it."""
    return flag.removeprefix("--").replace("_", "-")


def owner(flag: str) -> str | None:
    """The key of the recipe that sets a flag, or None when nothing does."""
    name = spelled(flag)
    if name.startswith(_GROWTH):
        return "growth, freeze, rules and data of the recipe"
    return OWNED.get(name)


def problems(flags: Flags) -> Iterator[tuple[str, str]]:
    """(flag, message) for every flag that the plan owns, and for two spellings of one flag."""
    seen: set[str] = set()
    for flag in flags:
        name = spelled(flag)
        if name in seen:
            yield flag, f"--{name} is given twice"
        seen.add(name)
        if sets := owner(flag):
            yield flag, f"--{name} is the plan's own: it follows from {sets}"


def merged(*layers: Flags) -> dict[str, Any]:
    """Flags by Megatron's spelling; a later layer wins."""
    return {spelled(flag): value for layer in layers for flag, value in layer.items()}
