"""One training with TRL, in this process, which may be one of several: resumed, recorded, evaluated, saved.

The loss of SFT is the mean over the answers' tokens only (the chat template marks them); that of DPO compares the
answers' log-probabilities with those of the model with which training began.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_growth import mistakes
from megatron_growth.backend.processes import importing
from megatron_growth.data.tokenizers.huggingface import open_folder
from megatron_growth.errors import DataError
from megatron_growth.posttrain import extra
from megatron_growth.posttrain.examples import RECORD, TRAIN, VALID
from megatron_growth.posttrain.folder import WHOLE, RateFolder, Result, Work
from megatron_growth.posttrain.request import Request
from megatron_growth.records import metrics
from megatron_growth.records.human import plural
from megatron_growth.records.metrics import MetricsLine

Show = Callable[[MetricsLine, int], None]


@dataclass(frozen=True)
class Job:
    """One training of a run, at one learning rate; `base` is the Hugging Face folder of the model."""

    request: Request
    work: Work
    base: Path
    rate: float

    @property
    def folder(self) -> RateFolder:
        """The folder that it writes to."""
        return self.work.rate(self.rate)


def train(job: Job, show: Show = lambda *_: None, *, stop_gently: bool = False) -> Result | None:
    """Train, or go on training; the result is in the folder when this returns, and None when it was asked to stop.

    Args:
        job: one whose work folder holds examples and tokenizer.
        show: called after every step on the first process.
        stop_gently: treat SIGTERM as a request to save and leave.
    """
    with importing():
        extra.quiet()
        from transformers import AutoModelForCausalLM  # noqa: F401  what _trainer would import lazily
        from trl import DPOTrainer, SFTTrainer  # noqa: F401

        from megatron_growth.posttrain.callbacks import GentleStop, NoNumber, Recorder, WholeCheckpoints

    begin = time.perf_counter()
    checkpoint = newest_checkpoint(job.folder)
    trainer = _trainer(job, evaluate_first=checkpoint is None)
    notes = (*_left_out(job, trainer), *_shorten_warmup(trainer, job.request))
    first, stop, no_number = trainer.is_world_process_zero(), GentleStop() if stop_gently else None, NoNumber()
    start = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    recorder = [Recorder(job.folder.metrics, job.request.batch, start, show)] if first else []
    for callback in (*recorder, WholeCheckpoints(), no_number, *([stop] if stop else [])):
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop and stop.stopped:
        return None
    found = trainer.evaluate() if trainer.eval_dataset is not None and no_number.step is None else {}
    if no_number.step is None:
        trainer.save_model(str(job.folder.model))
    result = _result(job, trainer, found, notes, no_number.step, time.perf_counter() - begin)
    if first:
        (job.folder.model / "training_args.bin").unlink(missing_ok=True)
        job.folder.finish(result)
    trainer.accelerator.wait_for_everyone()
    return result


def newest_checkpoint(folder: RateFolder, *, clean: bool = True) -> Path | None:
    """The newest whole checkpoint; with `clean`, the first process removes those that a kill left half written."""
    found = sorted(folder.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    whole = [path for path in found if (path / WHOLE).is_file()]
    if clean and mistakes.rank() == 0:
        for path in found:
            if path not in whole:
                shutil.rmtree(path)
    return whole[-1] if whole else None


def _trainer(job: Job, *, evaluate_first: bool) -> Any:
    """The trainer of the request's kind, with its data tokenized."""
    import datasets
    import torch
    import trl
    from transformers import AutoModelForCausalLM

    request = job.request
    if request.zero:
        _join(gpu=torch.cuda.is_available())
    files = {"train": str(job.work.data / TRAIN)}
    has_valid = (job.work.data / VALID).is_file() and (job.work.data / VALID).stat().st_size > 0
    files |= {"valid": str(job.work.data / VALID)} if has_valid else {}
    data = datasets.load_dataset("json", data_files=files, cache_dir=str(job.work.cache))
    values = _arguments(job) | {"eval_on_start": evaluate_first and has_valid}
    if request.kind == "sft":
        config = trl.SFTConfig(**values, assistant_only_loss=True, packing=request.packing)
        kind = trl.SFTTrainer
    else:
        config = trl.DPOConfig(**values, beta=request.beta)
        kind = trl.DPOTrainer
    # The configuration comes first: under ZeRO 3 it makes from_pretrained spread the weights.
    model = AutoModelForCausalLM.from_pretrained(
        str(job.base), dtype=torch.float32, attn_implementation=_attention(request), local_files_only=True
    )
    trainer = kind(
        model=model,
        args=config,
        train_dataset=data["train"],
        eval_dataset=data.get("valid"),
        processing_class=open_folder(job.work.tokenizer),
    )
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(job: Job) -> dict[str, Any]:
    """The training arguments that SFT and DPO have in common."""
    import torch

    request, cuda = job.request, torch.cuda.is_available()
    micro, accumulation = request.accumulation(int(os.environ.get("WORLD_SIZE", "1")))
    bf16 = request.dtype == "bfloat16"
    values: dict[str, Any] = {
        "output_dir": str(job.folder.checkpoints),
        "learning_rate": job.rate,
        "num_train_epochs": request.epochs,
        "max_steps": request.max_steps or -1,
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": request.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "lr_scheduler_type": "cosine",
        "warmup_steps": request.warmup,
        "adam_beta1": request.betas[0],
        "adam_beta2": request.betas[1],
        "weight_decay": request.weight_decay,
        "max_grad_norm": request.clip,
        "max_length": min(request.max_length, _positions(job.base)),
        "seed": request.seed,
        "data_seed": request.seed,
        "optim": "adamw_torch",
        "bf16": bf16,
        "use_cpu": not cuda,
        "gradient_checkpointing": cuda,
        "dataloader_pin_memory": cuda,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 1 / request.saves if request.saves > 1 else 0.999,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
    }
    if request.zero:
        values["deepspeed"] = _deepspeed(request.zero, bf16=bf16)
    if not cuda and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        values["ddp_backend"] = "gloo"
    return values


