"""Every key of a recipe arrives: a test changes it and sees the change in the model, the optimizer or the data.

That a key is on the command line shows little: Megatron reads `--rope-scaling-factor`, keeps it among its arguments and
builds every model with 8.  So what is compared is what stands before the training loop.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import yaml

from ci.recipes_page import blocks
from megatron_growth import recipes
from megatron_growth.backend.cpu import cpu_flags
from megatron_growth.planner import plan_run
from megatron_growth.recipes.schema import Baseline
from megatron_growth.run.arguments import Launch, Place, StageData, megatron_arguments
from megatron_growth.run.directory import StageDirectory
from megatron_growth.testing import run_distributed
from tests.megatron.effects_worker import look_at

BASE = yaml.safe_load("""
name: effects
paper: family
summary: two small stages
model: {head_dim: 8, ffn_multiple: 2, sequence_length: 32, vocab: 250, vocab_multiple: 64, rope_scaling: {factor: 8},
        scaled_init: false}
data: {corpus: stdlib, tokenizer: ./tokenizer.model}
precision: fp32
schedule: {name: cosine, warmup_iterations: 2, min_lr_ratio: 0.1}
budget: {rule: iterations}
growth: {width: fpi, depth: stack}
stages:
  - {name: small, hidden: 16, layers: 2, heads: 2, lr: 1e-2, iterations: 12, global_batch_size: 4, micro_batch_size: 2}
  - {name: large, from: small, hidden: 32, layers: 4, heads: 4, lr: 8e-3, iterations: 12, global_batch_size: 4,
     micro_batch_size: 2}
