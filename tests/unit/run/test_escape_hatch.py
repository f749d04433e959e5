"""`megatron: {flag: value}` in recipe, stage and cluster profile: what passes, what is refused, and by which name."""

from dataclasses import replace

import pytest
import yaml

from megatron_growth import recipes
from megatron_growth.cli.main import main
from megatron_growth.errors import RecipeError
from megatron_growth.planner import plan_run
from megatron_growth.planner.cluster import plan_cluster, with_recommended
from megatron_growth.recipes.cluster import loads_cluster
from megatron_growth.recipes.flags import OWNED
from megatron_growth.run import flags
from megatron_growth.run.command import stage_words
from megatron_growth.run.gpu_options import speed
from megatron_growth.run.stage import check_stages

FOLDER = recipes.path_of("nano-progressive").parent


PLANNED = ("train-iters", "--tensor-model-parallel-size", "fp16", "growth-freeze", "lr_decay_iters")


def recipe_with(**changes):
    """nano-progressive with a `megatron` of its own, and one of its second stage."""
    document = yaml.safe_load((FOLDER / "nano-progressive.yaml").read_text())
    document["megatron"] = changes.get("recipe", {})
    document["stages"][1]["megatron"] = changes.get("stage", {})
    return recipes.loads(yaml.safe_dump(document), file="mine.yaml")


def profile_with(flags):
    document = yaml.safe_load((recipes.cluster.FOLDER / "h100-8x.yaml").read_text())
    return loads_cluster(yaml.safe_dump(document | {"megatron": flags}), file="cluster.yaml")


def words_of(recipe, stage, profile=None):
    return stage_words(recipe, plan_run(recipe, 8), stage, profile=profile)


def value_after(words, flag):
    return words[words.index(flag) + 1]


def test_a_stage_goes_before_its_recipe_and_that_before_the_cluster():
    recipe = recipe_with(recipe={"log-interval": 5, "empty_unused_memory_level": 1}, stage={"log-interval": 7})
    profile = profile_with({"log-interval": 3, "num-workers": 4, "empty-unused-memory-level": 2})
    first, second = (words_of(recipe, name, profile) for name in ("nano-92k", "nano-157k"))
    assert value_after(first, "--log-interval") == "5"
    assert value_after(second, "--log-interval") == "7"
    for words in (first, second):
        assert value_after(words, "--empty-unused-memory-level") == "1"
        assert value_after(words, "--num-workers") == "4"
        assert words.count("--log-interval") == 1


def test_the_last_stage_hands_its_flags_to_its_baselines():
    document = yaml.safe_load((FOLDER / "nano-progressive.yaml").read_text())
    document["stages"][-1]["megatron"] = {"log-interval": 9}
    recipe = recipes.loads(yaml.safe_dump(document))
    assert value_after(words_of(recipe, "scratch"), "--log-interval") == "9"
    assert value_after(words_of(recipe, "nano-92k"), "--log-interval") == "1"


def test_false_takes_a_default_away_and_a_list_is_several_values():
    recipe = recipe_with(recipe={"manual-gc": False, "profile-ranks": [0, 3], "profile": True})
    words = words_of(recipe, "nano-92k")
    assert "--manual-gc" not in words
    at = words.index("--profile-ranks")
    assert words[at + 1 : at + 3] == ["0", "3"]
    assert "--profile" in words


def test_a_refused_flag_names_a_key_that_there_is():
    named = {key.split(".")[1] for key in OWNED.values() if key.startswith("model.")}
    assert len(named) > 10
    assert named <= type(recipes.load("nano-progressive").model).model_fields.keys()


@pytest.mark.parametrize("flag", PLANNED)
def test_a_flag_of_the_plan_is_refused_by_name(flag):
    name = flag.removeprefix("--").replace("_", "-")
    with pytest.raises(RecipeError, match=rf"mine.yaml:\d+ .*--{name} is the plan's own: it follows from"):
        recipe_with(recipe={flag: 1})
    with pytest.raises(RecipeError, match=rf"mine.yaml:\d+ .*--{name} is the plan's own"):
        recipe_with(stage={flag: 1})
    with pytest.raises(RecipeError, match=rf"cluster.yaml:\d+ .*--{name} is the plan's own"):
        profile_with({flag: 1})


