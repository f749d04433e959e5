"""Every term of the step time and of the memory of a save against a case that is worked by hand."""

from dataclasses import replace

import pytest

from megatron_growth import recipes
from megatron_growth.planner.inventory import take_inventory
from megatron_growth.planner.memory import Setting, rank_memory
from megatron_growth.planner.step_time import data_parallel_bus, step_time
from megatron_growth.recipes.cluster import Network, Storage
from megatron_growth.shape import ModelShape

# Progressive-8B's last stage: 33 layers of 4 h^2 + 3 h f weights, two matrices of the padded vocabulary, 67 norms of h.
SHAPE = ModelShape(hidden=4096, ffn=14336, layers=33, heads=32, query_groups=32, vocab=50304, head_dim=128)
MATRICES = 33 * (4 * 4096**2 + 3 * 4096 * 14336)
HEAD = 50304 * 4096
ALL = MATRICES + 2 * HEAD + 67 * 4096
TOKENS = 1024 * 1024
BASE = Setting(
    tp=1, pp=1, vpp=1, dp=32, layers_per_chunk=(33,), sequence_parallel=False, distributed_optimizer=True,
    recompute="none", precision="bf16", micro_batch_size=4, micro_batches=8, sequence_length=1024,
)  # fmt: skip


@pytest.fixture(scope="module")
def profile():
    """32 GPUs in four nodes, round numbers."""
    shipped = recipes.load_cluster("h100-8x")
    gpu = shipped.gpu.model_copy(update={"peak_tflops": 1000.0, "mfu": 0.5, "fp8_tflops": 2000.0, "fp8_mfu": 0.4})
    network = Network(inside_node=400, between_nodes=50, adapters=8, bus=None)
    return shipped.model_copy(update={"gpu": gpu, "network": network, "storage": Storage(write=5)})


def time_of(profile, **changes):
    setting, inventory = replace(BASE, **changes), take_inventory(SHAPE)
    memory = max((rank_memory(inventory, setting, r) for r in range(setting.pp)), key=lambda m: m.total_bytes)
    return step_time(inventory, setting, memory, profile, 10**11), memory


def test_computing_is_the_exact_flops_at_the_speed_that_is_reached(profile):
    scores = 33 * 12 * 1024 * 4096  # 4 S A D forward and twice that backward, a layer
    flops = (6 * (MATRICES + HEAD) + scores) * TOKENS
    assert time_of(profile)[0].compute == pytest.approx(flops / (32 * 1000e12 * 0.5))


def test_in_fp8_the_matrices_of_the_layers_take_its_peak(profile):
    slow = (6 * HEAD + 33 * 12 * 1024 * 4096) * TOKENS / (32 * 1000e12 * 0.5)
    fast = 6 * MATRICES * TOKENS / (32 * 2000e12 * 0.4)
    assert time_of(profile, precision="fp8")[0].compute == pytest.approx(slow + fast)


def test_gradients_and_weights_go_once_round_the_ring_of_the_nodes(profile):
    """Eight adapters of 50 GB/s are one ring of 400: 4 and 2 bytes a weight, 31 of 32 parts of them."""
    time, memory = time_of(profile, overlap_gradients=False, overlap_weights=False)
    assert memory.gradients_bytes == 4 * ALL
    assert time.gradients == pytest.approx(4 * ALL * 31 / 32 / 400e9)
    assert time.weights == pytest.approx(2 * ALL * 31 / 32 / 400e9)
    assert (time.gradients_hidden, time.weights_hidden) == (0, 0)


def test_only_what_the_flags_overlap_is_hidden(profile):
    plain, _ = time_of(profile, overlap_gradients=False, overlap_weights=False)
    for one, other in (("gradients", "weights"), ("weights", "gradients")):
        time, _ = time_of(profile, **{f"overlap_{one}": True, f"overlap_{other}": False})
        assert getattr(time, one) == 0
        assert getattr(time, f"{one}_hidden") == pytest.approx(getattr(plain, one))
        assert getattr(time, other) == pytest.approx(getattr(plain, other))
    # A slow network: no more is hidden than the backward pass of one micro-batch, two thirds of its computing.
    slow = profile.model_copy(update={"network": Network(bus=1)})
    time, _ = time_of(slow)
    assert time.gradients_hidden == pytest.approx(time.compute / 8 * 2 / 3)
    assert time.weights_hidden == pytest.approx(time.compute / 8 / 3)


def test_without_the_distributed_optimizer_gradients_go_round_twice(profile):
    time, _ = time_of(profile, distributed_optimizer=False, overlap_gradients=False)
    assert time.gradients == pytest.approx(2 * 4 * ALL * 31 / 32 / 400e9)
    assert time.weights == 0


