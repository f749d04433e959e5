"""Inputs that would silently give a part of the text, or a traceback: each is refused by file and reason, or told."""

from __future__ import annotations

import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_growth.cli.main import main
from megatron_growth.data import compressed, encode
from megatron_growth.data.manifest import load_manifest, megatron_tokenizer_flags
from megatron_growth.data.pieces import InputFile, Piece
from megatron_growth.data.prepare import PURPOSE, prepare
from megatron_growth.data.readers import documents
from megatron_growth.data.sources import discover
from megatron_growth.data.tokenizers import TokenizerSpec, load_tokenizer
from megatron_growth.errors import DataError, GrowthError, RunError, StorageError
from tests.cases import text as cases
from tests.unit.data.sample_corpus import texts, write_jsonl
from tests.unit.data.test_prepare import read

pytest.importorskip("zstandard")
pytest.importorskip("pyarrow")


@pytest.mark.parametrize(
    ("name", "where", "words"),
    [
        ("second-zstd-frame-cut-short", "a.jsonl.zst", "frame 2 has no end"),
        ("second-zstd-frame-without-its-last-byte", "a.jsonl.zst", "frame 2 has no end"),
        ("something-behind-a-zstd-frame", "a.jsonl.zst", "damaged or cut short"),
        ("empty-zstd", "a.jsonl.zst", "holds nothing"),
        ("empty-gzip", "a.jsonl.gz", "holds nothing"),
        ("second-gzip-member-cut-short", "a.jsonl.gz", "frame 2 has no end"),
        ("second-gzip-member-cut-in-its-header", "a.jsonl.gz", "frame 2 has no end"),
        ("gzip-with-a-wrong-checksum", "a.jsonl.gz", "damaged or cut short"),
        ("jsonl-cut-in-its-last-line", "a.jsonl:400", "not JSON"),
        ("parquet-cut-short", "a.parquet", "not a readable Parquet file"),
        ("parquet-with-a-damaged-page", "a.parquet, row group 0", "not a readable Parquet file"),
        ("parquet-text-that-is-not-utf8", "a.parquet, row 1", "not UTF-8: byte 4 is 0xff"),
        ("a-link-that-leads-nowhere", "b.jsonl", "leads nowhere"),
        ("a-number-with-too-many-digits", "a.jsonl:2", "limit (4300 digits)"),
        ("json-nested-too-deeply", "a.jsonl:2", "nested too deeply"),
    ],
)
def test_incomplete_or_damaged_input_is_refused_by_file_and_reason(name, where, words, tmp_path, gpt2_files, capsys):
    corpus = cases.make(name, tmp_path)
    command = ["prepare", "--corpus", str(corpus), "--tokenizer", "gpt2", "--tokenizer-files", gpt2_files]
    assert main([*command, "--output", str(tmp_path / "out"), "--valid-fraction", "0", "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert f"where: {corpus}/{where}\n" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_what_a_folder_holds_and_is_not_read_is_counted_and_named(tmp_path, gpt2_files, capsys):
    corpus = cases.make("endings-that-are-not-read", tmp_path)
    words = ["prepare", "--corpus", str(corpus), "--tokenizer", "gpt2", "--tokenizer-files", gpt2_files]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "not read: 6 files of the corpus" in said.err
    for reason, name in {
        ".bz2": "b.jsonl.bz2",
        ".txt.gz": "c.txt.gz",
        ".csv": "d.csv",
        "(no ending)": "README",
        "hidden": ".hidden/",
        "neither file nor folder": "f.jsonl",
    }.items():
        assert f"1 {reason}: {name}" in said.err
        assert f"not read: 1 {reason}: {name}" in said.out
    assert load_manifest(tmp_path / "out").skipped["hidden"].count == 1


def test_links_to_folders_are_followed_once(tmp_path):
    corpus = discover([str(cases.make("a-linked-folder-and-a-circle", tmp_path) / "texts")])
    assert [source.name for source in corpus.sources] == ["a.jsonl", "linked/b.jsonl"]
    assert corpus.skipped == {"a folder that was read before": ["again"]}


def test_only_line_ends_end_a_line(tmp_path, request_for, gpt2_files):
    corpus = cases.make("lines-with-unicode-separators", tmp_path)
    prepare(request_for(corpus, document_per="line", valid_fraction=0), tmp_path / "out")
    encoding = load_tokenizer(TokenizerSpec("gpt2", gpt2_files))._encoding
    kept = [encoding.decode(ids[:-1]) for ids in read(tmp_path / "out", "train")]
    assert kept == ["one\u2028still one", "two\x0cstill two", "three\x85still three", "four\x1cstill four"]


def test_a_million_blanks_are_encoded_as_a_shorter_row_is(tmp_path, request_for, gpt2_files):
    corpus = cases.make("a-million-blanks", tmp_path)
    manifest, _ = prepare(request_for(corpus, valid_fraction=0), tmp_path / "out")
    assert manifest.splits["train"].documents == 1
    import transformers

    reference = transformers.GPT2TokenizerFast(vocab=f"{gpt2_files}/encoder.json", merges=f"{gpt2_files}/vocab.bpe")
    tokenizer = load_tokenizer(TokenizerSpec("gpt2", gpt2_files))
    for blanks in (" " * 2001, " \n" * 1500, "\t" * 5000, " " * 2001 + "\u2003", " " * 3000 + "\x1c"):
        for text in (f"a{blanks}b", f"a{blanks}", f"{blanks}b{blanks}1", f"a{blanks}'s"):
            assert tokenizer.encode_batch([text])[0].tolist() == reference(text)["input_ids"]


def test_a_vocabulary_with_a_hole_reaches_to_its_largest_id(tmp_path, request_for):
    spec = TokenizerSpec("huggingface", str(cases.make("vocabulary-with-a-hole", tmp_path)))
    (tmp_path / "a.txt").write_text("a b c")
    manifest, _ = prepare(request_for(tmp_path / "a.txt", tokenizer=spec, valid_fraction=0), tmp_path / "out")
    assert (manifest.tokenizer.vocab_size, manifest.tokenizer.eod) == (201, 200)
    assert "201" in megatron_tokenizer_flags(manifest)
    assert read(tmp_path / "out", "train") == [[0, 1, 2, 200]]


class Choking:
    """A tokenizer that fails on one document, as the libraries do: with an exception of its own."""

    name, fingerprint, vocab_size, eod = "choking", "", 10, 9

    def __init__(self, error):
        self.error = error

    def encode_batch(self, texts):
        import numpy as np

        if any("bad" in text for text in texts):
            raise self.error
        return [np.array([12 if "large" in text else 1]) for text in texts]


class PanicException(BaseException):
    """As Rust's panics arrive in Python."""


@pytest.mark.parametrize("error", [ValueError("stack"), RuntimeError("", "x"), PanicException("index out of bounds")])
def test_a_document_that_a_tokenizer_cannot_encode_is_named(tmp_path, request_for, monkeypatch, error):
    monkeypatch.setattr(encode, "_open_tokenizer", lambda *args: Choking(error))
    path = write_jsonl(tmp_path / "a.jsonl", [*texts(5), "bad", *texts(5)])
    with pytest.raises(DataError, match="cannot encode this document") as caught:
        prepare(request_for(path), tmp_path / "out")
    assert caught.value.where == f"{path}:6"
    with pytest.raises(DataError, match="cannot encode this document"):
        prepare(request_for(path), tmp_path / "out")


def test_an_id_beyond_the_vocabulary_is_named_before_it_is_written(tmp_path, request_for, monkeypatch):
    monkeypatch.setattr(encode, "_open_tokenizer", lambda *args: Choking(None))
    path = write_jsonl(tmp_path / "a.jsonl", ["small", "large"])
    with pytest.raises(DataError, match="ids from 12 to 12, but its vocabulary is 10") as caught:
        prepare(request_for(path), tmp_path / "out")
    assert f"{path}:2" in caught.value.where


def test_a_disk_that_fails_under_an_input_names_the_input(tmp_path, request_for, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", texts(3))

    def fails(piece):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("megatron_growth.data.readers._range_lines", fails)
    with pytest.raises(StorageError, match="while an input was read") as caught:
        prepare(request_for(path), tmp_path / "out")
    assert caught.value.where == str(path)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts(3))
    source = discover([str(path)]).sources[0]
    with open(path, "a") as stream:
        stream.write('{"text": "late"}\n')
    with pytest.raises(DataError, match="bytes when the work began"):
        list(documents(Piece(source, 0, source.bytes, source.bytes), "text", "file"))


def test_inputs_that_no_path_can_be(tmp_path, capsys):
    for corpus in ("x" * 5000, "a\0b", os.devnull):
        assert main(["prepare", "--corpus", corpus, "--output", str(tmp_path / "out")]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path, request_for):
    path = write_jsonl(tmp_path / "a.jsonl", texts(3))
    mine = tmp_path / ".out.partial"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=PURPOSE):
        prepare(request_for(path), tmp_path / "out")
    assert [p.name for p in mine.iterdir()] == ["thesis.tex"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.tex").write_text("x")
    (tmp_path / ".other.partial").symlink_to(elsewhere)
    with pytest.raises(RunError):
        prepare(request_for(path), tmp_path / "other")
    assert [p.name for p in elsewhere.iterdir()] == ["thesis.tex"]


EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "0"))
NAMES = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A good file of each kind: (name, bytes), and the documents that all of them hold."""
    import gzip

    import pyarrow
    import pyarrow.parquet
    import zstandard

    kept = texts(12)
    plain = write_jsonl(tmp_path_factory.mktemp("whole") / "a.jsonl", kept).read_bytes()
    half = len(plain) // 2
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": kept}), table, row_group_size=5, write_page_checksum=True)
    zstd = zstandard.ZstdCompressor(write_checksum=True).compress
    return {
        "a.jsonl": plain,
        "a.jsonl.gz": gzip.compress(plain[:half]) + gzip.compress(plain[half:]),
        "a.jsonl.zst": zstd(plain[:half]) + zstd(plain[half:]),
        "a.parquet": table.getvalue(),
        "a.txt": "\n\n".join(kept).encode(),
    }, kept


def content(path):
    """All documents of a file, read in its pieces as `prepare` would."""
    from megatron_growth.data.sources import shards

    pieces = [piece for group in shards(discover([str(path)]).sources) for piece in group]
    return [text for text, *_ in encode.clean_documents(pieces, "text", "paragraph")]


@settings(max_examples=EXAMPLES or 120, deadline=None)
@given(name=st.sampled_from(NAMES), data=st.data())
def test_any_change_of_bytes_is_an_error_or_changes_the_text_it_stands_in(name, data, whole, tmp_path_factory):
    good, kept = whole
    path = tmp_path_factory.getbasetemp() / "fuzz" / name
    path.parent.mkdir(exist_ok=True)
    raw = bytearray(good[name])
    kind = data.draw(st.sampled_from(("cut", "flip", "insert", "all")))
    at = data.draw(st.integers(0, len(raw) - 1))
    if kind == "cut":
        del raw[at:]
    elif kind == "flip":
        raw[at] ^= data.draw(st.integers(1, 255))
    elif kind == "insert":
        raw[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    else:
        raw = bytearray(data.draw(st.binary(max_size=200)))
    path.write_bytes(bytes(raw))
    refused = None
    try:
        found = content(path)
    except GrowthError as error:
        refused = error
    if refused is not None:
        assert str(path) in refused.where
    elif name.endswith((".gz", ".zst", ".parquet")) and kind == "cut":
        assert found == kept, "a cut file gives all of it, or an error"


@pytest.mark.fault
def test_a_reader_that_takes_the_end_of_the_file_for_the_end_of_the_data_is_caught(tmp_path, monkeypatch):
    """The library's own reader gives the first frame of two and says nothing."""
    import zstandard

    def lenient(path):
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(open(path, "rb"), read_across_frames=True))

    corpus = cases.make("second-zstd-frame-cut-short", tmp_path)
    path = corpus / "a.jsonl.zst"
    piece = Piece(InputFile(path.name, str(path), "jsonl", path.stat().st_size), 0, 0, 0)
    with pytest.raises(DataError):
        list(documents(piece, "text", "file"))
    monkeypatch.setattr("megatron_growth.data.compressed.open_compressed", lenient)
    assert 0 < len(list(documents(piece, "text", "file"))) < 400
    assert issubclass(compressed.Cut, ValueError)


