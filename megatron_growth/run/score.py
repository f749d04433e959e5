"""Losses of a Megatron checkpoint on given tokens, computed by Megatron in a tensor- and pipeline-parallel layout.

    torchrun --nproc-per-node 2 -m megatron_growth.run.score FOLDER --tensor-model-parallel-size 2

reads FOLDER/job.npz (`Job.save`) and writes FOLDER/losses.npz.  The model is built by Megatron's own builder from the
arguments in the checkpoint, and filled as growth on load fills one, each rank its own shards.

Shape legend: b windows of a batch, t positions, V vocabulary rows of this rank.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_growth.backend import cpu
from megatron_growth.backend.processes import die_with_parent
from megatron_growth.backend.start import prepare
from megatron_growth.errors import ParallelLayoutError, UnsupportedError
from megatron_growth.layout.architecture import NORM_EPSILON, SETTINGS, SWITCHES, flags_beyond, settings_of
from megatron_growth.records.storage import atomic_path, write_whole
from megatron_growth.run import failures

if TYPE_CHECKING:
    from megatron_growth.shape import ModelShape

JOB, LOSSES, DONE = "job.npz", "losses.npz", "done"
Batch = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]
# Settings that `build` follows; any other setting that decides the function must be at its default.
_BUILT = (
    *(*SWITCHES, "untie_embeddings_and_output_weights", "position_embedding_type", "rotary_base", "rotary_percent"),
    *("rotary_seq_len_interpolation_factor", "use_rope_scaling", "rope_scaling_factor", "bias_gelu_fusion"),
)


@dataclass(frozen=True)
class Job:
    """What the ranks have to compute.

    Attributes:
        checkpoint: a --save folder or one of its iter_* folders.
        tensor, pipeline: sizes of the layout.
        dtype: float32, bfloat16 or float16.
        vocab: number of the tokenizer's ids; Megatron's padding rows beyond them get no probability.
        trust: unpickle the checkpoint's objects freely.
        batches: inputs, targets and which positions count, each (b, t).
    """

    checkpoint: str
    tensor: int
    pipeline: int
    dtype: str
    vocab: int
    trust: bool
    batches: tuple[Batch, ...]

    def save(self, folder: Path) -> None:
        """Write FOLDER/job.npz."""
        arrays: dict[str, Any] = {
            f"{n}-{name}": one for n, batch in enumerate(self.batches) for name, one in zip("itc", batch, strict=True)
        }
        head = {name: value for name, value in vars(self).items() if name != "batches"}
        np.savez(folder / JOB, head=np.array(json.dumps(head)), **arrays)

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read FOLDER/job.npz."""
        with np.load(folder / JOB) as stored:
            head = json.loads(str(stored["head"]))
            count = (len(stored.files) - 1) // 3
            batches = [tuple(stored[f"{n}-{name}"] for name in "itc") for n in range(count)]
        return cls(**head, batches=tuple(batches))


def score(job: Job, progress: Callable[[int], None] = lambda _: None) -> list[NDArray[np.float64]] | None:
    """Losses of every batch: (b,) sums of -log p in nats on ranks of the last pipeline stage, None elsewhere.

    Collective; the default process group must exist.

    Args:
        job: the same on all ranks.
        progress: called with the number of batches that are done.

    Raises:
        CheckpointError: the checkpoint cannot be read, or holds adapters that are not merged.
        UnsupportedError: its model cannot be built here.
        ParallelLayoutError: the layout does not fit the model.
    """
    import torch
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    model = build(job)
    losses: list[NDArray[np.float64]] = []
    with torch.no_grad():
        for shape, group in groupby(job.batches, key=lambda batch: batch[0].shape):
            batches = list(group)
            losses += get_forward_backward_func()(
                forward_step_func=partial(_forward_step, vocab=job.vocab),
                data_iterator=iter(batches),
                model=model,
                num_microbatches=len(batches),
                seq_length=shape[1],
                micro_batch_size=shape[0],
                forward_only=True,
                collect_non_loss_data=True,
            )
            progress(len(losses))
    return losses if parallel_state.is_pipeline_last_stage() else None


def build(job: Job) -> Any:
    """This rank's part of the model, filled from the checkpoint, in evaluation mode."""
    import torch
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.models.gpt import GPTModelBuilder

    from megatron_growth.checkpoint import metadata
    from megatron_growth.checkpoint.grow_on_load import GrowthRequest, fill
    from megatron_growth.exchange import open_source

    source = open_source(Path(job.checkpoint))
    args = metadata.arguments_of(source, trust=job.trust)
    shape = metadata.shape_of(source, args)
    _check_layout(job, shape)
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(job.tensor, job.pipeline)
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    config = _model_config(job, shape, args)
    model = GPTModelBuilder(config).build_model(ProcessGroupCollection.use_mpu_process_groups())
    request = GrowthRequest("zero-pad", "identity", open_source=open_source, trust_checkpoint=job.trust or None)
    fill([model], Path(job.checkpoint), request)
    return model.to(getattr(torch, job.dtype)).eval()


