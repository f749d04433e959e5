"""What YAML changes, what other programs call a key, and what a missing block takes: said with the right name."""

from __future__ import annotations

import pytest

from megatron_growth import recipes
from megatron_growth.errors import RecipeError
from megatron_growth.recipes.cluster import loads_cluster, seconds_of
from megatron_growth.recipes.reporting import SYNONYMS, report
from megatron_growth.recipes.schema import Recipe
from megatron_growth.recipes.source import parse_yaml
from megatron_growth.recipes.wording import models_in

RECIPE = recipes.path_of("nano-progressive").read_text(encoding="utf-8")
PROFILE = (recipes.cluster.FOLDER / "h100-8x.yaml").read_text(encoding="utf-8")


def refused(old: str, new: str, text: str = RECIPE, load=recipes.loads) -> str:
    assert old in text
    with pytest.raises(RecipeError) as caught:
        load(text.replace(old, new, 1), file="mine.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: nano-progressive", "name: 1e-4", 'YAML reads 1e-4 as the number 0.0001; put it in quotes: "1e-4"'),
        ("name: nano-progressive", "name: 2024-01-01", 'YAML reads 2024-01-01 as a date; put it in quotes: "2024'),
        ("name: nano-progressive", "name: 0x1f", 'YAML reads 0x1f as the number 31; put it in quotes: "0x1f"'),
        (
            "name: nano-progressive",
            "name: ~",
            "YAML reads ~ as nothing; in quotes it is refused too: string should match",
        ),
        ("corpus: stdlib", "corpus: no", 'YAML reads no as false; put it in quotes: "no"'),
        (
            "tokenizer: sentencepiece:1024",
            "tokenizer: 1:30",
            'YAML reads 1:30 as the number 90; put it in quotes: "1:30"',
        ),
        ("width: aki", "width: on", 'YAML reads on as true; put it in quotes: "on"'),
        (
            "sequence_length: 128",
            "sequence_length: 0200",
            'YAML reads 0200 as the number 128; put it in quotes: "0200"',
        ),
        (
            "sequence_length: 128",
            "sequence_length: 2:08",
            "YAML reads 2:08 as the number 128; write a number, without a leading 0 or colons",
        ),
        ("sequence_length: 128", "sequence_length: yes", "expected a number, not true"),
        (
            "name: nano-progressive",
            "name: nano-progressive\nsede: 0200",
            "YAML reads 0200 as the number 128; in quotes it is refused too: unknown key 'sede'; did you mean seed",
        ),
        ("init_std: 0.06", "init_std: .inf", "finite number"),
        ("init_std: 0.06", "init_std: .nan", "finite number"),
        ("baselines:\n  scratch:", "baselines:\n  no:", "YAML does not read the key no as text; put it in quotes"),
        ("name: nano-progressive", "name: 2024-99-99", "not valid YAML: month must be in 1..12"),
    ],
)
def test_what_yaml_changes_is_named_with_what_helps(old, new, words):
    message = refused(old, new)
    assert words in message
    assert "mine.yaml" in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("time_limit: ", "time_limit: 24:00:00 # ", "YAML reads 24:00:00 as the number 86400; put it in quotes"),
        ("name: h100-8x", "name: 0123", "YAML reads 0123 as the number 83; put it in quotes"),
    ],
)
def test_the_same_in_a_cluster_profile(old, new, words):
    assert words in refused(old, new, PROFILE, loads_cluster)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ('  time_limit: "soon" #', "'soon' is not a time limit"),
        ('  time_limit: "1:00:00:00" #', "is not a time limit"),
        ('  time_limit: "10:00" #', "told to save 600 seconds before its end, and has 600: it would train nothing"),
        ('  extra: ["--nodes=99"]\n  time_limit: "24:00:00" #', "the job sets --nodes itself"),
        ('  extra: ["-N2"]\n  time_limit: "24:00:00" #', "'-N2' is not an option of sbatch"),
    ],
)
def test_a_job_that_could_not_train_is_refused(new, words):
    assert words in refused("  time_limit: ", new, PROFILE, loads_cluster)


