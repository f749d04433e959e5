"""Every mistake a user can make with `prepare`: exit code 2, one message with where and what to do, no traceback."""

import gzip
import json

import pytest

from megatron_growth.cli.main import main
from megatron_growth.data import corpora
from megatron_growth.data.manifest import load_manifest
from megatron_growth.errors import DataError
from tests.unit.data.sample_corpus import texts, write_jsonl


@pytest.fixture
def refused(tmp_path, capsys, gpt2_files):
    """A function that runs `prepare` on a corpus and returns what it says on stderr when it refuses."""

    def run(*corpus, tokenizer="gpt2", options=()):
        files = ["--tokenizer-files", gpt2_files] if tokenizer == "gpt2" else []
        words = ["prepare", "--corpus", *map(str, corpus), "--tokenizer", tokenizer, *files, "--workers", "1", *options]
        code = main([*words, "--output", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert code == 2
        assert "Traceback" not in said
        assert "where:" in said
        assert "what to do:" in said
        assert not (tmp_path / "out").exists()
        return said

    return run


def test_a_path_that_is_not_there(refused, tmp_path):
    assert "did you mean stdlib" in refused("stdlb")
    assert "no file or folder" in refused(tmp_path / "none.txt")


def test_an_empty_corpus(refused, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "empty.jsonl").touch()
    assert "holds no text" in refused(tmp_path / "empty.txt")
    assert "holds no text" in refused(tmp_path / "empty.jsonl")
    assert "could not train" in refused(tmp_path / "empty.txt", tokenizer="sentencepiece:512")


def test_a_folder_without_text(refused, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    assert "(no files)" in refused(folder)
    (folder / "a.png").write_bytes(b"\x89PNG")
    assert "1 .png" in refused(folder)


def test_an_unreadable_line_is_named(refused, tmp_path, small_shards):
    path = write_jsonl(tmp_path / "a.jsonl", texts(100))
    lines = path.read_text().splitlines()
    lines[76] = lines[76][:-5]
    path.write_text("\n".join(lines))
    assert f"{path}:77" in refused(path)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert f"{tmp_path / 'a.jsonl.gz'}:77" in refused(tmp_path / "a.jsonl.gz")


def test_a_missing_or_wrong_field_is_named(refused, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{"texte": "bad", "id": 4}\n')
    said = refused(path)
    assert f"{path}:2" in said
    assert "did you mean texte" in said
    path.write_text('{"text": 5}\n')
    assert "holds int, not text" in refused(path)
    path.write_text('["text"]\n')
    assert "not a JSON object" in refused(path)


def test_an_empty_field_is_not_the_wrong_field(refused, tmp_path):
    corpus = tmp_path / "x.jsonl"
    corpus.write_text('{"text": "a"}\n{"text": null}\n')
    assert "or leave this row out" in refused(corpus)


def test_names_of_files_that_are_not_read_have_no_effect_on_a_terminal(tmp_path, capsys, gpt2_files):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "\x1b[31mred.bz2").write_bytes(b"")
    write_jsonl(tmp_path / "in" / "x.jsonl", texts(1))
    words = ["prepare", "--corpus", tmp_path / "in", "--tokenizer", "gpt2", "--tokenizer-files", gpt2_files]
    assert main([*map(str, words), "--valid-fraction", "0", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert r"1 .bz2: \x1b[31mred.bz2" in said.err
    assert r"1 .bz2: \x1b[31mred.bz2" in said.out
    assert "\x1b" not in said.out + said.err
    assert " 1 document " in said.out


def test_a_missing_column_is_named(refused, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"contents": ["x"], "id": [1]}), path)
    assert "did you mean contents" in refused(path, options=("--text-field", "content"))
    assert "holds int, not text" in refused(path, options=("--text-field", "id"))
    path.write_bytes(b"PAR1 no")
    assert "not a readable Parquet file" in refused(path)


def test_a_binary_file(refused, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc\xff\xfe")
    assert "byte 3 is not UTF-8" in refused(tmp_path / "a.bin")
    (tmp_path / "b.txt").write_bytes(b"ab\0c")
    assert "zero byte at 2" in refused(tmp_path / "b.txt")


def test_a_damaged_or_unnamed_archive(refused, tmp_path):
    whole = gzip.compress(b'{"text": "x"}\n' * 10_000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-20])
    assert "damaged or cut short" in refused(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.jsonl.zst").write_bytes(b"not zstd at all")
    assert "damaged or cut short" in refused(tmp_path / "b.jsonl.zst")
    (tmp_path / "c.txt.gz").write_bytes(whole)
    assert "must be JSONL" in refused(tmp_path / "c.txt.gz")


def test_unknown_tokenizers_and_options(refused, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert "did you mean gpt2" in refused(tmp_path / "a.txt", tokenizer="gtp2")
    assert "did you mean paragraph" in refused(tmp_path / "a.txt", options=("--document-per", "paragraphs"))


def test_a_vocabulary_over_the_dtype(refused, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocabulary = {f"w{n}": n for n in range(70_000)} | {"<eod>": 70_000}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eod>").save_pretrained(tmp_path / "big")
    (tmp_path / "a.txt").write_text("w69999")
    said = refused(tmp_path / "a.txt", tokenizer=str(tmp_path / "big"), options=("--dtype", "uint16"))
    assert "70001 ids does not fit uint16" in said
    words = ["prepare", "--corpus", tmp_path / "a.txt", "--tokenizer", tmp_path / "big", "--valid-fraction", "0"]
    assert main([str(w) for w in [*words, "--output", tmp_path / "out"]]) == 0
    assert load_manifest(tmp_path / "out").dtype == "int32"


def test_no_validation_document(refused, tmp_path):
    (tmp_path / "a.txt").write_text("one document only")
    said = refused(tmp_path / "a.txt", options=("--valid-fraction", "0.001"))
    assert "None of the 1 documents fell into the valid split" in said


def test_a_manifest_that_is_missing_damaged_or_of_another_format(tmp_path):
    with pytest.raises(DataError, match="no prepared dataset"):
        load_manifest(tmp_path)
    for content, message in (("{", "damaged"), ('{"format": 99}', "format 99"), ('{"format": 1}', "damaged")):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=message):
            load_manifest(tmp_path)


@pytest.mark.parametrize("change", ["split", "file", "tokenizer"])
@pytest.mark.parametrize("name", ["../train", "/data/train", "a/../../train", ".."])
def test_a_manifest_names_files_of_its_own_folder_only(tmp_path, change, name):
    names = {"split": "train", "file": "train.bin", "tokenizer": ""} | {change: name}
    record = {"documents": 1, "tokens": 1, "files": {names["file"]: {"bytes": 1, "sha256": ""}}}
    tokenizer = {"name": "", "fingerprint": "", "vocab_size": 2, "eod": 1, "file": names["tokenizer"]}
    document = {"format": 1, "identity": {}, "dtype": "uint16", "empty_documents": 0, "text_bytes": 0, "versions": {}}
    document |= {"tokenizer": tokenizer, "splits": {names["split"]: record}}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="damaged") as refused:
        load_manifest(tmp_path)
    assert "does not name a file in this folder" in str(refused.value.__cause__)


RECORD = {"documents": 1, "tokens": 1, "files": {"train.bin": {"bytes": 1, "sha256": ""}}}
WHOLE = {
    "format": 1,
    "identity": {"inputs": {}, "tokenizer": {"kind": "gpt2", "train_vocab_size": 0}},
    "dtype": "uint16",
    "empty_documents": 0,
    "text_bytes": 0,
    "versions": {},
    "tokenizer": {"name": "", "fingerprint": "", "vocab_size": 2, "eod": 1, "file": ""},
    "splits": {"train": RECORD},
}


@pytest.mark.parametrize(
    "change",
    [
        {"identity": []},
        {"identity": {}},
        {"identity": {"inputs": [], "tokenizer": {"kind": "gpt2", "train_vocab_size": 0}}},
        {"splits": {}},
        {"splits": {"train": RECORD | {"tokens": "many"}}},
        {"tokenizer": WHOLE["tokenizer"] | {"eod": None}},
        {"tokenizer": None},
        {"dtype": 7},
    ],
)
def test_a_manifest_of_other_types_is_damaged(tmp_path, change):
    (tmp_path / "manifest.json").write_text(json.dumps(WHOLE))
    assert load_manifest(tmp_path).splits["train"].tokens == 1
    (tmp_path / "manifest.json").write_text(json.dumps(WHOLE | change))
    with pytest.raises(DataError, match="damaged"):
        load_manifest(tmp_path)


def test_built_in_corpora_are_listed():
    assert "known" in str(corpora.unknown("zzz")) or "did you mean" in str(corpora.unknown("zzz"))
    assert all(name in str(corpora.unknown("zzz")) for name in corpora.CORPORA)
