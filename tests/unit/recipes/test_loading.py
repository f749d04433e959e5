"""What a bad recipe or profile says: every problem, with file, line and the nearest known name; never a traceback."""

import pytest
from pydantic import ConfigDict

from megatron_growth import recipes
from megatron_growth.cli.main import main
from megatron_growth.errors import RecipeError
from megatron_growth.recipes.cluster import loads_cluster
from megatron_growth.recipes.reporting import validate
from megatron_growth.recipes.source import YamlText

EXAMPLE = recipes.path_of("progressive-8b").read_text()


def error(*pairs):
    text = EXAMPLE
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(RecipeError) as caught:
        recipes.loads(text, file="mine.yaml")
    return str(caught.value)


def line_of(word):
    return next(i for i, line in enumerate(EXAMPLE.splitlines(), 1) if word in line)


def test_all_problems_at_once_with_their_lines():
    message = error(
        ("head_dim: 128", "head_dims: 128"),
        ("hidden: 2560", "hidden: wide"),
        ("ffn: 14336", "fnn: 14336"),
        ("name: cosine", "name: cosin"),
    )
    assert (
        f"mine.yaml:{line_of('head_dim: 128')} (model.head_dims): unknown key 'head_dims'; did you mean head_dim"
        in message
    )
    assert f"mine.yaml:{line_of('hidden: 2560')} (stages[1].hidden): input should be a valid integer" in message
    assert f"mine.yaml:{line_of('ffn: 14336')} (stages[3].fnn): unknown key 'fnn'; did you mean ffn?" in message
    assert message.count("'cosin'") == 1  # inherited by five stages, said once
    assert "4 problems" not in message  # the baseline inherits the misspelt key, and says so on its own line


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("hidden: 4096", "hidden: 2048", "hidden shrinks from 3200 (4B) to 2048 (8B)"),
        ("layers: 33", "layers: 20", "layers shrinks from 27 (4B) to 20 (8B)"),
        ("width: aki", "width: null", "hidden grows from 2048 (1B) to 2560 (2B), but growth.width names no operator"),
        ("from: 2B", "from: 3B", "no earlier stage is called '3B'; did you mean 2B"),
        ("width: aki", "width: akki", "no width operator is called 'akki'; did you mean aki"),
        ("name: 4B", "name: 2B", "two stages are called '2B'"),
        ("rule: family, tokens_per_parameter: 40", "rule: family", "the family rule needs tokens_per_parameter"),
        ("rule: family, tokens_per_parameter: 40", "rule: iterations", "stage 1B needs `iterations`"),
        ("name: cosine,", "name: wsd, stable_fraction: 1.5,", "less than or equal to 1 (got 1.5)"),
        ("min_lr_ratio: 0.1", "min_lr_ratio: -0.1", "greater than or equal to 0 (got -0.1)"),
        ("tokenizer: gpt2", "tokenizer: ./tok", "model.vocab is missing"),
        ("    from: 1B\n", "", "stage 2B needs `from`: the family rule grows each stage from another"),
        ("    heads: 32", "    heads: 32\n    query_groups: 5", "32 heads cannot be shared by 5 query groups"),
        ("lr: 1.5e-3", "lr: 0", "greater than 0 (got 0)"),
        (
            "micro_batch_size: 4",
            "micro_batch_size: 7",
            "global_batch_size 1024 is not a multiple of micro_batch_size 7",
        ),
    ],
)
def test_single_problems(old, new, words):
    assert words in error((old, new))


def test_a_head_dimension_that_changes():
    message = error(("  head_dim: 128\n", ""), ("hidden: 4096", "hidden: 4160"), ("heads: 32", "heads: 26"))
    assert (
        "the head dimension changes from 128 (4B) to 160 (8B); growth keeps it: give a hidden size that 128" in message
    )
    message = error(("  head_dim: 128\n", ""), ("heads: 32", "heads: 16"))
    assert "changes from 128 (4B) to 256 (8B); growth keeps it: take 32 heads" in message


