"""DeepSpeed's configuration for ZeRO 2 and 3; "auto" is filled in from the training arguments.

ZeRO 2 shards gradients and optimizer state, ZeRO 3 also the weights.  No optimizer is named, so torch's AdamW is
sharded and no kernel has to be compiled.
"""

from __future__ import annotations

from typing import Any


def configuration(stage: int, *, bf16: bool) -> dict[str, Any]:
    """The configuration of a ZeRO stage, 2 or 3."""
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": bf16},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }


def begin(*, gpu: bool) -> None:
    """Join the other processes before a model is made: ZeRO 3 spreads weights while they are read.

    On the host DeepSpeed would compile a kernel for reductions in shared memory, in every process and under a lock that
    a kill leaves behind; gloo does not need it.
    """
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    if not gpu:
        __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", verbose=False)
