"""`megatron: {flag: value}` of a recipe, a stage and a cluster profile: which flags it may set.

A recipe's own keys decide what the plan counts with (sizes, layout, batches, budget, schedule, data, files), so the
flags that say these are refused by name, with the key that sets them.  Every other flag of Megatron passes; whether
Megatron has it, and takes the value, is checked against its own parser (`run/flags.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_growth.layout.architecture import NORM_EPSILON, SETTINGS

FlagValue = bool | int | float | str | tuple[int | float | str, ...]
Flags = Mapping[str, FlagValue]

# What sets them -> flags, beside those whose key is in `layout/architecture.py`.  One that Megatron reads as another
# spelling of a planned one is here too.
_SET_BY: dict[str, str] = {
    # The model.
    "layers of the stage": "num-layers encoder-num-layers decoder-num-layers",
    "hidden of the stage": "hidden-size",
    "ffn of the stage": "ffn-hidden-size",
    "heads of the stage": "num-attention-heads",
    "query_groups of the stage": "group-query-attention num-query-groups",
    "model.head_dim": "kv-channels",
    "model.sequence_length": "seq-length encoder-seq-length decoder-seq-length max-position-embeddings",
    "model.norm": "apply-layernorm-1p",
    "model.position": "use-rotary-position-embeddings no-position-embedding rope-type",
    "model.vocab_multiple": "make-vocab-size-divisible-by no-pad-vocab-size disable-pad-vocab-size",
    "model.vocab": "vocab-size padded-vocab-size",
    "model.init_std": "init-method-std embedding-init-method-std init-method-xavier-uniform",
    "model.scaled_init": "no-scaled-init",
    "model.gated": "squared-relu",
    "the recipe's model": "spec",
    "nothing: models are dense": (
        "num-experts hybrid-layer-pattern hybrid-override-pattern is-hybrid-model expert-model-parallel-size "
        "expert-tensor-parallel-size"
    ),
    "nothing: all layers of a model are alike": (
        "heterogeneous-layers-config-path heterogeneous-layers-config-encoded-json"
    ),
    "nothing: models have grouped-query attention": "multi-latent-attention",
    "nothing: there is no multi-token prediction": "mtp-num-layers",
    "precision": "bf16 fp16 fp8-format fp8-recipe fp8-param-gather fp4-format fp4-recipe fp4-param-gather",
    # The layout.
    "layout.tp": "tensor-model-parallel-size",
    "layout.pp": "pipeline-model-parallel-size",
    "layout.vpp": "num-virtual-stages-per-pipeline-rank num-layers-per-virtual-pipeline-stage",
    "layout.pipeline_layout": (
        "pipeline-model-parallel-layout decoder-first-pipeline-num-layers decoder-last-pipeline-num-layers "
        "account-for-embedding-in-pipeline-split account-for-loss-in-pipeline-split"
    ),
    "layout.sequence_parallel": "sequence-parallel",
    "nothing: the plan has no context parallelism": (
        "context-parallel-size hybrid-context-parallel hierarchical-context-parallel-sizes"
    ),
    "layout.distributed_optimizer": "num-distributed-optimizer-instances use-distributed-optimizer",
    "layout.recompute": "recompute-activations recompute-granularity recompute-method recompute-num-layers",
    "nothing: growth works on DDP's own shards": "use-megatron-fsdp use-torch-fsdp2",
    "nothing: growth fills weights that are there": "init-model-with-meta-device",
    # Batches and budget.
    "micro_batch_size of the stage": "micro-batch-size eval-micro-batch-size",
    "global_batch_size of the stage": (
        "eval-global-batch-size global-batch-size rampup-batch-size step-batch-size-schedule "
        "decrease-batch-size-if-needed"
    ),
    "budget": "train-iters train-samples phase-transition-iterations iterations-to-skip exit-interval",
    "the run: a finished stage is only evaluated": "skip-train",
    "evaluation.interval": "eval-interval",
    "evaluation.iterations": "eval-iters",
    "seed": "seed",
    # Optimizer and schedule.
    "methods": "optimizer",
    "optimizer.beta1": "adam-beta1",
    "optimizer.beta2": "adam-beta2",
    "optimizer.eps": "adam-eps",
    "optimizer.weight_decay": "weight-decay start-weight-decay end-weight-decay weight-decay-incr-style",
    "optimizer.clip": "clip-grad",
    "nothing: the plan keeps the optimizer's state on the GPU": "optimizer-cpu-offload",
    "nothing: models train without dropout": "hidden-dropout attention-dropout",
    "lr of the stage": "lr",
    "schedule.min_lr_ratio": "min-lr",
    "rules of the stage": "decoupled-lr decoupled-min-lr",
    "freeze of the stage": "freeze-all-layers",
    "schedule": (
        "lr-decay-style lr-warmup-init override-opt-param-scheduler override-opt_param-scheduler "
        "use-checkpoint-opt-param-scheduler use-checkpoint-opt_param-scheduler lr-decay-iters lr-decay-samples "
        "lr-wsd-decay-style"
    ),
    "schedule.warmup_iterations": "lr-warmup-iters lr-warmup-samples",
    "schedule.warmup_fraction": "lr-warmup-fraction",
    "schedule.stable_fraction": "lr-wsd-decay-iters lr-wsd-decay-samples",
    # Files and data.
    "the run directory": "load save ckpt-step tensorboard-dir data-cache-path",
    "`from` of the stage": "pretrained-checkpoint finetune",
    "the recipe": "use-checkpoint-args yaml-cfg",
    "checkpoint.interval": "save-interval persistent-save-interval",
    "nothing: checkpoints are torch_dist": "ckpt-format dist-ckpt-format use-dist-ckpt",
    "checkpoint.async_save": "async-save use-persistent-ckpt-worker async-strategy",
    "checkpoint.reshardable": "dist-ckpt-optim-fully-reshardable",
    "checkpoint.keep_every": "save-retain-interval",
    "nothing: stages are resumed with their random state": "no-save-rng",
    "nothing: stages are resumed with their optimizer": "no-save-optim no-load-optim",
    "train --wandb": "wandb-project wandb-exp-name wandb-save-dir",
    "data": (
        "data-path data-args-path per-split-data-args-path train-data-path valid-data-path test-data-path "
        "mock-data reset-attention-mask reset-position-ids"
    ),
    "data.valid_fraction": "split",
    "data.stages": "dataloader-type",
    "data.tokenizer": "tokenizer-type tokenizer-model null-tokenizer-eod-id",
    "nothing: a stage ends after a checkpoint when it is told to stop": "exit-signal-handler",
}
OWNED: dict[str, str] = {
    **{one.flag.removeprefix("--"): one.recipe for one in (*SETTINGS, NORM_EPSILON) if one.recipe},
    **{flag: key for key, flags in _SET_BY.items() for flag in flags.split()},
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