evaluation: {interval: 6, iterations: 2}
checkpoint: {interval: 4, keep: 2}
""")

SMALL, LARGE = "stages.0.", "stages.1."
# key -> (path in the recipe, new value, where it must show); the stage is that of the path, or the first one.
EFFECTS: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "Model.vocab": ("model.vocab", 500, ("shapes",)),
    "Model.vocab_multiple": ("model.vocab_multiple", 512, ("shapes",)),
    "Model.head_dim": ("model.head_dim", 16, ("shapes", "rotary")),
    "Model.sequence_length": ("model.sequence_length", 16, ("batch",)),
    "Model.norm": ("model.norm", "LayerNorm", ("shapes", "config")),
    "Model.norm_epsilon": ("model.norm_epsilon", 1e-4, ("config.layernorm_epsilon",)),
    "Model.gated": ("model.gated", False, ("shapes", "config.gated_linear_unit")),
    "Model.bias": ("model.bias", True, ("shapes",)),
    "Model.qkv_bias": ("model.qkv_bias", True, ("shapes",)),
    "Model.qk_norm": ("model.qk_norm", True, ("shapes",)),
    "Model.position": ("model.position", "none", ("rotary",)),
    "Model.rope_base": ("model.rope_base", 500_000, ("rotary",)),
    "Model.rope_scaling": ("model.rope_scaling", None, ("rotary",)),
    "RopeScaling.factor": ("model.rope_scaling.factor", 32, ("rotary",)),
    "Model.tied_embeddings": ("model.tied_embeddings", True, ("shapes", "tied")),
    "Model.init_std": ("model.init_std", 0.1, ("spread",)),
    "Model.scaled_init": ("model.scaled_init", True, ("spread",)),
    "Model.ffn_multiple": ("model.ffn_multiple", 3, ("shapes",)),
    "Recipe.precision": ("precision", "bf16", ("dtypes", "optimizer", "ddp.grad_reduce_in_fp32")),
    "Stage.precision": (SMALL + "precision", "bf16", ("dtypes", "optimizer", "ddp.grad_reduce_in_fp32")),
    "Recipe.megatron": ("megatron", {"no-bias-swiglu-fusion": True}, ("config.bias_activation_fusion",)),
    "Recipe.seed": ("seed", 77, ("values", "batch")),
    "Optimizer.beta1": ("optimizer.beta1", 0.8, ("groups",)),
    "Optimizer.beta2": ("optimizer.beta2", 0.999, ("groups",)),
    "Optimizer.eps": ("optimizer.eps", 1e-3, ("groups",)),
    "Optimizer.weight_decay": ("optimizer.weight_decay", 0.3, ("groups",)),
    "Optimizer.clip": ("optimizer.clip", 0.5, ("clip",)),
    "ScheduleBlock.name": ("schedule.name", "linear", ("rates",)),
    "ScheduleBlock.warmup_iterations": ("schedule.warmup_iterations", 4, ("rates",)),
    "ScheduleBlock.warmup_fraction": ("schedule", {"name": "cosine", "warmup_fraction": 0.5}, ("rates",)),
    "ScheduleBlock.warmup_iterations_max": (
        "schedule",
        {"name": "cosine", "warmup_fraction": 0.5, "warmup_iterations_max": 1},
        ("rates",),
    ),
    "ScheduleBlock.min_lr_ratio": ("schedule.min_lr_ratio", 0.5, ("rates",)),
    "ScheduleBlock.stable_fraction": (
        "schedule",
        {"name": "wsd", "warmup_iterations": 2, "stable_fraction": 0.3},
        ("rates",),
    ),
    "ScheduleBlock.restart_iterations": (
        "schedule",
        {"name": "relora", "warmup_iterations": 2, "restart_iterations": 4},
        ("rates",),
    ),
    "ScheduleBlock.restart_warmup_iterations": (
        "schedule",
        {"name": "relora", "warmup_iterations": 2, "restart_iterations": 4, "restart_warmup_iterations": 3},
        ("rates",),
    ),
    "Stage.hidden": (SMALL + "hidden", 24, ("shapes",)),
    "Stage.ffn": (SMALL + "ffn", 40, ("shapes",)),
    "Stage.layers": (SMALL + "layers", 3, ("shapes",)),
    "Stage.heads": (SMALL + "heads", 4, ("shapes",)),
    "Stage.query_groups": (SMALL + "query_groups", 1, ("shapes",)),
    "Stage.sublayers": (SMALL + "sublayers", "attention", ("layers",)),
    "Stage.lr": (SMALL + "lr", 5e-3, ("rates", "groups")),
    "Stage.iterations": (SMALL + "iterations", 20, ("rates", "arguments.train_iters")),
    "Stage.global_batch_size": (SMALL + "global_batch_size", 8, ("arguments.global_batch_size",)),
    "Stage.micro_batch_size": (SMALL + "micro_batch_size", 4, ("batch",)),
    "Stage.freeze": (SMALL + "freeze", ["embedding.*"], ("trains", "groups")),
    "Stage.rules": (SMALL + "rules", [{"pattern": "*.linear_fc1.*", "schedule": 0.5}], ("rates", "groups")),
    "Stage.megatron": (SMALL + "megatron", {"no-bias-swiglu-fusion": True}, ("config.bias_activation_fusion",)),
    "Growth.width": (LARGE + "growth", {"width": "aki", "depth": "stack"}, ("values",)),
    "Growth.depth": (LARGE + "growth", {"width": "fpi", "depth": "interpolate"}, ("values",)),
    "Growth.seed": (LARGE + "growth", {"width": "fpi", "depth": "random", "seed": 5}, ("values",)),
    "Data.stages": ("data.stages", "same", ("arguments.growth_data_start",)),
    "Evaluation.interval": ("evaluation.interval", 3, ("validation.eval_interval",)),
    "Evaluation.iterations": ("evaluation.iterations", 1, ("validation.eval_iters",)),
    "Checkpoint.interval": ("checkpoint.interval", 3, ("checkpoint.save_interval",)),
    "Checkpoint.async_save": ("checkpoint.async_save", True, ("checkpoint.async_save", "arguments.async_save")),
    "Layout.recompute": (SMALL + "layout", {"recompute": "full"}, ("config.recompute_granularity",)),
}
# What else must change for a value to be allowed.
ALONG: dict[str, dict[str, Any]] = {"Model.position": {"model.rope_scaling": None}}
# The same in several processes: (ranks, changes before, path, new value, where it must show).
WIDE: dict[str, tuple[int, dict[str, Any], str, Any, tuple[str, ...]]] = {
    "Layout.tp": (2, {SMALL + "layout": {"tp": 1, "dp": 2}}, SMALL + "layout", {"tp": 2, "dp": 1}, ("shapes",)),
    "Layout.pp": (2, {SMALL + "layout": {"dp": 2}}, SMALL + "layout", {"pp": 2, "dp": 1}, ("shapes",)),
    "Layout.dp": (2, {SMALL + "layout": {"tp": 2, "dp": 1}}, SMALL + "layout", {"dp": 2}, ("shapes", "batch")),
    "Layout.vpp": (
        2,
        {SMALL + "layers": 4, SMALL + "layout": {"pp": 2, "dp": 1}},
        SMALL + "layout.vpp",
        2,
        ("chunks",),
    ),
    "Layout.pipeline_layout": (
        2,
        {SMALL + "layers": 4, SMALL + "layout": {"pp": 2, "dp": 1}},
        SMALL + "layout.pipeline_layout",
        "Ettt|tL",
        ("layers",),
    ),
    "Layout.sequence_parallel": (
        2,
        {SMALL + "layout": {"tp": 2, "dp": 1}},
        SMALL + "layout.sequence_parallel",
        True,
        ("config.sequence_parallel",),
    ),
    "Layout.distributed_optimizer": (
        2,
        {SMALL + "layout": {"dp": 2, "distributed_optimizer": False}},
        SMALL + "layout.distributed_optimizer",
        True,
        ("optimizer", "ddp.use_distributed_optimizer"),
    ),
    "Optimizer.distributed": (
        2,
        {SMALL + "layout": {"dp": 2}, "optimizer": {"distributed": False}},
        "optimizer.distributed",
        True,
        ("optimizer", "ddp.use_distributed_optimizer"),
    ),
    "Checkpoint.reshardable": (
        2,
        {"precision": "bf16", SMALL + "layout": {"dp": 2}},
        "checkpoint.reshardable",
        "always",
        ("arguments.dist_ckpt_optim_fully_reshardable",),
    ),
}
# Keys that say nothing to Megatron, with what holds them; blocks of keys whose own keys are above; what is not run yet.
ELSEWHERE = {
    "names, notes and the paper's figures": (
        *("Recipe.name", "Recipe.paper", "Recipe.summary", "Recipe.variant", "Recipe.variants", "Recipe.printed"),
        *("Stage.name", "Baseline.note", "Stage.stop_iterations", "Printed"),
    ),
    "blocks": (
        *("Recipe.model", "Recipe.data", "Recipe.optimizer", "Recipe.schedule", "Recipe.budget", "Recipe.growth"),
        *("Recipe.stages", "Recipe.baselines", "Recipe.evaluation", "Recipe.checkpoint"),
        *("Stage.layout", "Stage.schedule", "Stage.growth", "Stage.optimizer", "RateRule"),
    ),
    "tests of data/": ("Data.corpus", "Data.tokenizer", "Data.text_field", "Data.document_per", "Data.valid_fraction"),
    "tests of prepare and windows": ("Data.seed", "Data.pool_tokens", "Data.max_tokens", "Data.prepared"),
    "tests of the planner: iterations follow": (
        *("Budget", "ScheduleBlock.span", "Model.nominal_parameters", "Stage.nominal_parameters", "Baseline.match"),
    ),
    "test_run_retention": ("Checkpoint.keep", "Checkpoint.keep_every"),
    "test_early_stop, test_run_early_stop": ("Stage.stop_at", "Stage.stop_below"),
    "test_a_stage_with_a_source_alone_grows": ("Stage.source",),
    "tests of growth of optimizer state": ("Growth.optimizer_state",),
    "tests of methods/": ("Stage.methods", "Method"),
    "tests of a schedule from an outside package": ("ScheduleBlock.parameters",),
}


def keys() -> set[str]:
    """Every key of the schema, by the model that has it."""
    return {
        f"{model.__name__}.{name}"
        for model in blocks()
        for name in model.model_fields
        if not (model is Baseline and name in Baseline.__bases__[0].model_fields)
    }


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The base recipe with values at dotted paths."""
    document = deepcopy(BASE)
    for path, value in changes.items():
        *way, last = (int(part) if part.isdigit() else part for part in path.split("."))
        block: Any = document
        for part in way:
            block = block[part] if isinstance(part, int) else block.setdefault(part, {})
        block[last] = value
    return document


