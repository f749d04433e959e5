"""The words of every stage of every shipped recipe, as a GPU's start gives them to Megatron's parser and validation."""

from __future__ import annotations

import functools
import re
from dataclasses import replace

import pytest

from megatron_growth import methods, recipes
from megatron_growth.backend.start import refuse_impossible
from megatron_growth.errors import UserError
from megatron_growth.planner import plan_run
from megatron_growth.planner.cluster import plan_cluster, with_recommended
from megatron_growth.run.command import stage_words
from tests.megatron.gpu_words import CAPABILITIES, GPU_INSTALLATIONS, Validated, installation, validated

EVERY = [(name, gpu) for name in GPU_INSTALLATIONS for gpu in CAPABILITIES]
# What differs between the variants of a recipe and leaves model, layout and machine alone.
SAME = re.compile(r"^--(lr|min-lr|growth|load|save$|tensorboard|data-cache|train-iters|seed|adam|weight-decay)")


@functools.cache
def stages(name):
    """(stage, words) of every stage and baseline of all variants, in the recipe's layout and the recommended one."""
    found = []
    profile = recipes.load_cluster("h100-8x")
    for variant in (None, *recipes.load(name).variants):
        recipe = recipes.load(name, variant)
        plans = [(recipe, plan_run(recipe, 8))]
        if variant is None and not name.startswith("nano"):
            nodes = profile.model_copy(update={"nodes": 1 if name.startswith(("reuse", "step")) else profile.nodes})
            chosen = with_recommended(recipe, plan_cluster(recipe, plan_run(recipe, 8), nodes))
            plans.append((chosen, plan_run(chosen, nodes.gpus)))
        for which, plan in plans:
            found += [(stage, stage_words(which, plan, stage.name)) for stage in (*plan.stages, *plan.baselines)]
    return found


def essence(words):
    """The flags that a machine's validation depends on."""
    lines = " ".join(words).split(" --")
    return tuple(line for line in lines if not SAME.match("--" + line.removeprefix("--")))


