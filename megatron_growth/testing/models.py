"""GPT models small enough for a test, built by Megatron's own builder inside `run_distributed`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron_growth.shape import ModelShape

if TYPE_CHECKING:
    import torch
    from megatron.core.models.gpt import GPTModel

    from megatron_growth.backend.layer_spec import Kind

TINY = ModelShape(hidden=32, ffn=96, layers=2, heads=4, query_groups=2, vocab=128)


def tiny_gpt(
    shape: ModelShape = TINY,
    *,
    sequence: int = 32,
    spec: Kind = "local",
    tensor: int = 1,
    pipeline: int = 1,
    dtype: torch.dtype | None = None,
    seed: int = 1234,
    rotary: Mapping[str, Any] | None = None,
    **transformer_options: Any,
) -> GPTModel:
    """This rank's part of a nano Llama (RoPE, no dropout), randomly initialised.

    Sets up Megatron's parallel groups and generators again; the default process group must exist.

    Args:
        shape: of the whole model; the tensor-parallel size must divide its vocabulary.
        sequence: tokens per sample.
        spec: kind of layer spec, see `backend.layer_spec`.
        tensor, pipeline: parallel sizes.
        dtype: of the weights; fp32 if None.
        seed: of the weights.
        rotary: fields of GPTModelConfig about rotary embeddings: rotary_base, rope_scaling, rope_scaling_factor.
        transformer_options: further fields of TransformerConfig.
    """
    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.models import GPTModelConfig
    from megatron.training.models.gpt import GPTModelBuilder

    from megatron_growth.backend.layer_spec import layer_spec, usable_transformer_engine
    from megatron_growth.layout.model_shape import transformer_config

    _begin(tensor, pipeline, seed)
    dtype = dtype or torch.float32
    parallel: dict[str, Any] = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}
    if spec != "local" and usable_transformer_engine():
        parallel["transformer_impl"] = "transformer_engine"
    config = GPTModelConfig(
        transformer=transformer_config(shape, dtype, **parallel, **transformer_options),
        transformer_layer_spec=layer_spec(spec, shape.sublayers if shape.layers else "none"),
        vocab_size=shape.vocab,
        seq_length=sequence,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=shape.tied_embeddings,
        **(rotary or {}),
    )
    return GPTModelBuilder(config).build_model(ProcessGroupCollection.use_mpu_process_groups()).to(dtype)


def _begin(tensor: int, pipeline: int, seed: int) -> None:
    """Megatron's parallel groups and generators, in place of those that are there."""
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor, pipeline)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
