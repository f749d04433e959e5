"""Data sets and tokenizers of the Hugging Face hub, from a small hub on loopback."""

from __future__ import annotations

import io
import json

import pytest

from megatron_growth.cli.main import main
from megatron_growth.data import build, hub
from megatron_growth.data.hub_address import Address, parse
from megatron_growth.data.manifest import load_manifest
from megatron_growth.data.pieces import Corpus
from megatron_growth.data.prepare import prepare
from megatron_growth.data.tokenizers import TokenizerSpec, load_tokenizer, parse_spec
from megatron_growth.errors import DataError
from tests.unit.data import hub_server
from tests.unit.data.sample_corpus import texts
from tests.unit.data.test_prepare import check_content, files, read

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("huggingface_hub")

README = """---
license: odc-by
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
  - split: test
    path: [sample/test/*]
---
# A data set
"""
DOCUMENTS = texts(90)


def table(documents, group=10):
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": documents}), buffer, row_group_size=group)
    return buffer.getvalue()


SAMPLE = {f"sample/10BT/{n:03}_00000.parquet": table(DOCUMENTS[n * 30 : n * 30 + 30]) for n in range(3)}


@pytest.fixture
def server(monkeypatch, tmp_path_factory):
    """A hub with one data set like FineWeb-Edu, and the client pointed at it."""
    with hub_server.serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        served.add(
            "owner/web",
            {"README.md": README.encode(), ".gitattributes": b"x"}
            | {"data/CC-2013/train-0.parquet": table(texts(5)), "data/CC-2014/train-0.parquet": table(texts(5, 5))}
            | {"sample/test/0.parquet": table(texts(4, 200))}
            | SAMPLE,
        )
        yield served


def test_addresses():
    assert parse("hf:owner/name", "") == Address("owner/name")
    assert parse("hf:wikitext", "") == Address("wikitext")
    assert parse("hf:owner/name/test", "") == Address("owner/name", split="test")
    assert parse("hf:o/n@v1.0:en-2/train", "") == Address("o/n", "v1.0", "en-2", "train")
    for text in ("hf:owner/name", "hf:wikitext", "hf:owner/name/test", "hf:o/n@v1.0:en-2/train"):
        assert parse(text, "").text == text
    for text in ("hf:", "hf:../name", "hf:a/b/c/d", "hf:a b", "hf:o/n:c:d"):
        with pytest.raises(DataError, match="not the name of something"):
            parse(text, "--corpus")


def test_the_files_of_a_configuration_in_order_without_fetching_them(server):
    found = hub.listing("hf:owner/web:sample-10BT")
    assert [source.name for source in found.sources] == list(SAMPLE)
    assert [source.bytes for source in found.sources] == [len(data) for data in SAMPLE.values()]
    assert [source.sha256 for source in found.sources] == [hub_server.sha256(data) for data in SAMPLE.values()]
    assert server.fetched == ["README.md"]
    assert [source.name for source in hub.listing("hf:owner/web").sources] == [
        "data/CC-2013/train-0.parquet",
        "data/CC-2014/train-0.parquet",
    ]
    assert [source.name for source in hub.listing("hf:owner/web:sample-10BT/test").sources] == ["sample/test/0.parquet"]


def test_without_configurations_the_names_tell_the_split(server):
    data = table(["x"])
    server.add("owner/plain", {"train-0.parquet": data, "train-1.parquet": data, "test-0.parquet": data, "a.txt": b""})
    assert [s.name for s in hub.listing("hf:owner/plain").sources] == ["train-0.parquet", "train-1.parquet"]
    assert [s.name for s in hub.listing("hf:owner/plain/test").sources] == ["test-0.parquet"]
    server.add("owner/bare", {"b.parquet": data, "a.parquet": data})
    assert [s.name for s in hub.listing("hf:owner/bare").sources] == ["a.parquet", "b.parquet"]


def test_another_format_is_read_from_what_the_hub_converted(server):
    data = table(["x"])
    server.add("owner/lines", {"train.jsonl": b"{}"})
    converted = {"default/train/0000.parquet": data, "default/partial-test/0000.parquet": data}
    server.add("owner/lines", converted, revision="refs/convert/parquet")
    found = hub.listing("hf:owner/lines")
    assert [s.name for s in found.sources] == ["default/train/0000.parquet"]
    assert not found.skipped
    partial = hub.listing("hf:owner/lines/test")
    assert [s.name for s in partial.sources] == ["default/partial-test/0000.parquet"]
    assert "first part only" in next(iter(partial.skipped))