def test_yaml_mistakes_name_their_line():
    with pytest.raises(RecipeError, match="a key is given twice") as caught:
        recipes.loads("name: a\nname: b\n", file="twice.yaml")
    assert "twice.yaml:2 (name)" in str(caught.value)
    with pytest.raises(RecipeError, match="not valid YAML") as caught:
        recipes.loads("name: [a\n", file="open.yaml")
    assert "open.yaml:2" in str(caught.value)
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        recipes.loads("- a\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "progresive-8b"], "did you mean progressive-8b"),
        (["plan", "nano-wso", "--variant", "wsd-1"], "did you mean wsd-0"),
        (["plan", "nowhere.yaml"], "there is no recipe file nowhere.yaml"),
        (["plan", "progressive-8b", "--cluster", "h100"], "did you mean h100-8x"),
        (["plan", "progressive-8b", "--nodes", "2"], "--nodes needs --cluster"),
        (["plan", "step-368m", "--fit-gb", "0.1"], "no number of stages fits 100 MB"),
    ],
)
def test_the_command_ends_with_2_and_a_sentence(capsys, words, said):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_floats_without_a_point_are_numbers():
    assert recipes.load("progressive-8b").stages[0].nominal_parameters == 1e9
    assert recipes.load("nano-progressive").stages[0].lr == 14e-3


def test_variants_and_extension_merge_by_stage_name():
    base, fixed = recipes.load("progressive-8b"), recipes.load("progressive-8b-fixed-lr")
    assert [stage.lr for stage in fixed.stages] == [3e-4] * 4
    assert [s.hidden for s in fixed.stages] == [s.hidden for s in base.stages]
    variant = recipes.load("reuse-1b", "one-layer-none")
    assert (variant.stages[1].lr, variant.stages[1].growth.depth) == (9e-4, "reuse:middle=none")
    assert variant.stages[1].stop_iterations is None
    assert variant.variant == "one-layer-none"


def test_a_problem_in_an_extension_names_the_file_it_is_in(tmp_path):
    (tmp_path / "base.yaml").write_text(EXAMPLE)
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nname: child\nstages:\n  8B: {hidden: 2048}\n")
    with pytest.raises(RecipeError) as caught:
        recipes.load(child)
    assert f"{child}:4 (stages[3].hidden): hidden shrinks" in str(caught.value)
    child.write_text("extends: base.yaml\nname: child\nstages:\n  9B: {hidden: 2048}\n")
    with pytest.raises(RecipeError, match="no stage '9B' to change"):
        recipes.load(child)


def test_baselines_inherit_the_last_stage_and_its_overrides():
    step = recipes.load("step-1.2b-2stages")
    assert step.baselines["relora"].layers == 24
    assert step.baselines["relora"].schedule.name == "relora"
    assert [method.name for method in step.baselines["galore"].methods] == ["galore"]
    assert step.baselines["vanilla"].methods == ()
    assert step.baselines["vanilla"].source is None


PROFILE = "name: x\nnodes: 1\ngpus_per_node: 8\ngpu: {name: a, memory_gib: 80, peak_tflops: 100, mfu: 0.4}\n"


@pytest.mark.parametrize("name", recipes.cluster_names())
def test_shipped_profiles_load(name):
    profile = recipes.load_cluster(name)
    assert profile.name == name
    assert profile.usable_bytes > 70e9


def test_a_profile_without_memory_is_refused():
    with pytest.raises(RecipeError, match=r"cluster profile:4 \(gpu.memory_gib\): gpu.memory_gib is missing"):
        loads_cluster(PROFILE.replace("memory_gib: 80, ", ""))
    with pytest.raises(RecipeError, match="did you mean memory_gib"):
        loads_cluster(PROFILE.replace("memory_gib", "memory_gb"))


@pytest.mark.fault
def test_a_silently_accepted_key_would_be_caught():
    """A model that ignores unknown keys takes the misspelt one without a word; ours does not."""

    class Open(recipes.Stage):
        model_config = ConfigDict(extra="ignore", frozen=True)

    document = {"name": "a", "hidden": 8, "layers": 1, "heads": 1, "lr": 1e-3, "global_batch_size": 1, "hiden": 3}
    assert validate(Open, document, YamlText(), "stage").hidden == 8
    with pytest.raises(RecipeError, match="unknown key 'hiden'"):
        validate(recipes.Stage, document, YamlText(), "stage")