def wrong(stage, found: Validated, here) -> list[str]:
    """What the configurations say that is not what the plan and the machine want."""
    args, model, container = found.args, found.model.transformer, found.container
    dp, bf16 = stage.layout.dp or 1, stage.precision != "fp32"
    distributed = dp > 1 and stage.layout.distributed_optimizer
    engine = bool(here.transformer_engine)
    table = {
        "world": (args.data_parallel_size, dp),
        "micro-batches": (args.global_batch_size // (args.micro_batch_size * dp), _micro_batches(stage)),
        "transformer implementation": (args.transformer_impl, "transformer_engine" if engine else "local"),
        "bf16": ((args.bf16, container.optimizer.bf16), (bf16, bf16)),
        "gradients in fp32": (container.ddp.grad_reduce_in_fp32, bf16),
        "distributed optimizer": (container.optimizer.use_distributed_optimizer, distributed),
        "overlap of gradients": (container.ddp.overlap_grad_reduce, dp > 1),
        "overlap of parameters": (container.ddp.overlap_param_gather, distributed),
        "cross-entropy": (
            (model.cross_entropy_loss_fusion, model.cross_entropy_fusion_impl),
            (True, "native"),
        ),
        "rotary fusion": (model.apply_rope_fusion, engine and found.model.position_embedding_type == "rope"),
        "gradient accumulation": (model.gradient_accumulation_fusion, here.apex),
        "activation fusion": (model.bias_activation_fusion, True),
        "loader workers": (args.num_workers, 2),
        "garbage collection": ((args.manual_gc, args.manual_gc_interval), (True, 100)),
        "NCCL timeout": (args.distributed_timeout_minutes, 60),
        "saving": (args.ckpt_fully_parallel_save, True),
        "loading": (args.ckpt_fully_parallel_load, dp > 1),
        "asynchronous saving": (args.async_save, False),
        "reshardable state": (args.dist_ckpt_optim_fully_reshardable, distributed and not bf16),
        "sequence parallelism": (model.sequence_parallel, stage.layout.sequence_parallel),
    }
    return [f"{what}: {got}, not {want}" for what, (got, want) in table.items() if got != want]


def _micro_batches(stage) -> int:
    return stage.global_batch_size // (stage.micro_batch_size * (stage.layout.dp or 1))


@pytest.mark.parametrize("name", recipes.names())
def test_every_stage_is_valid_everywhere(name):
    """Words that differ in more than rates and lengths are validated on every installation, the others on one."""
    seen, problems = set(), []
    for stage, words in stages(name):
        known = essence(words) in seen
        seen.add(essence(words))
        for which, gpu in EVERY[:1] if known else EVERY:
            here = installation(which, gpu)
            found = validated(words, here, stage.layout.ranks)
            problems += [f"{stage.name} {stage.layout} on {which} {gpu}: {p}" for p in wrong(stage, found, here)]
    assert not problems, "\n".join(problems)


def changed(name, **changes):
    recipe = recipes.load("progressive-8b").model_copy(update=changes)
    plan = plan_run(recipe, 32)
    return plan.stage(name), stage_words(recipe, plan, name, profile=changes.pop("profile", None))


def test_asynchronous_saving_reaches_megatron():
    """Alone, --async-save is dropped by Megatron's validation."""
    checkpoint = recipes.load("progressive-8b").checkpoint.model_copy(update={"async_save": True})
    _, words = changed("1B", checkpoint=checkpoint)
    args = validated(words, installation("container", "Hopper"), 32).args
    assert (args.async_save, args.async_strategy, args.use_persistent_ckpt_worker) == (True, "mcore", True)
    alone = [word for word in words if word != "--use-persistent-ckpt-worker"]
    assert not validated(alone, installation("container", "Hopper"), 32).args.async_save


@pytest.mark.parametrize("stage_name", ["1B", "8B"])
def test_fp8_is_hybrid_tensorwise_with_gathered_weights_where_nothing_grows(stage_name):
    _, words = changed(stage_name, precision="fp8")
    for gpu in CAPABILITIES:
        found = validated(words, installation("gpu", gpu), 32)
        model = found.model.transformer
        assert (model.fp8, model.fp8_recipe, model.fp8_param) == ("hybrid", "tensorwise", stage_name == "1B")
        assert found.container.ddp.fp8_param_gather == (stage_name == "1B")
        assert found.args.bf16


@pytest.mark.parametrize(("words", "held"), [([], True), (["relora"], False)])
def test_a_stage_with_adapters_computes_in_fp8_and_holds_its_weights_in_bf16(words, held):
    recipe = recipes.load("step-368m")
    first = recipe.stages[0].model_copy(update={"methods": tuple(map(methods.get, words))})
    recipe = recipe.model_copy(update={"precision": "fp8", "stages": (first,)})
    model = validated(
        stage_words(recipe, plan_run(recipe, 8), first.name), installation("gpu", "Hopper"), 8
    ).model.transformer
    assert (model.fp8, model.fp8_param) == ("hybrid", held)


def test_the_switches_of_a_cluster_reach_megatron():
    recipe, profile = recipes.load("progressive-8b"), recipes.load_cluster("h100-8x")
    on = {"tp_overlap": True, "user_buffers": True, "pad_buckets": True}
    profile = profile.model_copy(update={"communication": profile.communication.model_copy(update=on)})
    words = stage_words(recipe, plan_run(recipe, 32), "8B", profile=profile)
    found = validated(words, installation("container", "Hopper"), 32)
    assert found.model.transformer.tp_comm_overlap
    assert found.container.ddp.nccl_ub
    assert found.container.ddp.pad_buckets_for_high_nccl_busbw


@pytest.mark.parametrize(
    ("words", "which", "capability", "message"),
    [
        (["--fp8-format", "hybrid"], "gpu", (8, 0), "has no FP8"),
        (["--fp8-format", "hybrid"], "pip", (9, 0), "FP8 needs Transformer Engine"),
        (["--tp-comm-overlap"], "pip", (9, 0), "Transformer Engine"),
    ],
)
def test_what_the_machine_cannot_do_is_refused_in_a_sentence(words, which, capability, message):
    here = replace(installation(which, "Hopper"), capability=capability)
    with pytest.raises(UserError, match=message):
        refuse_impossible(here, words)
    refuse_impossible(installation("container", "Hopper"), words)


@pytest.mark.fault
def test_words_that_contradict_each_other_would_be_caught():
    stage, words = changed("8B")
    here = installation("container", "Hopper")
    with pytest.raises(AssertionError):
        validated([word for word in words if word != "--use-distributed-optimizer"], here, 32)
    assert wrong(stage, validated(words, here, 32), here) == []
    slow = [word for word in words if word != "--overlap-grad-reduce" and word != "--overlap-param-gather"]
    assert len(wrong(stage, validated(slow, here, 32), here)) == 2
