"""A shape, written as words and read by Megatron's own parser, builds a model of that shape."""

from __future__ import annotations

import argparse
from itertools import product

from megatron_growth.layout.architecture import SETTINGS, SWITCHES, arguments_of, flags_of
from megatron_growth.operators.build import ARCHITECTURE_FLAGS
from megatron_growth.run.flags import words
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed

SHAPE = ModelShape(hidden=16, ffn=24, layers=2, heads=4, head_dim=8, vocab=64)
SPREAD = [
    SHAPE.with_(query_groups=groups, tied_embeddings=tied, gated=gated, norm=norm, qk_norm=qk_norm, **biases)
    for groups, tied, gated, norm, qk_norm, biases in product(
        (4, 2, 1),
        (False, True),
        (False, True),
        ("RMSNorm", "LayerNorm"),
        (False, True),
        ({}, {"qkv_bias": True}, {"bias": True}),
    )
]
TRAINING = "--micro-batch-size 1 --seq-length 8 --max-position-embeddings 8 --train-iters 1 --lr 0 --mock-data"


def built(shapes: list[ModelShape]) -> list[tuple[ModelShape, dict]]:
    """For each shape the one of the model that Megatron builds from its words, and the arguments that it would save."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.arguments import add_megatron_arguments, validate_args
    from megatron.training.models.gpt import GPTModelBuilder

    from megatron_growth.backend import cpu
    from megatron_growth.backend.layer_spec import layer_spec
    from megatron_growth.layout.model_shape import shape_of_modules

    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    groups, found = ProcessGroupCollection.use_mpu_process_groups(), []
    for shape in shapes:
        line = [*words(flags_of(arguments_of(shape))), *TRAINING.split(), "--tokenizer-type", "NullTokenizer"]
        args = parser.parse_args([*line, *cpu.cpu_flags(line)])
        vars(args).update(rank=0, world_size=1, _is_global_batch_size_explicitly_specified=False)
        validate_args(args)
        args.padded_vocab_size = shape.vocab  # a tokenizer would say it
        config = gpt_config_from_args(args)
        config.transformer_layer_spec = layer_spec("local", shape.sublayers)
        model = GPTModelBuilder(config).build_model(groups)
        found.append((shape_of_modules([model]), {name: getattr(args, name) for name in arguments_of(shape)}))
    return found


def test_a_shape_is_what_megatron_builds_from_its_words():
    for shape, (model, saved) in zip(SPREAD, run_distributed(built, 1, SPREAD)[0], strict=True):
        assert model == shape
        said = arguments_of(shape)
        assert saved == said | ({} if said["group_query_attention"] else {"num_query_groups": 1})


def test_the_operators_name_the_same_flags():
    """They stand beside `layout` and cannot read its table."""
    flags = {setting.name: setting.flag for setting in SETTINGS}
    named = {field: flags[name] for name, field in SWITCHES.items()}
    assert named | {"tied_embeddings": "--untie-embeddings-and-output-weights"} == ARCHITECTURE_FLAGS
