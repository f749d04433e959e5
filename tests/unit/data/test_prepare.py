"""`prepare`: the right tokens, the same bytes whatever the workers and the format, complete or absent after a kill."""

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiktoken

from megatron_growth.cli.main import main
from megatron_growth.data import build, encode, merge
from megatron_growth.data import prepare as prepare_module
from megatron_growth.data.encode import ValidationSplit
from megatron_growth.data.manifest import load_manifest, megatron_data_flags, megatron_tokenizer_flags
from megatron_growth.data.prepare import prepare
from megatron_growth.data.sources import InputFile, Piece, discover, shards
from megatron_growth.data.tokenizers import TokenizerSpec, load_tokenizer
from megatron_growth.errors import DataError
from megatron_growth.records.storage import sha256_of
from tests.unit.data.sample_corpus import texts, write_jsonl

EOD = 50256
DOCUMENTS = texts(120)


@pytest.fixture
def corpus(tmp_path, small_shards):
    return write_jsonl(tmp_path / "corpus.jsonl", DOCUMENTS)


def read(output, split):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(output / split))
    return [dataset[n].tolist() for n in range(len(dataset))]


def files(output):
    """Content of every file of a dataset, by name."""
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}


def expected(gpt2_files, documents, fraction=0.2, seed=1234):
    """The documents of each split by a plain loop with tiktoken's list interface."""
    encoding: tiktoken.Encoding = load_tokenizer(TokenizerSpec("gpt2", gpt2_files))._encoding
    split = ValidationSplit(fraction, seed)
    parts = {"train": [], "valid": []}
    for text in documents:
        name = "valid" if split.is_validation(text.encode()) else "train"
        parts[name].append([*encoding.encode_ordinary(text), EOD])
    return parts


def check_content(gpt2_files, output, documents):
    wanted = expected(gpt2_files, documents)
    assert {name: read(output, name) for name in wanted} == wanted


def test_tokens_are_those_of_tiktoken_document_by_document(corpus, request_for, gpt2_files, tmp_path):
    assert len(shards(discover([str(corpus)]).sources)) > 3
    manifest, written = prepare(request_for(corpus), tmp_path / "out")
    assert written
    check_content(gpt2_files, tmp_path / "out", DOCUMENTS)
    wanted = expected(gpt2_files, DOCUMENTS)
    for name, split in manifest.splits.items():
        assert split.documents == len(wanted[name])
        assert split.tokens == sum(map(len, wanted[name]))
        for file, record in split.files.items():
            assert record.sha256 == sha256_of(tmp_path / "out" / file)
    assert manifest == load_manifest(tmp_path / "out")
    assert manifest.identity["inputs"] == {"corpus.jsonl": sha256_of(corpus)}
    assert sorted(os.listdir(tmp_path)) == ["corpus.jsonl", "out"]


@pytest.mark.fault
def test_shards_out_of_order_or_a_lost_separator_are_caught(corpus, request_for, gpt2_files, tmp_path, monkeypatch):
    original = build.merge_shards
    monkeypatch.setattr(build, "merge_shards", lambda paths, *rest: original(paths[::-1], *rest))
    prepare(request_for(corpus), tmp_path / "reversed")
    with pytest.raises(AssertionError):
        check_content(gpt2_files, tmp_path / "reversed", DOCUMENTS)
    monkeypatch.setattr(build, "merge_shards", original)

    def shifted(path):
        shard = encode.load_shard(path)
        for lengths in shard.lengths.values():
            if len(lengths) > 1:  # every document but the last loses its separator to the next one
                lengths[0], lengths[-1] = lengths[0] - 1, lengths[-1] + 1
        return shard

    monkeypatch.setattr(merge, "load_shard", shifted)
    prepare(request_for(corpus), tmp_path / "shifted")
    with pytest.raises(AssertionError):
        check_content(gpt2_files, tmp_path / "shifted", DOCUMENTS)


