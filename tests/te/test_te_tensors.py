"""What only a GPU trains with, as Transformer Engine really holds it: weights in FP8, moments in bf16."""

import types

from megatron_growth.testing import run_distributed


def counted():
    """(bytes counted, bytes held) of a weight in FP8, before and after its transpose was needed."""
    import torch
    import transformer_engine_torch as kernels
    from transformer_engine.pytorch.tensor import Float8Tensor

    from megatron_growth.plugin.memory import state_bytes

    data = torch.zeros(6, 4, dtype=torch.uint8)
    kind = {"dtype": torch.bfloat16, "fp8_dtype": kernels.DType.kFloat8E4M3, "fp8_scale_inv": torch.ones(1)}
    weight = Float8Tensor(shape=data.shape, data=data, **kind)
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(weight)
    nothing = types.SimpleNamespace(chained_optimizers=[])
    found = [state_bytes([model], nothing)["weights"]]
    model.weight._transpose = torch.zeros(4, 6, dtype=torch.uint8)
    return [*found, state_bytes([model], nothing)["weights"]]


def test_a_weight_in_fp8_is_counted(engine):
    """It has no storage of its own: asking for one ended the run after its first step."""
    assert engine.call(run_distributed, counted, 1, process_group=False) == [[24, 48]]


def stored():
    """The moments that the optimizer holds after one was read by the parameter's name."""
    import torch
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from transformer_engine.pytorch.optimizers import FusedAdam

    from megatron_growth.plugin.state_by_name import _store

    weight, shard = torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.bfloat16)
    inner = FusedAdam([shard], master_weights=True, exp_avg_dtype=torch.bfloat16, exp_avg_sq_dtype=torch.bfloat16)
    inner.initialize_state(shard, False)
    part = object.__new__(DistributedOptimizer)
    part.optimizer, part.model_param_group_index_map = inner, {weight: (0, 0)}
    part.config = types.SimpleNamespace(use_precision_aware_optimizer_no_fp8_or_ds_fp8=True)
    part._get_model_param_range_map = lambda _: {"param": types.SimpleNamespace(start=1, end=5)}
    numbers = torch.arange(6.0).view(2, 3)
    for factor, name in enumerate(("param", "exp_avg", "exp_avg_sq"), start=1):
        _store(part, name, {id(weight): numbers * factor})
    return {name: inner.get_unscaled_state(shard, name).tolist() for name in inner.state[shard]}


def test_moments_in_less_than_fp32_are_stored(engine):
    """--exp-avg-dtype bf16: Megatron hands out copies of them, and what was read into these was lost."""
    (found,) = engine.call(run_distributed, stored, 1, process_group=False)
    assert found == {"exp_avg": [2, 4, 6, 8], "exp_avg_sq": [3, 6, 9, 12], "master_param": [1, 2, 3, 4]}
