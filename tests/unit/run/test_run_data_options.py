"""Every shipped recipe's text and tokenizer resolve, and `train` and `submit` take others, or a prepared dataset."""

from __future__ import annotations

import argparse
import errno
import json
import os

import pytest

from megatron_growth import recipes
from megatron_growth.cli.data_options import add_data_options, with_data_options
from megatron_growth.cli.main import build_parser, main
from megatron_growth.data.manifest import load_manifest
from megatron_growth.data.prepare import prepare
from megatron_growth.data.request import PrepareRequest
from megatron_growth.data.sources import discover
from megatron_growth.data.tokenizers import parse_spec
from megatron_growth.errors import DataError, UserError
from megatron_growth.planner import plan_run
from megatron_growth.run import dataset
from megatron_growth.run.directory import RunDirectory
from megatron_growth.slurm import commands as slurm
from tests.unit.data import hub_server
from tests.unit.data.sample_corpus import texts, write_jsonl
from tests.unit.data.test_hub import table

# As the data set's own README has them.
FINEWEB = """---
configs:
- config_name: default
  data_files: [{split: train, path: "data/*/*"}]
- config_name: sample-100BT
  data_files: [{split: train, path: "sample/100BT/*"}]
---
"""


@pytest.fixture(scope="module")
def fineweb():
    files = {"README.md": FINEWEB.encode(), "data/CC-MAIN-2013-20/train-0.parquet": table(["x"])}
    with hub_server.serve() as hub:
        hub.add("HuggingFaceFW/fineweb-edu", files | {"sample/100BT/000_00000.parquet": table(["x"])})
        yield hub


