"""GPT models small enough for a test, built by Megatron's own builder inside `run_distributed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from megatron_growth.backend.layer_spec import Kind, Sublayers


def tiny_gpt(
    *,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    query_groups: int = 2,
    ffn: int = 96,
    vocab: int = 128,
    sequence: int = 32,
    tied: bool = False,
    spec: Kind = "local",
    sublayers: Sublayers = "full",
    tensor: int = 1,
    pipeline: int = 1,
    bf16: bool = False,
    seed: int = 1234,
    **transformer_options: Any,
) -> GPTModel:
    """This rank's part of a nano Llama (RMSNorm, SwiGLU, RoPE, no biases, no dropout), randomly initialised.

    Sets up Megatron's parallel groups and generators anew; the default process group must exist.

    Args:
        layers: Transformer layers.
        hidden: width of the residual stream.
        heads: query heads.
        query_groups: key/value heads.
        ffn: inner width of the feed-forward block.
        vocab: rows of the embedding; the tensor-parallel size must divide it.
        sequence: tokens per sample.
        tied: the output layer is the embedding.
        spec: kind of layer spec, see `backend.layer_spec`.
        sublayers: of each layer, see `backend.layer_spec`.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        bf16: weights in bfloat16, otherwise fp32.
        seed: of the weights.
        transformer_options: further fields of TransformerConfig.
    """
    import torch
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer import TransformerConfig
    from megatron.training.models import GPTModelConfig
    from megatron.training.models.gpt import GPTModelBuilder

    from megatron_growth.backend.layer_spec import layer_spec

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor, pipeline)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    dtype = torch.bfloat16 if bf16 else torch.float32
    options: dict[str, Any] = {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_query_groups": query_groups,
        "ffn_hidden_size": ffn,
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "bf16": bf16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "activation_func": torch.nn.functional.silu,
        **_FIXED,
        **transformer_options,
    }
    config = GPTModelConfig(
        transformer=TransformerConfig(**options),
        transformer_layer_spec=layer_spec(spec, sublayers),
        vocab_size=vocab,
        seq_length=sequence,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=tied,
    )
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return GPTModelBuilder(config).build_model(groups).to(dtype)


_FIXED = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "persist_layer_norm": False,
    "gradient_accumulation_fusion": False,
    "transformer_impl": "local",
}
