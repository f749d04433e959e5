"""One global sample order for a whole run, of which each stage reads a window.

Megatron's GPTDataset derives its sample order from the data, the seed and the sequence length alone, as long as one
epoch is enough.  So every stage builds the same dataset, asking for `pool` samples (all that the run may draw from),
and reads positions start, start + 1, … start + samples - 1 of it, whatever its batch size and parallel layout.

With `repeat` (the Fixed Data setting of progressive growth, for the last stage only) positions wrap at `pool`; without
it a window that leaves the pool is an error, and so is a pool that one epoch of the data cannot fill.

Where to call it: `megatron.training.training.build_train_valid_test_datasets(provider, num_samples)` is the one place
that knows how many training samples a stage consumes.  Ask the original for (pool, valid, test) samples and pass its
first result through `window_train_dataset`.  Megatron's sampler counts `consumed_train_samples` from 0 in each stage,
so a stage that resumes continues at the right position of its window without further help; a grown checkpoint must
therefore start its stage with `consumed_train_samples` 0.  `--seed`, `--seq-length` and the data path must be the
same in all stages.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from megatron_growth.errors import DataError, UnsupportedError


def window_index(position: int, start: int, pool: int, repeat: bool = False) -> int:
    """Index in the global order of sample `position`, from 0, of a stage; the others as for `WindowDataset`.

    Raises DataError for a position outside the pool when `repeat` is off.
    """
    index = start + position
    if index < pool:
        return index
    if repeat:
        return index % pool
    raise DataError(
        f"Sample {position} of the stage is number {index} of the run, but the pool has {pool} samples.",
        where=f"window from {start}",
        fix="Give the run more data, lower its budget, or let its last stage repeat data.",
    )


class WindowDataset(Dataset):
    """The `samples` consecutive samples of the global order that a stage consumes, from position `start`.

    Args:
        dataset: a GPTDataset or BlendedDataset in the global order.
        pool: number of samples that the run may draw from; at most len(dataset).
        repeat: whether positions beyond the pool wrap around.
    """

    def __init__(self, dataset: Any, start: int, samples: int, pool: int, repeat: bool = False) -> None:
        self.dataset, self.start, self.samples, self.pool, self.repeat = dataset, start, samples, pool, repeat
        # Megatron's data loader chooses batch sizes and sampler by the split, under either name.
        for name in ("split", "index_split"):
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, position: int | None) -> Any:
        """Sample `position` of the stage; None is Megatron's request for a masked padding sample."""
        if position is None:
            return self.dataset[None]
        if not 0 <= position < self.samples:
            raise IndexError(position)
        return self.dataset[window_index(position, self.start, self.pool, self.repeat)]


def window_train_dataset(
    train_ds: Any, *, start: int, samples: int, pool: int, repeat: bool = False
) -> WindowDataset | None:
    """The window of a stage on the training dataset that Megatron built for `pool` samples; see `WindowDataset`.

    None where there is none: on a rank that holds no data.

    Raises DataError when the data are too short for the pool, or the window leaves it.
    """
    if train_ds is None:
        return None
    if start < 0 or pool < 1 or samples < 1:
        raise DataError(
            f"A window of {samples} samples from {start} in a pool of {pool} is not possible.",
            where="data window",
            fix="The start must be 0 or more, the number of samples and the pool 1 or more.",
        )
    if start >= pool or (start + samples > pool and not repeat):
        raise DataError(
            f"The stage reads samples {start} to {start + samples}, but the pool of the run has {pool}.",
            where="data window",
            fix="Enlarge the pool (and the data), lower the budget, or let the last stage repeat data.",
        )
    _check_single_epoch(train_ds, pool)
    return WindowDataset(train_ds, start, samples, pool, repeat)


def _check_single_epoch(dataset: Any, pool: int) -> None:
    """Raise DataError unless `dataset` gives `pool` samples in one epoch of its data."""
    if hasattr(dataset, "datasets"):  # BlendedDataset: each part was asked for its share
        for part in dataset.datasets:
            _check_single_epoch(part, part.num_samples or 0)
        return
    if not (hasattr(dataset, "dataset") and hasattr(dataset, "indices")):
        raise UnsupportedError(
            f"Data windows do not know the dataset type {type(dataset).__name__}.",
            where="data window",
            fix="Use Megatron's GPTDataset, or train without a window.",
        )
    have = int(dataset.dataset.sequence_lengths[dataset.indices].sum())
    length, extra = dataset.config.sequence_length, int(dataset.config.add_extra_token_to_sequence)
    need = pool * length + extra
    if have < need:
        raise DataError(
            f"The dataset is too short for the budget: it has {have:,} tokens ({(have - extra) // length:,} samples of "
            f"{length}), the run needs {need:,} ({pool:,} samples).",
            where=str(dataset.dataset_path),
            fix="Prepare more text, lower the budget of the recipe, or use its Fixed Data variant with a smaller pool.",
        )