def test_a_variable_without_a_name_is_refused():
    assert "not a variable's name" in refused("NCCL_DEBUG: ", '"BAD NAME": ', PROFILE, loads_cluster)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("30", 1800),
        ("10:05", 605),
        ("24:00:00", 86400),
        ("2-00", 172800),
        ("1-02:03", 93780),
        ("1-02:03:04", 93784),
        ("0", None),
        ("UNLIMITED", None),
        ("-1", None),
        ("35791393", 2147483580),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(limit, seconds):
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize("limit", ["-1", "0", "90", "24:00:00", "10:30"])
def test_a_time_limit_that_is_put_in_quotes_as_told_is_taken(limit):
    """-1 was to be put in quotes, and refused there."""
    told = refused("  time_limit: ", f"  time_limit: {limit} # ", PROFILE, loads_cluster)
    assert f'put it in quotes: "{limit}"' in told
    assert loads_cluster(PROFILE.replace("time_limit: ", f'time_limit: "{limit}" # ')).slurm.time_limit == limit


@pytest.mark.parametrize("limit", ["null", "true", "1e3", "90.5", "-1:00", "1:2:3:4", "2024-01-01", "24:00:00.5"])
def test_quotes_are_not_advised_where_they_would_not_help(limit):
    told = refused("  time_limit: ", f"  time_limit: {limit} # ", PROFILE, loads_cluster)
    assert f"in quotes it is refused too: '{limit}' is not a time limit; write hours:minutes:seconds" in told
    assert "put it" not in told


def test_a_time_limit_that_slurm_would_read_as_a_negative_one_is_refused():
    """Slurm takes this for -21590357 minutes, without a word."""
    told = refused("  time_limit: ", '  time_limit: "9999999999" # ', PROFILE, loads_cluster)
    assert "longer than the 68 years that Slurm can count; write UNLIMITED" in told


def test_in_quotes_they_are_what_they_say():
    quoted = RECIPE.replace("name: nano-progressive", 'name: "2024-01-01"')
    assert recipes.loads(quoted).name == "2024-01-01"
    assert loads_cluster(PROFILE.replace("time_limit: ", 'time_limit: "24:00:00" # ')).slurm.time_limit == "24:00:00"


def test_a_changed_value_in_a_variant_or_an_extension_is_named_where_it_stands(tmp_path):
    text = RECIPE + "\nvariants:\n  odd: {data: {corpus: off}}\n"
    line = text.splitlines().index("  odd: {data: {corpus: off}}") + 1
    with pytest.raises(RecipeError, match=rf"mine.yaml:{line}.*YAML reads off as false"):
        recipes.loads(text, "odd", file="mine.yaml")
    child = tmp_path / "child.yaml"
    child.write_text("extends: nano-progressive\nname: child\ndata: {tokenizer: 010}\n")
    with pytest.raises(RecipeError, match=r"child.yaml:3.*YAML reads 010 as the number 8"):
        recipes.load(child)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("layers: 4, heads: 4", "layers: 4, steps: 5, heads: 4", "'steps'; it is called iterations here"),
        ("layers: 4, heads: 4", "layers: 4, kv_heads: 2, heads: 4", "'kv_heads'; it is called query_groups here"),
        ("layers: 4, heads: 4", "n_layers: 4, heads: 4", "'n_layers'; it is called layers here"),
        ("sequence_length: 128", "seq-length: 128", "'seq-length'; it is called sequence_length here"),
        ("precision: fp32", "tp: 2", "'tp'; it belongs under stages[].layout"),
        ("precision: fp32", "kv_heads: 2", "'kv_heads'; it belongs under stages[] or baselines, as query_groups"),
        ("precision: fp32", "sequence_length: 2", "'sequence_length'; it belongs under model"),
        ("precision: fp32", "precison: fp32", "'precison'; did you mean precision"),
        ("budget: {rule: family, tokens_per_parameter: 2}\n", "", "(`family`, `iterations`, `step`)"),
        ("  sequence_length: 128\n", "", "model.sequence_length is missing: give it whole number ≥ 1"),
    ],
)
def test_a_wrong_or_missing_key_names_the_right_one(old, new, words):
    assert words in refused(old, new)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (
            "megatron: {log-interval: {a: 1}}",
            "(megatron.log-interval): it must be true or false, a whole number, a number, ",
        ),
        (
            "megatron: {log-interval: [[1]]}",
            "(megatron.log-interval): it must be true or false, a whole number, a number ",
        ),
        ("growth: {width: 5}", '(growth.width): YAML reads 5 as the number 5; put it in quotes: "5"'),
        ("growth: 5", "(growth): input should be a mapping of keys (got 5)"),
        ("printed: {layers_added: x}", "input should be a list, as layers_added: [...] (got 'x')"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_problem_in_yamls_words(new, words):
    """Pydantic has one for each type that a key may have, at a place such as `growth.width.dict[str,any]`."""
    text = RECIPE.replace("growth: {", "# growth: {", 1) if new.startswith("growth") else RECIPE
    message = refused("precision: fp32", f"precision: fp32\n{new}", text)
    assert words in message
    assert "the recipe has a problem:" in message


def test_every_synonym_leads_to_a_key_and_is_none_itself():
    keys = {"extends"}
    waiting = [Recipe]
    while waiting:
        model = waiting.pop()
        for name, field in model.model_fields.items():
            keys.add(field.alias or name)
            waiting.extend(models_in(field.annotation))
    words = [word for line in SYNONYMS.values() for word in line.split()]
    assert SYNONYMS.keys() <= keys
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\n",
        "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9) if n else '1'}]\n" for n in range(12)),
        "[" * 1500,
        "? [a, b]\n: c\n",
        "? {a: b}\n: c\n",
        "name: !!python/object/apply:os.getcwd []\n",
        "name: !!binary 'x'\n",
        "name: 0b_\n",
        "\x00",
        "<<: [1]\n",
        "<<: {name: a}\n",
        "a: 1\n---\nb: 2\n",
        "\ud800",
    ],
    ids=lambda text: repr(text[:16]),
)
def test_documents_made_to_break_a_reader_are_refused_in_a_sentence(text):
    with pytest.raises(RecipeError):
        recipes.loads(text)


