"""What one rank does in the growth tests: build a tiny Megatron GPT, fill it with random weights, save it, grow it.

Everything here goes through Megatron's own model classes and its own dist_checkpointing.
"""

from pathlib import Path

import torch
import torch.distributed as dist

from megatron_growth.layout.model_shape import transformer_config
from megatron_growth.shape import ModelShape
from megatron_growth.testing import saved_arguments


def build(shape: ModelShape, layout: dict, *, dtype=torch.float32, epsilon=1e-5):
    """Model chunks of this rank in a parallel layout {tp, pp, vpp, pipeline_layout, first, last}."""
    from megatron.core import parallel_state as mpu
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    tp, pp, vpp = layout.get("tp", 1), layout.get("pp", 1), layout.get("vpp")
    mpu.destroy_model_parallel()
    mpu.initialize_model_parallel(tp, pp, vpp)
    model_parallel_cuda_manual_seed(1234)
    config = transformer_config(
        shape,
        dtype,
        layernorm_epsilon=epsilon,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp,
        num_layers_in_first_pipeline_stage=layout.get("first"),
        num_layers_in_last_pipeline_stage=layout.get("last"),
        init_method_std=0.05,
        use_cpu_initialization=True,
        hetereogenous_dist_checkpoint=layout.get("per_layer", False),
    )
    spec = get_gpt_layer_local_spec(normalization=shape.norm, qk_layernorm=shape.qk_norm)
    chunks = []
    for stage in range(vpp or 1):
        where = {"vp_stage": stage if vpp else None}
        chunks.append(
            GPTModel(
                config,
                spec,
                vocab_size=shape.vocab,
                max_sequence_length=64,
                pre_process=mpu.is_pipeline_first_stage(ignore_virtual=vpp is None, **where),
                post_process=mpu.is_pipeline_last_stage(ignore_virtual=vpp is None, **where),
                share_embeddings_and_output_weights=shape.tied_embeddings,
                position_embedding_type="rope",
                **where,
            ).to(dtype)
        )
    return chunks


def shards(chunks):
    """(key, layer, box, local tensor) of every local parameter, by this file's own reading of Megatron's shards."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    out = []

    def walk(value):
        if isinstance(value, ShardedTensorFactory):
            walk(value.build())
        elif isinstance(value, dict):
            [walk(v) for v in value.values()]
        elif isinstance(value, list):
            [walk(v) for v in value]
        elif isinstance(value, ShardedTensor):
            key, offset = value.key, value.global_offset
            layer = None
            if value.prepend_axis_num:
                layer, offset = offset[0], offset[1:]
            elif key.startswith("decoder.layers."):
                _, _, number, rest = key.split(".", 3)
                layer, key = int(number), f"decoder.layers.{rest}"
            box = tuple(slice(o, o + n) for o, n in zip(offset, value.local_shape, strict=True))
            out.append((key, layer, box, value.data.detach()))

    for chunk in chunks:
        walk(chunk.sharded_state_dict())
    return out


def set_weights(chunks, full: dict):
    """Copy from full tensors {(key, layer): tensor} into the local shards."""
    with torch.no_grad():
        for key, layer, box, data in shards(chunks):
            data.copy_(full[key, layer][box])


def save(shape: ModelShape, layout: dict, full: dict, path: str, dtype=torch.float32, epsilon=1e-5) -> None:
    """Save full tensors as a Megatron checkpoint in a parallel layout."""
    from megatron.core import dist_checkpointing

    chunks = build(shape, layout, dtype=dtype, epsilon=epsilon)
    set_weights(chunks, full)
    state = {f"model{n}": chunk.sharded_state_dict() for n, chunk in enumerate(chunks)}
    args = saved_arguments(shape, layernorm_epsilon=epsilon, iteration=7)
    state |= {"args": args, "iteration": 7, "checkpoint_version": 3.0}
    folder = Path(path)
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    dist_checkpointing.save(state, str(folder))


def grow(shape: ModelShape, layout: dict, source: str, dtype=torch.float32, epsilon=1e-5, **request):
    """Grow on load in a layout; the local shards as (key, layer, box, tensor), and the report's provenance."""
    from megatron_growth.checkpoint.grow_on_load import GrowthRequest, fill

    chunks = build(shape, layout, dtype=dtype, epsilon=epsilon)
    with torch.no_grad():
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter.fill_(float("nan"))
    report = fill(chunks, source, GrowthRequest(**request))
    boxes = [
        (key, layer, tuple((s.start, s.stop) for s in box), data.float().numpy().copy())
        for key, layer, box, data in shards(chunks)
    ]
    return boxes, report.provenance


def load(shape: ModelShape, layout: dict, path: str, dtype=torch.float32):
    """Load a checkpoint with Megatron's own loader; the local shards."""
    from megatron.core import dist_checkpointing

    chunks = build(shape, layout, dtype=dtype)
    state = {f"model{n}": chunk.sharded_state_dict() for n, chunk in enumerate(chunks)}
    loaded = dist_checkpointing.load(state, path)
    for n, chunk in enumerate(chunks):
        chunk.load_state_dict(loaded[f"model{n}"])
    return [
        (key, layer, tuple((s.start, s.stop) for s in box), data.float().numpy().copy())
        for key, layer, box, data in shards(chunks)
    ]


def forward(model, tokens):
    """Logits of one whole model; (sequences, length, vocabulary)."""
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    mask = torch.ones(1, 1, tokens.shape[1], tokens.shape[1]).tril() < 0.5
    with torch.no_grad():
        return model.eval()(tokens, positions, mask).float().numpy()


def random_weights(shape: ModelShape, generator):
    """Full tensors {(key, layer): tensor} of a model that looks trained: norms around one, biases not zero."""
    from megatron_growth.layout.parameters import dimensions, parameters_of

    out = {}
    for p in parameters_of(shape):
        for layer in range(shape.layers) if p.layered else [None]:
            values = torch.randn(dimensions(p, shape), generator=generator) * 0.3
            out[p.name, layer] = values + (1.0 if p.init == "one" else 0.0)
    return out


def epsilon_scale(source: ModelShape, target: ModelShape, width: str, depth: str) -> float:
    """What the operator multiplies the norm epsilon with."""
    from megatron_growth.operators import build_map, get

    return build_map(source, target, get("width", width), get("depth", depth), 1).width.epsilon_scale