def test_the_bytes_do_not_depend_on_the_number_of_workers(corpus, request_for, tmp_path):
    spec = TokenizerSpec("sentencepiece", train_vocab_size=400)
    for workers in (1, 2, 3):
        prepare(request_for(corpus, tokenizer=spec), tmp_path / f"out{workers}", workers)
    one = files(tmp_path / "out1")
    assert {"train.bin", "valid.idx", "manifest.json", "tokenizer/sentencepiece.model"} <= one.keys()
    assert files(tmp_path / "out2") == one
    assert files(tmp_path / "out3") == one


def test_every_format_gives_the_same_documents(request_for, gpt2_files, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    zstandard = pytest.importorskip("zstandard")
    plain = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS, field="body").read_bytes()
    half = len(plain) // 2
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(plain[:half]) + gzip.compress(plain[half:]))
    compressor = zstandard.ZstdCompressor()
    (tmp_path / "a.jsonl.zst").write_bytes(compressor.compress(plain[:half]) + compressor.compress(plain[half:]))
    table = pyarrow.table({"body": DOCUMENTS, "id": list(range(len(DOCUMENTS)))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    (tmp_path / "folder").mkdir()
    for number, text in enumerate(DOCUMENTS):
        (tmp_path / "folder" / f"{number:03}.txt").write_text(text, "utf-8")
    for name in ("a.jsonl", "a.json.gz", "a.jsonl.zst", "a.parquet", "folder"):
        prepare(request_for(tmp_path / name, text_field="body"), tmp_path / "out" / name)
        check_content(gpt2_files, tmp_path / "out" / name, DOCUMENTS)


def test_text_files_can_be_cut_into_paragraphs_and_lines(request_for, gpt2_files, tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\ufeffone\ntwo\n\n \nthree\n\nfour\n", "utf-8")
    for unit, wanted in {
        "file": ["one\ntwo\n\n \nthree\n\nfour\n"],
        "paragraph": ["one\ntwo", "three", "four"],
        "line": ["one", "two", "three", "four"],
    }.items():
        prepare(request_for(path, document_per=unit, valid_fraction=0), tmp_path / unit)
        assert read(tmp_path / unit, "train") == expected(gpt2_files, wanted, fraction=0)["train"]
        assert not (tmp_path / unit / "valid.bin").exists()


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 10, 50])
def test_jsonl_cut_at_any_byte_reads_every_line_once(tmp_path, cut):
    lines = ['{"text": "' + "x" * (n % 9) + f'{n}"}}' for n in range(30)] + ["", '{"text": "last, without newline"}']
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    size = path.stat().st_size
    source = InputFile("a.jsonl", str(path), "jsonl", size)
    pieces = [Piece(source, begin, min(begin + cut, size), cut) for begin in range(0, size, cut)]
    read_back = [text for text, *_ in encode.clean_documents(pieces, "text", "file")]
    assert read_back == [text for text, *_ in encode.clean_documents([Piece(source, 0, size, size)], "text", "file")]
    assert len(read_back) == 31


def test_lone_surrogates_and_empty_documents(request_for, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "bad \\ud800 half"}\n{"text": "  \\n"}\n{"text": ""}\n{"text": "good"}\n')
    manifest, _ = prepare(request_for(path, valid_fraction=0), tmp_path / "out")
    assert manifest.empty_documents == 2
    assert manifest.splits["train"].documents == 2


def test_validation_depends_on_the_text_only():
    documents = [text.encode() for text in texts(2000)]
    split = ValidationSplit(0.1, seed=3)
    chosen = {d for d in documents if split.is_validation(d)}
    assert chosen == {d for d in reversed(documents) if ValidationSplit(0.1, seed=3).is_validation(d)}
    assert 140 < len(chosen) < 260  # 200 expected, standard deviation 13
    # A larger fraction keeps the documents of a smaller one; another seed chooses others.
    assert chosen < {d for d in documents if ValidationSplit(0.2, seed=3).is_validation(d)}
    assert chosen != {d for d in documents if ValidationSplit(0.1, seed=4).is_validation(d)}
    assert not any(ValidationSplit(0.0, seed=3).is_validation(d) for d in documents)


def test_the_same_request_again_does_nothing(corpus, request_for, tmp_path):
    first, _ = prepare(request_for(corpus), tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    again, written = prepare(request_for(corpus), tmp_path / "out", workers=2)
    assert (again, written) == (first, False)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before


def test_a_dataset_of_something_else_is_kept_and_the_difference_shown(corpus, request_for, tmp_path):
    prepare(request_for(corpus), tmp_path / "out")
    before = files(tmp_path / "out")
    write_jsonl(corpus, texts(100))
    spec = TokenizerSpec("sentencepiece", train_vocab_size=300)
    with pytest.raises(DataError) as caught:
        prepare(request_for(corpus, tokenizer=spec, seed=5), tmp_path / "out")
    for part in ("corpus.jsonl", "seed: 1234 there, 5 asked for", "kind: gpt2 there, sentencepiece asked for"):
        assert part in caught.value.what
    assert files(tmp_path / "out") == before
    assert sorted(os.listdir(tmp_path)) == ["corpus.jsonl", "out"]


def test_damage_and_strange_outputs_are_refused(corpus, request_for, tmp_path):
    prepare(request_for(corpus), tmp_path / "out")
    with open(tmp_path / "out" / "train.bin", "r+b") as stream:
        stream.truncate(10)
    with pytest.raises(DataError, match=r"train\.bin has 10 bytes instead of"):
        prepare(request_for(corpus), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="not a prepared dataset"):
        prepare(request_for(corpus), tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    assert prepare(request_for(corpus), tmp_path / "empty")[1]


def run_and_kill_at(step, request, output):
    """Run prepare in a child that kills itself before its `step`-th durable operation; True if it got to the end."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        count = 0

        def guarded(operation):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return operation(*args, **kwargs)

            return call

        for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir"):
            setattr(os, name, guarded(getattr(os, name)))
        try:
            prepare(request, output)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def test_a_kill_before_any_durable_step_leaves_nothing_or_all(corpus, request_for, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_growth.data.sources.MIB", 8192)
    request = request_for(corpus, tokenizer=TokenizerSpec("sentencepiece", train_vocab_size=400))
    prepare(request, tmp_path / "undisturbed")
    wanted = files(tmp_path / "undisturbed")
    step, finished = 0, False
    while not finished:
        step += 1
        output = tmp_path / f"killed{step}"
        finished = run_and_kill_at(step, request, output)
        assert not output.exists() or files(output) == wanted
        prepare(request, output)
        assert files(output) == wanted
        assert not output.with_name(f".{output.name}.partial").exists()
    assert step > 20


def test_finished_shards_are_used_again(corpus, request_for, tmp_path, monkeypatch):
    calls = []
    original = encode.encode_shard

    def stops_after_two(pieces, *of_the_request):
        calls.append(pieces)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(pieces, *of_the_request)

    monkeypatch.setattr(encode, "encode_shard", stops_after_two)
    with pytest.raises(KeyboardInterrupt):
        prepare(request_for(corpus), tmp_path / "out")
    total = len(shards(discover([str(corpus)]).sources))
    prepare(request_for(corpus), tmp_path / "out")
    assert len(calls) == total + 1, "only the interrupted shard is computed twice"


# The command, which takes the first finished shard and then waits to be killed, its workers alive.
HELD = """
import sys, time
from megatron_growth.cli.main import main
from megatron_growth.data import workers
finished = workers.as_completed
def first_only(futures):
    yield next(finished(futures))
    print("held", flush=True)
    time.sleep(3600)
workers.as_completed = first_only
sys.exit(main(sys.argv[1:]))
"""


def test_workers_end_with_a_killed_command_and_the_same_command_finishes(tmp_path, gpt2_files):
    words = ["--corpus", "stdlib", "--tokenizer", "gpt2", "--tokenizer-files", gpt2_files, "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, "prepare", *words, "--output", tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    assert any((tmp_path / ".out.partial" / "shards").glob("0*.npz"))
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(workers) >= 2
    assert not (tmp_path / "out").exists()
    wait_for(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers))
    assert main(["prepare", *map(str, words), "--output", str(tmp_path / "out")]) == 0
    manifest = load_manifest(tmp_path / "out")
    assert manifest.splits["train"].documents > 500
    assert manifest.text_bytes > 8_000_000


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_full_disk_loses_nothing(tmp_path, gpt2_files):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", texts(3000))
    words = ["--corpus", corpus, "--tokenizer", "gpt2", "--tokenizer-files", gpt2_files, "--output", tmp_path / "out"]
    # A limit on the size of any file makes a write fail as a full disk does, in the workers too.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    code = limit + "import sys; from megatron_growth.cli.main import main; sys.exit(main(sys.argv[1:]))"
    failed = subprocess.run(
        [sys.executable, "-c", code, "prepare", *words], capture_output=True, text=True, timeout=500
    )
    assert failed.returncode == 1
    assert "No space left to write" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "out").exists()
    assert main(["prepare", *map(str, words)]) == 0
    assert load_manifest(tmp_path / "out").splits["train"].documents > 2900


def test_two_commands_on_one_output(corpus, request_for, tmp_path):
    with prepare_module._lock(tmp_path / ".out.partial"):
        with pytest.raises(DataError, match="Another process"):
            prepare(request_for(corpus), tmp_path / "out")
        assert (tmp_path / ".out.partial").is_dir()  # it belongs to the process that holds it, even while it is empty
    assert not (tmp_path / ".out.partial").exists()


def test_the_stdlib_corpus_is_prepared_documents_not_tests(tmp_path):
    sources = discover(["stdlib"]).sources
    names = [source.name for source in sources]
    assert names[0] == "stdlib/pydoc-topics"
    assert names[1:] == sorted(names[1:])
    assert "stdlib/asyncio/base_events.py" in names
    assert not any("/test/" in name or "/idle_test/" in name for name in names)
    assert 8e6 < sum(source.bytes for source in sources) < 14e6


def test_inputs_of_the_same_name_stay_apart(request_for, gpt2_files, tmp_path):
    for folder, first in (("a", 0), ("b", 50)):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "x.jsonl", texts(50, first))
    manifest, _ = prepare(request_for(tmp_path / "a/x.jsonl", tmp_path / "b/x.jsonl"), tmp_path / "out")
    assert list(manifest.identity["inputs"]) == ["0/x.jsonl", "1/x.jsonl"]
    check_content(gpt2_files, tmp_path / "out", texts(100))


def test_megatron_is_told_the_vocabulary_and_eod(corpus, request_for, tmp_path):
    from argparse import Namespace

    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

    manifest, _ = prepare(request_for(corpus), tmp_path / "out")
    flags = megatron_tokenizer_flags(manifest)
    given = {flag.lstrip("-").replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    args = Namespace(
        tokenizer_type=given["tokenizer_type"],
        vocab_size=int(given["vocab_size"]),
        null_tokenizer_eod_id=int(given["null_tokenizer_eod_id"]),
        pad_vocab_size=True,
        make_vocab_size_divisible_by=128,
        tensor_model_parallel_size=2,
        rank=0,
    )
    tokenizer = build_tokenizer(args)
    assert (tokenizer.vocab_size, tokenizer.eod) == (50257, EOD)
    assert args.padded_vocab_size == 50432
    data = megatron_data_flags(tmp_path / "out", manifest)
    assert data == ["--train-data-path", str(tmp_path / "out/train"), "--valid-data-path", str(tmp_path / "out/valid")]
    assert all(Path(prefix + ".bin").is_file() for prefix in data[1::2])
