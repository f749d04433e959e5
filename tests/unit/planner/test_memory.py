"""The memory estimate against what Megatron allocates on each rank: weights, gradients, masters, moments."""

import pytest

from megatron_growth.planner.inventory import take_inventory
from megatron_growth.planner.memory import Setting, chunks_in_flight, rank_memory
from megatron_growth.shape import ModelShape
from megatron_growth.testing import run_distributed, tiny_gpt

SHAPE = ModelShape(hidden=128, ffn=448, layers=4, heads=8, query_groups=4, vocab=1024)
FROZEN = ("embedding.*", "output_layer.*")
# name -> (tp, pp, bf16, distributed optimizer, tied, frozen patterns); four processes, DP is what is left.
CASES = {
    "dp4 bf16": (1, 1, True, False, False, ()),
    "dp4 bf16 distributed": (1, 1, True, True, False, ()),
    "tp2 dp2 bf16 distributed": (2, 1, True, True, False, ()),
    "tp2 pp2 bf16": (2, 2, True, False, False, ()),
    "pp2 dp2 fp32": (1, 2, False, False, False, ()),
    "tp2 dp2 fp32 distributed": (2, 1, False, True, False, ()),
    "pp2 dp2 tied bf16 distributed": (1, 2, True, True, True, ()),
    "tp2 dp2 frozen bf16": (2, 1, True, False, False, FROZEN),
    "pp2 dp2 frozen layers bf16 distributed": (1, 2, True, True, False, ("decoder.layers.{0,2,3}.*",)),
}
# Buffers are padded to whole buckets, which shows at this size.
TOLERANCE = 0.02


def measure_all():
    return {name: measure(*case) for name, case in CASES.items()}


def measure(tp, pp, bf16, distributed, tied, freeze):
    """(pipeline rank, weights, gradients, masters + moments) in bytes on this rank after one optimizer step."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import Float16Module

    from megatron_growth.layout.model_names import all_names
    from megatron_growth.methods import frozen_names, get
    from megatron_growth.methods.freeze import take_out_of_training

    dtype = torch.bfloat16 if bf16 else torch.float32
    model = tiny_gpt(SHAPE.with_(tied_embeddings=tied), tensor=tp, pipeline=pp, dtype=dtype)
    if freeze:
        group = parallel_state.get_pipeline_model_parallel_group()
        methods = [get({"name": "freeze", "patterns": freeze})]
        take_out_of_training([model], frozen_names(methods, all_names([model], group)))
    module = Float16Module(model.config, model) if bf16 else model
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=distributed, grad_reduce_in_fp32=bf16)
    wrapped = DistributedDataParallel(model.config, ddp, module)
    config = OptimizerConfig(
        optimizer="adam",
        lr=1e-3,
        bf16=bf16,
        params_dtype=next(model.parameters()).dtype,
        use_distributed_optimizer=distributed,
    )
    optimizer = get_megatron_optimizer(config, [wrapped])
    buffers = [*wrapped.buffers, *wrapped.expert_parallel_buffers]
    for buffer in buffers:
        buffer.grad_data.fill_(1e-3)
    optimizer.step()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(buffer.grad_data.numel() * buffer.grad_data.element_size() for buffer in buffers)
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    state = sum(_state_bytes(part, bf16, torch) for part in parts)
    return parallel_state.get_pipeline_model_parallel_rank(), weights, gradients, state


def _state_bytes(optimizer, bf16, torch):
    """Moments, and the masters where there are any: the parameters that the inner optimizer works on."""
    inner = getattr(optimizer, "optimizer", None)
    if inner is None:
        return 0
    moments = sum(
        value.numel() * value.element_size()
        for state in inner.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    )
    held = sum(p.numel() * p.element_size() for group in inner.param_groups for p in group["params"])
    return moments + (held if bf16 else 0)


@pytest.fixture(scope="module")
def measured():
    return run_distributed(measure_all, 4, timeout=240)


def setting_of(tp, pp, bf16, distributed):
    return Setting(
        tp=tp, pp=pp, vpp=1, dp=4 // (tp * pp), layers_per_chunk=(SHAPE.layers // pp,) * pp, sequence_parallel=False,
        distributed_optimizer=distributed, recompute="none", precision="bf16" if bf16 else "fp32",
        micro_batch_size=1, micro_batches=1, sequence_length=32,
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_estimate_is_what_megatron_allocates(measured, name):
    tp, pp, bf16, distributed, tied, freeze = CASES[name]
    inventory = take_inventory(SHAPE.with_(tied_embeddings=tied), freeze)
    totals = [0, 0]
    for rank in measured:
        pipeline_rank, weights, gradients, state = rank[name]
        planned = rank_memory(inventory, setting_of(tp, pp, bf16, distributed), pipeline_rank)
        assert planned.weights_bytes == weights
        assert planned.gradients_bytes == pytest.approx(gradients, rel=TOLERANCE)
        totals[0] += planned.masters_bytes + planned.moments_bytes
        totals[1] += state
    # The distributed optimizer cuts its shards from whole buckets: alike over all ranks together.
    assert totals[0] == pytest.approx(totals[1], rel=TOLERANCE)


@pytest.mark.fault
def test_two_byte_gradients_would_be_caught(measured):
    """The papers' 16 bytes assume bf16 gradients; Megatron's buffer is fp32."""
    *_, gradients, _ = measured[0]["dp4 bf16"]
    assert 2 * sum(p.size for p in take_inventory(SHAPE).parameters) != pytest.approx(gradients, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("pp", "vpp", "micro_batches", "expected"),
    [(4, 1, 16, [4, 3, 2, 1]), (4, 1, 2, [2, 2, 2, 1]), (2, 2, 8, [5, 3]), (1, 1, 8, [1]), (2, 2, 2, [4, 3])],
)
def test_chunks_in_flight(pp, vpp, micro_batches, expected):
    """1F1B keeps as many micro-batches as there are ranks behind, and one; interleaving adds (v - 1) P chunks."""
    setting = Setting(
        tp=1, pp=pp, vpp=vpp, dp=1, layers_per_chunk=(1,) * (pp * vpp), sequence_parallel=False,
        distributed_optimizer=True, recompute="none", precision="bf16", micro_batch_size=1,
        micro_batches=micro_batches, sequence_length=32,
    )  # fmt: skip
    assert [chunks_in_flight(setting, rank) for rank in range(pp)] == expected