def _check_layout(job: Job, shape: ModelShape) -> None:
    wrong = {
        "layers": (shape.layers, job.pipeline),
        "vocabulary rows": (shape.vocab, job.tensor),
        "heads": (shape.heads, job.tensor),
        "FFN units": (shape.ffn, job.tensor),
    }
    for what, (count, parts) in wrong.items():
        if count % parts:
            raise ParallelLayoutError(
                f"{count} {what} cannot be divided by {parts}",
                where=job.checkpoint,
                fix="name another layout with --tensor and --pipeline, or add --export",
            )


def _model_config(job: Job, shape: ModelShape, args: Namespace) -> Any:
    """Megatron's configuration of the whole model.

    Raises:
        UnsupportedError: an argument of the checkpoint asks for something that is not built here.
    """
    from megatron.training.models import GPTModelConfig

    from megatron_growth.backend.layer_spec import layer_spec

    if beyond := flags_beyond(_BUILT, args):
        raise UnsupportedError(
            f"models with {', '.join(beyond)} are not scored here",
            where=job.checkpoint,
            fix="score it with Megatron's own evaluation (--skip-train), or its export with --export",
        )
    values = {setting.name: setting.of(args) for setting in SETTINGS}
    return GPTModelConfig(
        transformer=_transformer_config(job, shape, args),
        transformer_layer_spec=layer_spec("auto", shape.sublayers if shape.layers else "none"),
        vocab_size=shape.vocab,
        should_pad_vocab=False,
        seq_length=max((batch[0].shape[1] for batch in job.batches), default=1),
        position_embedding_type=values["position_embedding_type"],
        rotary_base=values["rotary_base"],
        rotary_percent=values["rotary_percent"],
        rope_scaling=values["use_rope_scaling"],
        rope_scaling_factor=values["rope_scaling_factor"],
        seq_len_interpolation_factor=values["rotary_seq_len_interpolation_factor"],
        share_embeddings_and_output_weights=shape.tied_embeddings,
    )


def _transformer_config(job: Job, shape: ModelShape, args: Namespace) -> Any:
    import torch

    from megatron_growth.backend.layer_spec import usable_transformer_engine
    from megatron_growth.layout.model_shape import transformer_config

    return transformer_config(
        shape,
        getattr(torch, job.dtype),
        layernorm_epsilon=NORM_EPSILON.of(args),
        bias_activation_fusion=bool(settings_of(args).get("bias_gelu_fusion")),  # another GELU, not only a faster one
        tensor_model_parallel_size=job.tensor,
        pipeline_model_parallel_size=job.pipeline,
        transformer_impl="transformer_engine" if usable_transformer_engine() else "local",
    )


def _forward_step(data: Iterator[Batch], model: Any, vocab: int) -> tuple[Any, Callable[..., Any]]:
    """Logits (b, t, V) of a batch on the last pipeline stage, and the function that computes losses (b,) from them."""
    import torch

    inputs, targets, counts = (torch.from_numpy(array).cuda() for array in next(data))
    positions = torch.arange(inputs.shape[1], device=inputs.device)[None].expand_as(inputs)
    return model(inputs, positions, None), partial(_losses, targets, counts, vocab)


def _losses(targets: Any, counts: Any, vocab: int, logits: Any, non_loss_data: bool = True) -> Any:  # noqa: ARG001
    """(b,) sums of -log p over the positions that count; padding rows of the vocabulary have no probability."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    logits = logits.float()
    first = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
    rows = torch.arange(first, first + logits.shape[-1], device=logits.device)
    logits = logits.masked_fill(rows >= vocab, -torch.inf)
    nats = vocab_parallel_cross_entropy(logits.transpose(0, 1).contiguous(), targets.T.contiguous())
    return (nats.T.double() * counts).sum(dim=1).cpu().numpy()


def main() -> int:
    """Entry point of one rank; returns its exit code."""
    die_with_parent()
    with failures.recorded():
        import torch

        folder = Path(sys.argv[1])
        prepare(sys.argv[2:])
        gpu = not cpu.installed()
        if gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if gpu else "gloo")
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1  # of the last pipeline stage
        losses = score(Job.load(folder), lambda done: write_whole(folder / DONE, str(done)) if last else None)
        if last and losses is not None:
            with atomic_path(folder / LOSSES) as temporary, temporary.open("wb") as stream:
                np.savez(stream, *losses)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