@pytest.mark.parametrize(
    ("flags_given", "message"),
    [
        ({"overlap-grad-reduse": True}, "no flag --overlap-grad-reduse; did you mean overlap-grad-reduce"),
        ({"log-interval": True}, "--log-interval takes a value"),
        ({"log-interval": "often"}, "--log-interval: .*invalid int value: 'often'"),
        ({"log-interval": [1, 2]}, "--log-interval takes fewer values"),
        ({"profile": 1}, "--profile takes no value: write true"),
        ({"cross-entropy-fusion-impl": "tee"}, "invalid choice: 'tee'"),
        # What its parser takes, and a rank dies of.
        ({"log-interval": 0}, r"--log-interval must be at least 1 \(got 0\)"),
        ({"tensorboard_log_interval": -5}, r"--tensorboard-log-interval must be at least 1 \(got -5\)"),
        ({"manual-gc-interval": -1}, r"--manual-gc-interval must be at least 0 \(got -1\)"),
        ({"num-workers": -1}, r"--num-workers must be at least 0 \(got -1\)"),
        ({"initial-loss-scale": "nan"}, r"--initial-loss-scale must be a finite number \(got nan\)"),
    ],
)
def test_what_megatron_refuses_is_refused_with_the_line(flags_given, message):
    with pytest.raises(RecipeError, match=message):
        flags.check(recipe_with(stage=flags_given))
    with pytest.raises(RecipeError, match=rf"cluster.yaml:\d+ .*{message}"):
        flags.check(recipe_with(), profile_with(flags_given))


def test_numbers_that_turn_something_off_are_taken():
    off = {"manual-gc-interval": 0, "train-sync-interval": 0, "num-workers": 0, "inprocess-heartbeat-interval": 0.5}
    flags.check(recipe_with(recipe=off), profile_with(off))


def test_a_plan_refuses_what_a_rank_would_die_of(tmp_path, capsys):
    """It printed the plan, and the first rank died of a division by zero."""
    document = yaml.safe_load((FOLDER / "nano-progressive.yaml").read_text()) | {"megatron": {"log-interval": 0}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    assert main(["plan", str(tmp_path / "mine.yaml")]) == 2
    assert capsys.readouterr().err.count("--log-interval must be at least 1") == 1  # not again for every stage


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tp-comm-overlap": True}, "--tp-comm-overlap needs tensor and sequence parallelism"),
        ({"overlap-grad-reduce": False}, "--overlap-param-gather needs --overlap-grad-reduce, which is turned off"),
    ],
)
def test_a_flag_that_contradicts_the_layout_is_refused_before_a_job_is_made(given, message):
    """Megatron's own assertion would come on every GPU, hours later for the last stage."""
    recipe = recipes.load("progressive-8b")
    profile = profile_with(given)
    stages = plan_run(recipe, 32).stages
    with pytest.raises(RecipeError, match=message) as caught:
        check_stages(recipe, stages, "gpu", profile)
    assert caught.value.fix
    check_stages(recipe, stages, "gpu", profile_with({"overlap-grad-reduce": False, "overlap-param-gather": False}))


def test_masters_that_do_not_grow_are_refused_before_a_job_is_made():
    """The growth after the stage would find it, when the stage has been trained."""
    recipe, profile = recipes.load("progressive-8b"), profile_with({"use-precision-aware-optimizer": True})
    stages = plan_run(recipe, 32).stages
    check_stages(recipe, stages, "gpu", profile)
    with pytest.raises(RecipeError, match="16 bits"):
        check_stages(recipe, [replace(stages[0], state_is_grown=True)], "gpu", profile)


@pytest.mark.parametrize("place", ["stage", "cluster"])
def test_a_flag_that_a_method_does_not_work_with_is_refused_before_the_first_stage(place):
    """Every rank refuses it: of the second stage, when the first has been trained."""
    flag = {"use-precision-aware-optimizer": True}
    document = yaml.safe_load((FOLDER / "nano-progressive.yaml").read_text())
    document["stages"][1] |= {"methods": ["relora:rank=4"], "megatron": flag if place == "stage" else {}}
    recipe = recipes.loads(yaml.safe_dump(document), file="mine.yaml")
    with pytest.raises(RecipeError, match="nano-157k: ReLoRA does not work with --use-precision-aware-optimizer"):
        flags.check(recipe, profile_with(flag if place == "cluster" else {}))
    flags.check(recipe_with(stage=flag))


