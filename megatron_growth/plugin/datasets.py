"""The data window: a stock script's training set, cut from the one sample order that all stages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.training import get_args, training

from megatron_growth.data.windows import window_train_dataset
from megatron_growth.plugin.addition import Addition
from megatron_growth.plugin.arguments import PluginOptions


def addition(options: PluginOptions) -> Addition:
    """Cuts the training set where the run reads a window, and adds samples for an evaluation at the start."""
    if not (options.windowed or options.evaluate_at_start):
        return Addition()
    return Addition(bind={"build_train_valid_test_datasets": lambda original: around_build(original, options)})


def around_build(original: Callable[..., Any], options: PluginOptions) -> Callable[..., Any]:
    """Build the training set at the size of the pool and keep this run's window of it.

    Megatron shuffles a dataset by its size, so every stage builds the whole pool and reads its own part.  An
    evaluation at the start needs validation samples of its own.
    """

    def build_train_valid_test_datasets(
        build_train_valid_test_datasets_provider: Callable[..., Any],
        train_valid_test_num_samples: tuple[int, int | None, int] | None = None,
    ) -> Any:
        args = get_args()
        train, valid, test = train_valid_test_num_samples or training.get_train_valid_test_num_samples()
        if options.evaluate_at_start and valid is not None:
            valid += args.eval_iters * args.eval_global_batch_size
        if options.data_start is None or options.data_pool is None:
            return original(build_train_valid_test_datasets_provider, (train, valid, test))
        datasets = original(build_train_valid_test_datasets_provider, (options.data_pool, valid, test))
        window = window_train_dataset(
            datasets[0], start=options.data_start, samples=train, pool=options.data_pool, repeat=options.data_repeat
        )
        return window, *datasets[1:]

    return build_train_valid_test_datasets
