"""The training script that stages run under torchrun: a stock Megatron GPT script, and the plugin's three lines.

    torchrun --nproc-per-node 2 -m megatron_growth.run.pretrain --num-layers 4 ... --growth-from DIR

It takes every argument of Megatron's own `pretrain_gpt.py` that a dense GPT model needs, and the --growth-* ones.
Without a GPU it runs on the host.  A failure is left as a small file for the command that started the processes
(`failures.py`), because it would be lost in the output of many ranks.

Shapes: b samples of a micro-batch, s tokens of a sample.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from megatron_growth.backend.processes import die_with_parent, end_without_collection, importing
from megatron_growth.backend.start import prepare
from megatron_growth.run import failures


def add_arguments(parser: ArgumentParser) -> ArgumentParser:
    """The plugin's arguments, and a flag for what a recipe says and Megatron cannot be told."""
    import megatron_growth as growth

    group = growth.add_arguments(parser).add_argument_group("recipe")
    group.add_argument(
        "--no-scaled-init",
        action="store_true",
        help="initialise the output projections of attention and FFN like every other matrix",
    )
    return parser


def get_batch(data_iterator: Iterator[dict[str, Any]] | None, vp_stage: int | None) -> tuple[Any, ...]:
    """(tokens, labels, loss_mask, position_ids), each [b, s], or None where the pipeline stage needs none of it."""
    from megatron.core import mpu
    from megatron.core.utils import get_batch_on_this_tp_rank
    from megatron.training import get_args
    from megatron.training.utils import is_first_or_last_pipeline_stage

    args, keys = get_args(), ("tokens", "labels", "loss_mask", "position_ids")
    if not is_first_or_last_pipeline_stage(vp_stage):
        return (None,) * len(keys)
    batch: dict[str, Any] = {}
    if mpu.get_tensor_model_parallel_rank() == 0:
        assert data_iterator is not None
        sample = next(data_iterator)
        batch = {key: sample[key].cuda(non_blocking=True) for key in keys}
    batch = get_batch_on_this_tp_rank(
        batch,
        has_cu_seqlens=False,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=False,
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=mpu.get_tensor_model_parallel_group(),
        cp_size=1,
        tp_rank=mpu.get_tensor_model_parallel_rank(),
        micro_batch_size=args.micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=False,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=mpu.is_pipeline_first_stage(),
        is_pipeline_last_stage=mpu.is_pipeline_last_stage(),
    )
    return tuple(batch[key] for key in keys)


def loss_func(loss_mask: Any, output: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Sum of the token losses, number of tokens, and both for the log.

    Args:
        loss_mask: [b, s], 1 where a token counts.
        output: [b, s] cross-entropy of every token, in nats.
    """
    import torch

    mask = loss_mask.view(-1).float()
    loss = torch.sum(output.view(-1).float() * mask)
    tokens = mask.sum().detach().to(torch.int)
    return loss, tokens, {"lm loss": torch.cat([loss.detach().view(1), tokens.view(1)])}


def forward_step(data_iterator: Iterator[dict[str, Any]] | None, model: Any) -> tuple[Any, Any]:
    """Loss of one micro-batch, and the function that reduces it."""
    from megatron.core.utils import get_attr_wrapped_model

    tokens, labels, loss_mask, position_ids = get_batch(data_iterator, get_attr_wrapped_model(model, "vp_stage"))
    output = model(tokens, position_ids, None, labels=labels, loss_mask=loss_mask)
    return output, partial(loss_func, loss_mask)


class Repeated:
    """A dataset that repeats, so that every evaluation sees the same samples.

    Megatron continues through the validation set from one evaluation to the next, but losses before and after growth
    can be compared only on the same samples.

    Args:
        dataset: at least the samples of one evaluation.
        period: samples of one evaluation.
        length: samples of all evaluations.
    """

    def __init__(self, dataset: Any, period: int, length: int) -> None:
        self.dataset, self.period, self.length = dataset, period, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index % self.period]


def datasets(samples: Sequence[int], vp_stage: int | None = None) -> tuple[Any, Any, Any]:
    """Training and validation set, and None for a test set; all None on ranks that read no data.

    Args:
        samples: numbers of training, validation and test samples.
    """
    from megatron.core import mpu
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.training import get_args
    from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage

    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        path_to_cache=args.data_cache_path,
        tokenizer=build_tokenizer(args),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=False,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
    )

    def reads_data() -> bool:
        return mpu.get_tensor_model_parallel_rank() == 0 and is_first_or_last_pipeline_stage(vp_stage)

    period = args.eval_iters * args.eval_global_batch_size
    sizes = [samples[0], period, 0]
    kind = MockGPTDataset if args.mock_data else GPTDataset
    train, valid, _ = BlendedMegatronDatasetBuilder(kind, sizes, reads_data, config).build()
    return train, None if valid is None else Repeated(valid, period, samples[1]), None


datasets.is_distributed = True  # type: ignore[attr-defined]  # Megatron: call it on every rank


def configured() -> Any:
    """Megatron's whole configuration from the command line, plugin included."""
    from megatron.core.utils import init_method_normal
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    import megatron_growth as growth

    args = parse_and_validate_args(extra_args_provider=add_arguments)
    model_cfg = growth.plug_into(gpt_config_from_args(args), args)
    if args.no_scaled_init:
        model_cfg.transformer.output_layer_init_method = init_method_normal(args.init_method_std)
    return pretrain_cfg_container_from_args(args, model_cfg)


def run() -> None:
    """Parse the command line and train."""
    from megatron.core.enums import ModelType
    from megatron.training import pretrain

    pretrain(configured(), datasets, ModelType.encoder_or_decoder, forward_step)


def main() -> int:
    """Entry point of one rank; returns its exit code."""
    die_with_parent()
    end_without_collection()
    with failures.recorded():
        with importing():
            sys.argv[1:] = prepare(sys.argv[1:])
            import megatron.training.training  # noqa: F401
        run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