def _deepspeed(stage: int, *, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for ZeRO 2 (shards gradients and optimizer state) or 3 (the weights, too).

    "auto" is filled in from the training arguments.  No optimizer is named, so torch's AdamW is sharded and no kernel
    has to be compiled.
    """
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


def _join(*, gpu: bool) -> None:
    """Join the other processes before a model is made: ZeRO 3 spreads weights while they are read.

    On the host DeepSpeed would compile a kernel for reductions in shared memory, in every process and under a lock that
    a kill leaves behind; gloo does not need it.
    """
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    if not gpu:
        __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", verbose=False)


def _positions(base: Path) -> int:
    """Most tokens in a sequence that the model takes."""
    config = json.loads((base / "config.json").read_text("utf-8"))
    return int(config.get("max_position_embeddings") or sys.maxsize)


def _attention(request: Request) -> str:
    """torch's own attention, which keeps packed examples apart by their positions; FlashAttention where installed."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    fast = request.packing and request.dtype == "bfloat16" and torch.cuda.is_available()
    return "flash_attention_2" if fast and is_flash_attn_2_available() else "sdpa"


def _left_out(job: Job, trainer: Any) -> tuple[str, ...]:
    """A note for the examples that the trainer leaves out: their questions alone fill a sequence.

    Raises:
        DataError: it leaves out all of them.
    """
    if job.request.packing:  # which cuts sequences instead
        return ()
    known, most = json.loads((job.work.data / RECORD).read_text("utf-8")), trainer.args.max_length
    notes = []
    for dataset, count, which in (
        (trainer.train_dataset, known["train"], "to train on"),
        (trainer.eval_dataset, known["valid"], "to hold out"),
    ):
        left = count if dataset is None else len(dataset)
        if not left and count:
            raise DataError(
                f"no example is left {which}: each one's question alone fills {most} tokens, and nothing of its answer "
                "is read",
                where=known["source"],
                fix="raise --max-length as far as the model goes, or give examples with shorter questions",
            )
        if left < count:
            notes.append(
                f"{count - left:,} of {plural(count, 'example')} {which} left out: the question alone fills {most} "
                "tokens (--max-length)"
            )
    return tuple(notes)


def _shorten_warmup(trainer: Any, request: Request) -> tuple[str, ...]:
    """Make a warm-up that is longer than all of training a tenth of it; returns a note for each change."""
    rows = len(trainer.train_dataset)
    steps = request.max_steps or math.ceil(math.ceil(rows / request.batch) * request.epochs)
    if request.warmup < 1 or request.warmup < steps:
        return ()
    trainer.args.warmup_steps = 0.1
    return (
        f"a warm-up of {request.warmup:g} steps is longer than the {steps} steps of training: a tenth of them instead",
    )


def _result(
    job: Job, trainer: Any, found: dict[str, Any], notes: tuple[str, ...], no_number: int | None, seconds: float
) -> Result:
    records = metrics.records(job.folder.metrics)
    lines = [line for line in records if "event" not in line]
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    before = [line["loss"] for line in records if line.get("when") == "start"]
    last = losses[-max(1, len(losses) // 10) :]
    accuracy = found.get("eval_mean_token_accuracy" if job.request.kind == "sft" else "eval_rewards/accuracies")
    return Result(
        rate=job.rate,
        steps=int(trainer.state.global_step),
        examples=len(trainer.train_dataset),
        tokens=int(lines[-1]["tokens"]) if lines else 0,
        train_loss=fmean(last) if last else None,
        valid_loss_before=before[-1] if before else None,
        valid_loss=_number(found.get("eval_loss")),
        valid_accuracy=_number(accuracy),
        seconds=seconds,
        diverged=no_number,
        notes=notes,
    )


def _number(value: float | None) -> float | None:
    """The value if it is finite, else None."""
    return float(value) if value is not None and math.isfinite(value) else None