def test_a_bad_line_is_named_though_a_tokenizer_is_trained_on_it(tmp_path, capsys):
    """Sentencepiece, the default, turned it into an error of its own that advised a smaller vocabulary."""
    corpus = cases.make("json-nested-too-deeply", tmp_path)
    words = ["prepare", "--corpus", str(corpus), "--output", str(tmp_path / "out"), "--tokenizer", "sentencepiece:300"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "a.jsonl:2" in said
    assert "Sentencepiece" not in said


def test_an_output_that_is_a_link_is_written_where_it_leads(tmp_path, request_for, gpt2_files):
    """It was found out at the last rename, when all the work was done, and again each time."""
    write_jsonl(tmp_path / "a.jsonl", texts(20))
    (tmp_path / "there").mkdir()
    for name, place in (("link", "there"), ("dangling", "made")):
        (tmp_path / name).symlink_to(place)
        manifest, written = prepare(request_for(tmp_path / "a.jsonl", valid_fraction=0.0), tmp_path / name)
        assert written
        assert load_manifest(tmp_path / place) == manifest
        assert (tmp_path / name).is_symlink()
        assert not prepare(request_for(tmp_path / "a.jsonl", valid_fraction=0.0), tmp_path / name)[1]
    assert not list(tmp_path.glob(".*"))


def test_a_mount_point_is_refused_before_the_work(tmp_path, request_for, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", texts(2))
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "volume")
    monkeypatch.setattr("megatron_growth.data.prepare.build", lambda *_: pytest.fail("it began to work"))
    with pytest.raises(DataError, match="mounted here"):
        prepare(request_for(tmp_path / "a.jsonl"), tmp_path / "volume")


def test_an_output_inside_the_corpus_is_no_part_of_it(tmp_path, request_for, gpt2_files, capsys):
    """The second time the dataset's own manifest was read as text."""
    (tmp_path / "corpus").mkdir()
    write_jsonl(tmp_path / "corpus" / "a.jsonl", texts(20))
    request = request_for(tmp_path / "corpus", valid_fraction=0.0)
    assert prepare(request, tmp_path / "corpus" / "data")[1]
    assert not prepare(request, tmp_path / "corpus" / "data")[1]
    assert "1 a prepared dataset: data/" in capsys.readouterr().err


@pytest.mark.parametrize(("ids", "advice"), [(300, "Ask for 346 or more"), (2000, "or fewer, or give more text")])
def test_a_vocabulary_that_cannot_be_trained_is_told_in_which_direction_to_go(tmp_path, capsys, ids, advice):
    text = "".join(map(chr, range(0x100, 0x100 + 88))) if ids == 300 else "abc"  # 88 characters, 258 ids beside them
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    words = ["prepare", "--corpus", str(tmp_path / "a.txt"), "--output", str(tmp_path / "out")]
    assert main([*words, "--tokenizer", f"sentencepiece:{ids}", "--valid-fraction", "0"]) == 2
    assert advice in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]  # nothing begun, nothing left