def test_what_is_prepared_is_the_data_set_whatever_the_workers(server, request_for, gpt2_files, tmp_path):
    prepare(request_for("hf:owner/web:sample-10BT"), tmp_path / "one")
    check_content(gpt2_files, tmp_path / "one", DOCUMENTS)
    prepare(request_for("hf:owner/web:sample-10BT"), tmp_path / "two", workers=2)
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert set(load_manifest(tmp_path / "one").identity["inputs"]) == set(SAMPLE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize("limit", [1, 700, 1500])
def test_a_limit_fetches_and_keeps_no_more_than_it_needs(server, request_for, gpt2_files, tmp_path, limit):
    whole, _ = prepare(request_for("hf:owner/web:sample-10BT"), tmp_path / "whole")
    server.fetched.clear()
    manifest, _ = prepare(
        request_for("hf:owner/web:sample-10BT", max_tokens=limit, valid_fraction=0), tmp_path / "some"
    )
    kept = read(tmp_path / "some", "train")
    lengths = [len(document) for document in kept]
    assert sum(lengths[:-1]) < limit <= sum(lengths) == manifest.splits["train"].tokens
    prepare(request_for("hf:owner/web:sample-10BT", valid_fraction=0), tmp_path / "all")
    assert read(tmp_path / "all", "train")[: len(kept)] == kept
    used = sum(1 for n in range(3) if n * 30 < len(kept))
    assert [name for name in server.fetched if name.endswith("parquet")][:used] == list(SAMPLE)[:used]
    assert whole.splits["train"].documents > 0


def test_a_limit_on_local_files_gives_the_same(request_for, tmp_path, small_shards):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, data in SAMPLE.items():
        (folder / name.replace("/", "-")).write_bytes(data)
    prepare(request_for(folder, max_tokens=900, valid_fraction=0), tmp_path / "one")
    prepare(request_for(folder, max_tokens=900, valid_fraction=0), tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert 900 <= load_manifest(tmp_path / "one").splits["train"].tokens < 1300


def test_a_killed_preparation_goes_on_without_fetching_again(server, request_for, gpt2_files, tmp_path, monkeypatch):
    original = build.hub.fetch

    def dies_at_the_third(source, folder):
        if source.name == list(SAMPLE)[2]:
            raise KeyboardInterrupt
        return original(source, folder)

    monkeypatch.setattr(build.hub, "fetch", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(request_for("hf:owner/web:sample-10BT"), tmp_path / "out")
    downloads = tmp_path / ".out.partial" / "downloads"
    assert not list(downloads.rglob("*.parquet")), "a file whose shards are finished is deleted"
    monkeypatch.setattr(build.hub, "fetch", original)
    server.fetched.clear()
    prepare(request_for("hf:owner/web:sample-10BT"), tmp_path / "out")
    assert server.fetched == ["README.md", list(SAMPLE)[2]]
    check_content(gpt2_files, tmp_path / "out", DOCUMENTS)


def test_a_connection_that_breaks_is_taken_up_where_it_was(server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    source = hub.listing("hf:owner/web:sample-10BT").sources[0]
    server.cut_after = 1000
    server.fetched.clear()
    local = hub.fetch(source, tmp_path)
    assert (tmp_path / source.name).read_bytes() == SAMPLE[source.name]
    assert local.format == "parquet"
    assert server.fetched == [source.name, f"{source.name} from 1000"]


def test_another_content_than_was_listed_is_refused(server, tmp_path):
    source = hub.listing("hf:owner/web:sample-10BT").sources[0]
    data = SAMPLE[source.name]
    server.wrong[source.name] = data[:-50] + bytes(50)
    with pytest.raises(DataError, match="sent another file than it listed"):
        hub.fetch(source, tmp_path)
    assert not (tmp_path / source.name).exists()
    del server.wrong[source.name]
    assert hub.fetch(source, tmp_path).bytes == len(data)


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ("hf:owner/none", "could not be read from the hub"),
        ("hf:owner/web:sample-10B", "did you mean sample-10BT"),
        ("hf:owner/web/valid", "has no split 'valid'"),
        ("hf:owner/web@v9", "could not be read from the hub"),
        ("owner/web", "or hf:owner/web for a data set"),
    ],
)
def test_mistakes_are_named(server, corpus, words, tmp_path, capsys):
    assert main(["prepare", "--corpus", corpus, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert f"where: --corpus {corpus}" in said


def test_the_command_takes_a_limit_and_says_what_is_not_read(server, tmp_path, gpt2_files, capsys):
    words = ["prepare", "--corpus", "hf:owner/web:sample-10BT", "--max-tokens", "700", "--json"]
    words += ["--tokenizer", "gpt2", "--tokenizer-files", gpt2_files, "--output", str(tmp_path / "out")]
    assert main([*words, "--valid-fraction", "0.3"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["splits"]["train"]["tokens"] >= 700
    assert summary["identity"]["max_tokens"] == 700


def test_a_tokenizer_by_its_name_on_the_hub(server, tmp_path, gpt2_files, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "<eod>": 5}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eod>").save_pretrained(tmp_path / "own")
    made = {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()}
    server.add("owner/words", made | {"model.safetensors": b"x" * 1000})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    tokenizer = load_tokenizer(parse_spec("hf:owner/words"))
    assert tokenizer.vocab_size == 6
    assert tokenizer.fingerprint == load_tokenizer(TokenizerSpec("huggingface", str(tmp_path / "own"))).fingerprint
    assert "model.safetensors" not in server.fetched
    assert parse_spec("llama3").path.startswith("hf:meta-llama/")
    with pytest.raises(DataError, match="could not be read from the hub"):
        load_tokenizer(parse_spec("llama3"))


@pytest.mark.fault
def test_a_file_left_out_is_caught(server, request_for, gpt2_files, tmp_path, monkeypatch):
    original = hub.listing
    monkeypatch.setattr(
        "megatron_growth.data.sources.hub.listing",
        lambda given: Corpus(original(given).sources[:-1], {}),
    )
    prepare(request_for("hf:owner/web:sample-10BT"), tmp_path / "out")
    with pytest.raises(AssertionError):
        check_content(gpt2_files, tmp_path / "out", DOCUMENTS)