def test_recipes_that_extend_each_other_in_a_circle(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(RecipeError, match="20 recipes extend each other"):
        recipes.load(tmp_path / "a.yaml")


@pytest.mark.fault
def test_a_reader_that_forgets_how_values_are_written_says_nothing_of_quotes():
    _, source = parse_yaml("name: no\n", "mine.yaml")
    assert source.written(("name",)) == "no"
    forgetful = {path: place._replace(written="") for path, place in source.places.items()}
    assert "quotes" not in str(
        report([(("name",), "input should be a valid string")], type(source)("", forgetful), "x")
    )


@pytest.mark.parametrize(
    ("keys", "where", "words"),
    [
        ("name: nano-542k", ".name", "a baseline goes by its key"),  # it would train into that stage's folder
        ("from: nano-284k", ".from", "a baseline trains from scratch"),
        ("match: iterations", "", "needs `iterations`"),
        ("iterations: 50", ".iterations", "follow from `match: flops`"),
        ("stop_at: other", ".stop_at", "would stop at the loss of its own variant"),
    ],
)
def test_what_a_baseline_cannot_be_is_refused_at_its_key(keys, where, words):
    text = RECIPE.replace("  scratch:\n", f"  scratch:\n    {keys}\n", 1) + "variants: {other: {}}\n"
    with pytest.raises(RecipeError) as caught:
        recipes.loads(text, "other")
    assert f"(baselines.scratch{where}): " in str(caught.value)
    assert words in str(caught.value)


def test_what_a_merge_key_brings_is_read_and_placed_like_any_other():
    merged = "optimizer:\n  <<: {beta2: 7}\n  beta1: 0.9"
    text = RECIPE.replace("optimizer: {beta1: 0.9, beta2: 0.95, weight_decay: 0.1, clip: 1.0}", merged, 1)
    line = text.splitlines().index("  <<: {beta2: 7}") + 1
    assert f"mine.yaml:{line} (optimizer.beta2)" in refused(merged, merged, text)
    written = refused("  <<: {beta2: 7}", "  <<: [{beta2: 0.9}, {beta1: 0.8, clip: 010}]", text)
    assert f"mine.yaml:{line} (optimizer.clip): YAML reads 010 as the number 8" in written
    assert "given twice" in refused("{beta2: 7}", "{beta2: 0.9, beta2: 0.8}", text)


def test_a_key_that_is_taken_away_is_missing_where_it_is_taken_away(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: nano-progressive\nstages:\n  nano-92k:\n    lr: null\n")
    with pytest.raises(RecipeError) as caught:
        recipes.load(file)
    assert f"{file}:4 (stages[0].lr): stages[0].lr is missing" in str(caught.value)


def test_the_home_folder_of_a_path_that_no_shell_has_seen(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert recipes.loads(RECIPE.replace("corpus: stdlib", "corpus: ~/texts")).data.corpus == "/home/ada/texts"
    profile = loads_cluster(PROFILE.replace("runs: runs", "runs: ~/runs").replace("# venv: /shared", "venv: ~"))
    assert profile.paths.runs == "/home/ada/runs"
    assert profile.environment.venv == "/home/ada/venvs/megatron-growth"