def looked_at(key: str) -> int:
    """Number of the stage in which a key of EFFECTS shows."""
    return int(key == "Data.stages" or EFFECTS[key][0].startswith(LARGE))


def words(document: dict[str, Any], stage: int, folder, ranks: int = 1) -> list[str]:
    """The words of a stage, on mock data."""
    if not stage:  # what is changed in the first stage need not fit the second
        document = document | {"stages": document["stages"][:1]}
    recipe = recipes.loads(yaml.safe_dump(document))
    plan = plan_run(recipe, ranks)
    data = ("--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", str(recipe.vocab))
    launch = Launch(
        directory=StageDirectory(folder / plan.stages[stage].name),
        source=folder / "source" if stage else None,
        data=StageData(data, folder / "cache", recipe.evaluation.iterations * 4),
        place=Place("host"),
    )
    found = megatron_arguments(recipe, plan.stages[stage], launch)
    found.remove("--growth-evaluate-at-start")
    return [*found, *cpu_flags(found)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What every command line of EFFECTS makes, and the two that nothing was changed in; in one process."""
    folder = tmp_path_factory.mktemp("effects")
    lines = {"small": words(BASE, 0, folder), "large": words(BASE, 1, folder)}
    for key, (path, value, _) in EFFECTS.items():
        if key in keys():
            lines[key] = words(changed({path: value} | ALONG.get(key, {})), looked_at(key), folder)
    return run_distributed(look_at, 1, lines, str(folder / "source"), timeout=600)[0]


@pytest.fixture(scope="module")
def seen_wide(tmp_path_factory):
    """The same for WIDE, on two ranks; of each pair what was before and after."""
    folder = tmp_path_factory.mktemp("wide")
    lines = {}
    for key, (ranks, before, path, value, _) in WIDE.items():
        lines[f"{key} before"] = words(changed(before), 0, folder, ranks)
        lines[key] = words(changed(before | {path: value}), 0, folder, ranks)
    return run_distributed(look_at, 2, lines, timeout=600)


def entry(found: dict[str, Any], place: str) -> Any:
    for part in place.split("."):
        found = found[part]
    return found


def unchanged(before: dict[str, Any], after: dict[str, Any], places: tuple[str, ...]) -> list[str]:
    """The places where a change should show and does not."""
    return [place for place in places if entry(before, place) == entry(after, place)]


def test_every_key_is_looked_at_or_has_its_test_elsewhere():
    known = {name for names in ELSEWHERE.values() for name in names}
    left = {key for key in keys() - EFFECTS.keys() - WIDE.keys() if not {key, key.split(".")[0]} & known}
    assert not left, "say in EFFECTS where these keys show"


@pytest.mark.parametrize("key", sorted(EFFECTS))
def test_a_key_shows_in_what_is_built(seen, key):
    if key not in keys():
        pytest.skip("not a key of this release")
    places = EFFECTS[key][-1]
    base = seen["large" if looked_at(key) else "small"]
    assert unchanged(base, seen[key], places) == []


@pytest.mark.parametrize("key", sorted(WIDE))
def test_a_key_of_several_ranks_shows_in_what_is_built(seen_wide, key):
    places = WIDE[key][-1]
    assert any(unchanged(rank[f"{key} before"], rank[key], places) == [] for rank in seen_wide)


def test_a_stage_with_a_source_alone_grows(seen):
    assert seen["large"]["arguments"]["growth_width"] == "fpi"
    assert "growth_from" not in {k for k, v in seen["small"]["arguments"].items() if v}


@pytest.mark.fault
def test_a_factor_that_stays_among_the_arguments_would_be_caught(seen):
    """What Megatron does by itself: the argument is there, and the model has the default."""
    forgotten = seen["RopeScaling.factor"] | {"rotary": seen["small"]["rotary"]}
    assert forgotten["arguments"]["rope_scaling_factor"] == 32
    assert unchanged(seen["small"], forgotten, ("rotary",)) == ["rotary"]