@pytest.mark.parametrize(
    ("tp", "dp", "expected"),
    [(1, 32, 400), (2, 16, 200), (8, 4, 50), (1, 8, 400), (4, 2, 400)],
)
def test_groups_of_a_node_share_its_adapters(profile, tp, dp, expected):
    """At TP 2 two groups send at the same time; a group inside one node has NVLink's 400 here, too."""
    assert data_parallel_bus(replace(BASE, tp=tp, dp=dp), profile)[0] == expected


def test_a_measured_bus_bandwidth_goes_before_the_adapters():
    assert Network(between_nodes=50, bus=350).node_bus(8) == 350
    assert Network(between_nodes=50).node_bus(8) == 400
    assert Network(between_nodes=50, adapters=2).node_bus(8) == 100


def test_the_pipeline_waits_for_its_ends(profile):
    """P 3, 24 micro-batches: 2 / 24 of the computing; with 2 virtual stages half of it."""
    three = {"pp": 3, "dp": 8, "layers_per_chunk": (11, 11, 11), "micro_batches": 32, "micro_batch_size": 4}
    time, _ = time_of(profile, **three)
    assert time.bubble == pytest.approx(time.compute * 2 / 32)
    two = {"pp": 2, "vpp": 2, "dp": 16, "layers_per_chunk": (8, 8, 8, 9), "micro_batches": 16, "micro_batch_size": 4}
    uneven, _ = time_of(profile, **two)
    balanced = uneven.compute / (17 * 2 / 33)  # one rank has 17 of the 33 layers
    assert uneven.bubble == pytest.approx(balanced * 1 / (2 * 16))


def test_tensor_parallel_layers_reduce_four_times(profile):
    """16 micro-batches x 4 x 33 layers x 2 bytes x 4 x 1024 x 4096, 2 (2 - 1) / 2 of it over NVLink."""
    time, _ = time_of(profile, tp=2, dp=16, micro_batches=16)
    assert time.tensor == pytest.approx(16 * 4 * 33 * 2 * 4 * 1024 * 4096 / 400e9)


def test_a_checkpoint_is_waited_for_unless_it_is_written_in_the_background(profile):
    time, _ = time_of(profile)
    assert time.save == pytest.approx(100 / 5)
    assert time.hours(2500, 1000) == pytest.approx((2500 * time.step + 3 * 20) / 3600)
    assert time_of(profile, async_save=True)[0].save == 0


def test_a_save_by_ranks_takes_each_ranks_share(profile):
    _, memory = time_of(profile)
    assert memory.save_gpu_bytes == 0
    assert memory.save_host_bytes == pytest.approx((2 + 12) * ALL / 32, rel=1e-6)


@pytest.mark.parametrize(("tp", "dp", "gibibytes"), [(1, 32, 81.6), (2, 16, 42)])
def test_a_gathered_save_of_one_bucket_is_what_megatron_needs(profile, tp, dp, gibibytes):
    """Without buckets: 16 bytes a weight of the shard on the GPU, and a share; on the host 20 of them a rank."""
    _, memory = time_of(profile, tp=tp, dp=dp, gathered_save=True, overlap_gradients=False)
    assert (memory.state_bytes + memory.save_gpu_bytes) / 2**30 == pytest.approx(gibibytes, rel=0.01)
    shard = (ALL - 67 * 4096) / tp + 67 * 4096
    assert memory.save_host_bytes == pytest.approx(20 * shard + 2 * shard / dp, rel=1e-6)


def test_with_buckets_a_gathered_save_holds_one_of_them_on_the_gpu(profile):
    _, memory = time_of(profile, gathered_save=True)
    assert memory.save_gpu_bytes == 4 * 40_000_000
    assert memory.save_host_bytes == pytest.approx(12 * ALL + 8 * 40_000_000 + 2 * ALL / 32, rel=1e-6)


def test_the_memory_of_a_save_decides_a_layout():
    """8B: TP 1 is fastest, until every save gathers the state and a node has no room for eight copies of it."""
    from megatron_growth.planner import plan_run
    from megatron_growth.planner.cluster import plan_cluster

    recipe, profile = recipes.load("progressive-8b"), recipes.load_cluster("h100-8x")
    always = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"reshardable": "always"})})
    node = profile.model_copy(update={"memory_gib": 512.0})
    free = plan_cluster(recipe, plan_run(recipe, 32), node).stages[-1]
    tight = plan_cluster(always, plan_run(always, 32), node).stages[-1]
    assert free.recommended.layout.model_parallel_size == 1
    assert tight.recommended.layout.model_parallel_size > 1
    assert tight.recommended.save_host_bytes_per_node <= 512 * 2**30
    assert "of a node's memory for a save" in tight.reason


@pytest.mark.fault
def test_the_bandwidth_of_one_adapter_would_be_caught(profile):
    """As if a node's ring had one of its eight adapters."""
    one = profile.model_copy(update={"network": Network(inside_node=400, between_nodes=50, adapters=1)})
    time, _ = time_of(one, overlap_gradients=False)
    assert time.gradients != pytest.approx(4 * ALL * 31 / 32 / 400e9, rel=0.5)
