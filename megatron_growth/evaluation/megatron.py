"""A Megatron checkpoint as a model that scores windows: Megatron itself, in the checkpoint's own parallel layout."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_growth.checkpoint import metadata
from megatron_growth.checkpoint.source import Source
from megatron_growth.data.tokenizers import Tokenizer, load_tokenizer
from megatron_growth.errors import GrowthError, StageFailed, UnsupportedError, nearest
from megatron_growth.evaluation.perplexity import OnProgress
from megatron_growth.evaluation.windows import Window, batches, padded
from megatron_growth.exchange.config import DTYPES
from megatron_growth.exchange.tokenizer_files import tokenizer_of
from megatron_growth.run import failures
from megatron_growth.run.score import DONE, LOSSES, Job
from megatron_growth.run.torchrun import command_of, run_processes

_FAILURES, _LOG = "failures", "log.txt"


class MegatronModel:
    """A checkpoint, scored by as many processes as its layout has.

    Args:
        checkpoint: a --save folder or one of its iter_* folders.
        tokenizer, tokenizer_files: as for `models.folder_of`.
        tensor, pipeline: sizes of the layout; those that saved it when None.
        dtype: the one that it computes in.
        batch: windows at a time.
        trust_checkpoint: unpickle its objects freely.

    Raises:
        CheckpointError: it cannot be read.
        DataError: its tokenizer is not known.
        UnsupportedError: models are not evaluated in this dtype.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        tokenizer: str = "",
        tokenizer_files: str = "",
        tensor: int | None = None,
        pipeline: int | None = None,
        dtype: str = "float32",
        batch: int = 8,
        trust_checkpoint: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise UnsupportedError(
                f"models are not evaluated in {dtype!r}", where="--dtype", fix=nearest(dtype, DTYPES)
            )
        source = Source(checkpoint)
        args = metadata.arguments_of(source, trust=trust_checkpoint)
        metadata.shape_of(source, args)  # what cannot be scored is refused before processes are started
        # The iteration's own folder: a run that is training moves on before the processes have looked.
        self.checkpoint, self.trust, self.dtype, self.batch = source.path, trust_checkpoint, dtype, batch
        self.tensor = tensor or int(getattr(args, "tensor_model_parallel_size", 1) or 1)
        self.pipeline = pipeline or int(getattr(args, "pipeline_model_parallel_size", 1) or 1)
        spec, found = tokenizer_of(checkpoint, tokenizer, tokenizer_files)
        self.vocab, self.start = found.vocab_size, found.eod
        self.tokenizer: Tokenizer = load_tokenizer(spec)
        self.length = int(getattr(args, "max_position_embeddings", None) or args.seq_length)

    def job(self, found: Sequence[Window]) -> tuple[Job, list[list[int]]]:
        """What the processes are asked to score, and the numbers of the windows in each of its batches."""
        numbers = list(batches(found, self.batch))
        rectangles = tuple(padded([found[number] for number in batch]) for batch in numbers)
        layout = (self.tensor, self.pipeline)
        return Job(str(self.checkpoint), *layout, self.dtype, self.vocab, self.trust, rectangles), numbers

    def losses(self, found: Sequence[Window], progress: OnProgress = lambda *_: None) -> list[float]:
        """Sum of -log p of each window's targets, in nats.

        Raises:
            GrowthError: the error that a process recorded.
            StageFailed: a process ended without recording one.
        """
        job, numbers = self.job(found)
        done = np.cumsum([0, *map(len, numbers)])
        with tempfile.TemporaryDirectory(prefix="score-") as name:
            folder = Path(name)
            job.save(folder)
            seen = folder / DONE

            def watch() -> None:
                if seen.is_file():
                    progress(int(done[int(seen.read_text("utf-8"))]), len(found))

            words = [str(folder), "--tensor-model-parallel-size", str(self.tensor)]
            code = run_processes(
                command_of(self.tensor * self.pipeline, words, "megatron_growth.run.score"),
                log=folder / _LOG,
                token=secrets.token_hex(16),
                failures_folder=folder / _FAILURES,
                watch=watch,
                on_stop=lambda: None,
            )
            if code or not (folder / LOSSES).is_file():
                raise _failure(folder, self.checkpoint, code)
            with np.load(folder / LOSSES) as stored:
                sums = [stored[key] for key in stored.files]
        losses = [0.0] * len(found)
        for batch, values in zip(numbers, sums, strict=True):
            for number, value in zip(batch, values, strict=True):
                losses[number] = float(value)
        return losses


def _failure(folder: Path, checkpoint: Path, code: int) -> GrowthError:
    """What ended the first rank that failed; an error of this package is raised again as it was."""
    failure = failures.first(folder / _FAILURES)
    if failure is None:
        lines = (folder / _LOG).read_text("utf-8", errors="replace").splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
        return StageFailed(
            f"the processes that score ended: {said}", where=str(checkpoint), fix="see if memory is free"
        )
    if known := failures.error_class(failure.kind):
        return known(failure.what, where=failure.where, fix=failure.fix)
    first = (failure.what.splitlines() or [""])[0]
    return StageFailed(f"rank {failure.rank}: {failure.kind}: {first}", where=str(checkpoint), fix="add --export")
