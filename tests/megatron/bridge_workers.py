"""What a rank does in the test of the Megatron-Bridge example: Bridge's own model provider and callbacks."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "05-megatron-bridge"


def provider_of(shape, sequence):
    """Bridge's provider of a tiny Llama without Transformer Engine."""
    from megatron.bridge.models.gpt_provider import GPTModelProvider, local_layer_spec

    return GPTModelProvider(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=shape.ffn,
        num_attention_heads=shape.heads,
        num_query_groups=shape.query_groups,
        kv_channels=shape.head_dim,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        add_bias_linear=False,
        position_embedding_type="rope",
        rotary_base=5000,
        share_embeddings_and_output_weights=False,
        vocab_size=shape.vocab,
        should_pad_vocab=False,
        seq_length=sequence,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        transformer_layer_spec=local_layer_spec,
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
    )


def grown(source, shape, ids, methods, epsilon, steps=0, **operators):
    """Build and train a model as Bridge does, with the hooks of the example.

    Returns:
        Logits before training, those after it, the shapes of what trained, and of all parameters at the end.
    """
    from megatron.bridge.training.callbacks import CallbackContext, normalize_callbacks
    from megatron.core import parallel_state, tensor_parallel

    sys.path.insert(0, str(EXAMPLE))
    from growth_hooks import GrowthHooks

    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    before = SimpleNamespace(build_config_overrides=lambda context: None)
    checkpoint, train = SimpleNamespace(load=None, save=None, save_optim=True), SimpleNamespace(train_iters=steps)
    config = SimpleNamespace(model=provider_of(shape, ids.shape[1]), checkpoint=checkpoint, train=train)
    config.model.layernorm_epsilon, config.optimizer_config_override_provider = epsilon, before
    hooks = GrowthHooks(source, methods=methods, **operators)
    provider = hooks.into(config).model
    provider.finalize()
    chunks = provider.provide_distributed_model(wrap_with_ddp=False, mixed_precision_wrapper=None)
    first = _logits(chunks, ids)
    trained = [p for p in chunks[0].parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    context = SimpleNamespace(optimizer_config=SimpleNamespace(lr=1.0, min_lr=0.1))
    groups = config.optimizer_config_override_provider.build_config_overrides(context)
    manager, state = normalize_callbacks([hooks]), SimpleNamespace(train_state=SimpleNamespace(step=0))
    told = CallbackContext(state=state, model=chunks, optimizer=optimizer)
    manager.fire("on_train_start", told)
    for _ in range(steps):
        _step(chunks, optimizer, ids)
        manager.fire("on_train_step_end", told)
        state.train_state.step += 1
    shapes = {name: tuple(p.shape) for name, p in chunks[0].named_parameters()}
    taken = sum(p.numel() for p in trained)
    return first, _logits(chunks, ids), taken, shapes, groups, checkpoint.save_optim


def _logits(chunks, ids):
    from tests.megatron.exchange_workers import forward

    return forward(chunks[0].eval(), ids)


def _step(chunks, optimizer, ids):
    positions = torch.arange(ids.shape[1])[None].expand_as(ids)
    optimizer.zero_grad()
    chunks[0].train()(ids, positions, None, labels=ids.roll(-1, dims=1)).mean().backward()
    optimizer.step()