def test_two_spellings_of_one_flag_are_refused():
    with pytest.raises(RecipeError, match="--log-interval is given twice"):
        recipe_with(recipe={"log-interval": 5, "log_interval": 6})


def every_stage():
    """(recipe, plan, name) of every stage and baseline of every shipped recipe and variant."""
    for shipped in recipes.names():
        for variant in (None, *recipes.load(shipped).variants):
            recipe = recipes.load(shipped, variant)
            plan = plan_run(recipe, 8)
            yield from ((recipe, plan, stage) for stage in (*plan.stages, *plan.baselines))


def test_every_flag_of_a_plan_is_owned_or_a_default():
    """Else the escape hatch could give Megatron a second, contradicting value without a word."""
    free = {"log-interval", "ckpt-fully-parallel-load"}  # may be changed
    for recipe, plan, stage in every_stage():
        given = {word[2:] for word in stage_words(recipe, plan, stage.name) if word.startswith("--")}
        loose = {f for f in given if not f.startswith("growth-")} - OWNED.keys() - speed(stage, "gpu").keys() - free
        assert not loose, f"{recipe.name} {stage.name}"


def test_owned_flags_are_megatrons():
    known = flags._actions()
    assert {name for name in OWNED if name not in known} == {"no-scaled-init"}  # run/pretrain.py adds it


def test_switches_of_a_cluster_apply_where_they_can():
    profile = recipes.load_cluster("h100-8x")
    switched = profile.model_copy(
        update={"communication": profile.communication.model_copy(update={"tp_overlap": True, "user_buffers": True})}
    )
    recipe = recipes.load("progressive-8b")
    assert "--tp-comm-overlap" not in words_of(recipe, "1B", switched)
    assert {"--tp-comm-overlap", "--use-nccl-ub"} <= set(words_of(recipe, "8B", switched))
    assert not {"--tp-comm-overlap", "--use-nccl-ub"} & set(words_of(recipe, "8B", profile))


def test_a_recommended_layout_keeps_the_flags():
    document = yaml.safe_load((FOLDER / "progressive-8b.yaml").read_text()) | {"megatron": {"log-interval": 7}}
    recipe = recipes.loads(yaml.safe_dump(document))
    cluster = plan_cluster(recipe, plan_run(recipe, 32), recipes.load_cluster("h100-8x"))
    assert value_after(words_of(with_recommended(recipe, cluster), "8B"), "--log-interval") == "7"


FUNCTIONS = {
    "of a source alone": ("nano-92k", {"rotary-percent": 0.5}, "rotary_percent is 0.5 in the source and 1.0 here"),
    "of what grows alone": ("nano-157k", {"softmax-type": "off-by-one"}, "softmax_type is vanilla in the source"),
    "that growth does not know": (None, {"use-mup": True}, "scales by the width"),
    "of layers by their number": (None, {"no-rope-freq": 2}, "growth in depth"),
    "of an epsilon that growth rescales": (None, {"qk-l2-norm": True}, "that zero-pad rescales"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_flags_of_another_function_are_refused_before_the_source_is_trained(name):
    """Growth on load would refuse them when the second stage starts."""
    stage, given, what = FUNCTIONS[name]
    document = yaml.safe_load((FOLDER / "nano-progressive.yaml").read_text())
    place = next((s for s in document["stages"] if s["name"] == stage), document)
    place["megatron"] = given
    if "qk-l2-norm" in given:
        document["growth"]["width"] = "zero-pad"
    with pytest.raises(RecipeError, match=r"stage nano-\d+k cannot grow from nano-\d+k") as refused:
        flags.check(recipes.loads(yaml.safe_dump(document)))
    assert what in refused.value.what
    flags.check(recipe_with(recipe={"rotary-percent": 0.5}, stage={"no-rope-fusion": True}))  # the same in all stages