@pytest.mark.parametrize("name", recipes.names())
def test_the_data_of_every_shipped_recipe_resolves_and_is_enough(name, fineweb, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", fineweb.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = [recipes.load(name, variant) for variant in (None, *recipes.load(name).variants)]
    assert all(discover([corpus]).sources for corpus in {recipe.data.corpus for recipe in found})
    for recipe in found:
        assert parse_spec(recipe.data.tokenizer)
        assert recipe.vocab
        if recipe.data.max_tokens:
            plan = plan_run(recipe, 8)
            need = max(stage.data_pool * stage.sequence_length + 1 for stage in (*plan.stages, *plan.baselines))
            assert need <= recipe.data.max_tokens < 1.1 * need


def options(*words):
    parser = argparse.ArgumentParser()
    add_data_options(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("verb", ["train", "submit"])
def test_both_commands_have_the_options(verb):
    args = build_parser((verb,)).parse_args(
        [verb, "wso-1b", "--data", "d", "--tokenizer", "gpt2", "--max-tokens", "2e9"]
    )
    assert (args.data, args.tokenizer, args.max_tokens, args.text_field) == ("d", "gpt2", 2_000_000_000, None)


def test_options_replace_the_recipes_data(tmp_path):
    recipe = recipes.load("wso-1b")
    assert with_data_options(recipe, options()) is recipe
    changed = with_data_options(
        recipe, options("--tokenizer", "gpt2", "--corpus", str(tmp_path), "--text-field", "body")
    )
    assert (changed.vocab, changed.model.vocab) == (50257, None)
    assert changed.data.corpus == str(tmp_path)
    assert changed.data.text_field == "body"
    assert changed.data.max_tokens is None
    assert with_data_options(recipe, options("--max-tokens", "5e9")).data.max_tokens == 5_000_000_000


@pytest.mark.parametrize("option", ["--corpus", "--tokenizer", "--data"])
def test_one_path_from_two_working_directories_is_one_recipe(tmp_path, monkeypatch, option):
    """Else the same command in another folder is told that the run belongs to another recipe."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "elsewhere" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "below")
    monkeypatch.setattr("megatron_growth.cli.data_options._with_vocabulary", lambda recipe: recipe)

    def given(working, path):
        monkeypatch.chdir(tmp_path / working)
        data = with_data_options(recipes.load("nano-wso"), options(option, path)).data
        return {"--corpus": data.corpus, "--tokenizer": data.tokenizer, "--data": data.prepared}[option]

    assert given(".", "texts") == given("elsewhere", "../texts") == given("link", "../../texts") == f"{tmp_path}/texts"
    (tmp_path / "elsewhere" / "texts").mkdir()  # what the link's .. means
    assert given(".", "link/../texts") == f"{tmp_path}/link/../texts"


def test_options_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(UserError, match="prepared already"):
        with_data_options(recipes.load("nano-wso"), options("--data", str(tmp_path), "--corpus", "stdlib"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A dataset with a tokenizer of 320 ids."""
    folder = tmp_path_factory.mktemp("prepared")
    corpus = write_jsonl(folder / "a.jsonl", texts(200), field="body")
    request = PrepareRequest((str(corpus),), parse_spec("sentencepiece:320"), text_field="body", valid_fraction=0.2)
    prepare(request, folder / "data")
    return folder / "data"


def run_in(folder):
    run = RunDirectory(folder)
    run.data.mkdir(parents=True)
    return run


def of(prepared, tokenizer):
    args = options("--data", str(prepared), "--tokenizer", tokenizer)
    return with_data_options(recipes.load("nano-progressive"), args)


def test_a_prepared_dataset_is_the_runs_own(prepared, tmp_path):
    recipe = of(prepared, "sentencepiece:320")
    assert recipe.vocab == 320
    run = run_in(tmp_path / "run")
    manifest = dataset.prepared(run, recipe)
    assert manifest == load_manifest(prepared) == load_manifest(run.data)
    assert os.path.samefile(run.data / "train.bin", prepared / "train.bin")
    assert dataset.prepared(run, recipe) == manifest
    model = of(prepared, str(prepared / manifest.tokenizer.file))
    assert model.vocab == 320
    assert dataset.prepared(run_in(tmp_path / "again"), model) == manifest


def test_on_another_file_system_it_is_linked_by_name(prepared, tmp_path, monkeypatch):
    def refuses(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuses)
    run = run_in(tmp_path / "run")
    dataset.prepared(run, of(prepared, "sentencepiece:320"))
    assert (run.data / "train.bin").is_symlink()
    assert (run.data / "train.bin").read_bytes() == (prepared / "train.bin").read_bytes()
    assert not (run.data / "manifest.json").is_symlink()


@pytest.mark.fault
@pytest.mark.parametrize("tokenizer", ["gpt2", "sentencepiece:321", "other"])
def test_a_dataset_of_another_tokenizer_is_refused(prepared, tokenizer, tmp_path):
    if tokenizer == "other":
        corpus = write_jsonl(tmp_path / "b.jsonl", texts(300, 500))
        prepare(PrepareRequest((str(corpus),), parse_spec("sentencepiece:320")), tmp_path / "other")
        tokenizer = str(tmp_path / "other" / "tokenizer" / "sentencepiece.model")
    with pytest.raises(DataError, match="prepared with sentencepiece"):
        dataset.prepared(run_in(tmp_path / "run"), of(prepared, tokenizer))


def planned_notes(recipe, capsys):
    assert main(["plan", recipe, "--json"]) == 0
    return [note for note in json.loads(capsys.readouterr().out)["notes"] if "on this machine" in note]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({"corpus": "text"}, "the corpus text, looked for at {here}/text ({recipe}:2 (data.corpus))"),
        ({"tokenizer": "/no/tok"}, "the tokenizer /no/tok ({recipe}:2 (data.tokenizer))"),
        ({"prepared": "made"}, "the prepared dataset made, looked for at {here}/made ({recipe}:2 (data.prepared))"),
    ],
)
def test_data_that_is_not_here_is_noted_by_a_plan_and_refused_by_what_needs_it(
    data, what, tmp_path, monkeypatch, capsys
):
    """A plan is made on a laptop, too; of a mistyped path it said nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "require", lambda: None)
    known = {"model": {"vocab": 1024}} if "tokenizer" in data else {}
    (tmp_path / "mine.yaml").write_text(
        f"extends: nano-progressive\ndata: {json.dumps(data)}\n{json.dumps(known)[1:-1]}\n"
    )
    note = f"Not on this machine: {what.format(here=tmp_path, recipe='mine.yaml')}. "
    assert planned_notes("mine.yaml", capsys) == [f"{note}`train` and `submit` need it where they start."]
    submit = ["submit", "mine.yaml", "--cluster", "h100-8x"]
    assert main([*submit, "--dry-run"]) == 0
    assert note in capsys.readouterr().err
    assert [main(words) for words in (["train", "mine.yaml"], [*submit, "--run", "other"])] == [2, 2]


def test_data_that_is_here_or_on_the_hub_is_not_noted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    for corpus in ("text", "packages", "hf:OWNER/NAME"):
        (tmp_path / "mine.yaml").write_text(f"extends: nano-progressive\ndata: {{corpus: '{corpus}'}}\n")
        assert planned_notes("mine.yaml", capsys) == []
