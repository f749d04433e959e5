"""The tokenizer of a training run as files that transformers loads, beside an exported model.

gpt2              vocab.json and merges.txt, from OpenAI's encoder.json and vocab.bpe
sentencepiece     the .model file, converted by transformers (Llama's tokenizer)
Hugging Face      its own files
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_growth import recipes
from megatron_growth.data.manifest import FILE_NAME as MANIFEST
from megatron_growth.data.manifest import TokenizerRecord, load_manifest
from megatron_growth.data.tokenizers import Tokenizer, TokenizerSpec, load_tokenizer, parse_spec
from megatron_growth.data.tokenizers.huggingface import open_folder
from megatron_growth.errors import DataError
from megatron_growth.records.place import RECIPE, run_above

_GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
Named = tuple[TokenizerSpec, TokenizerRecord | Tokenizer]  # how a tokenizer is opened, and what is known of it
# Words, digits, blanks, accents and another script, where conversions usually go wrong first.
PROBE = "The 3 naïve cats  sat;\nthey didn't run 12,345 km. Überall 東京!"


def tokenizer_of_run(checkpoint: Path) -> Named | None:
    """The tokenizer of the run directory that a checkpoint lies in; None outside a run directory.

    Raises:
        DataError: the run's dataset or its tokenizer cannot be read.
    """
    run = run_above(checkpoint)
    if run is None or not (run / "data" / MANIFEST).is_file():
        return None
    record = load_manifest(run / "data").tokenizer
    if record.file:
        return TokenizerSpec("sentencepiece", str(run / "data" / record.file)), record
    data = recipes.load(str(run / RECIPE)).data
    spec = parse_spec(data.tokenizer)
    if load_tokenizer(spec).fingerprint != record.fingerprint:
        raise DataError(
            f"{data.tokenizer} is not the tokenizer that the dataset was made with",
            where=str(run / "data"),
            fix="name that one with --tokenizer, or leave it out with --no-tokenizer",
        )
    return spec, record


def tokenizer_of(checkpoint: Path, named: str, files: str = "") -> Named:
    """The named tokenizer, written as for `prepare --tokenizer`, else that of the checkpoint's run directory.

    Raises:
        DataError: none was named and the checkpoint lies in no run; or files are missing, or not the run's.
    """
    if named:
        spec = parse_spec(named, files)
        return spec, load_tokenizer(spec)
    found = tokenizer_of_run(checkpoint)
    if found is None:
        raise DataError(
            "the tokenizer of this checkpoint is not known: it lies in no run directory",
            where=str(checkpoint),
            fix="name it: --tokenizer gpt2, a sentencepiece .model file, or a folder with a Hugging Face tokenizer",
        )
    return found


def write_tokenizer(spec: TokenizerSpec, folder: Path) -> None:
    """Write the tokenizer's files, and check that transformers gives the same ids for a probe text.

    Raises:
        DataError: the files are missing, or transformers reads them differently.
    """
    ours = load_tokenizer(spec)
    if spec.kind == "huggingface":
        open_folder(Path(spec.path)).save_pretrained(folder)
    elif spec.kind == "gpt2":
        _write_gpt2(spec, folder)
    else:
        _write_sentencepiece(Path(spec.path), folder)
    theirs = open_folder(folder)
    wanted = np.asarray(ours.encode_batch([PROBE])[0])
    got = np.asarray(theirs(PROBE, add_special_tokens=False)["input_ids"])
    if not np.array_equal(wanted, got):
        raise DataError(
            "transformers reads the tokenizer's files differently: a probe text gives other ids",
            where=str(folder),
            fix="export without a tokenizer (--no-tokenizer) and put its own files there",
        )


def _write_gpt2(spec: TokenizerSpec, folder: Path) -> None:
    """GPT-2's own files under the names that transformers knows."""
    import transformers
    from tiktoken.load import read_file_cached

    from megatron_growth.data.tokenizers.gpt2 import FILES

    for name, target in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        if spec.path:
            shutil.copyfile(Path(spec.path) / name, folder / target)
        else:  # tiktoken's cache, which loading the tokenizer has filled
            (folder / target).write_bytes(read_file_cached(_GPT2_URL + name, FILES[name]))
    transformers.GPT2Tokenizer.from_pretrained(str(folder), local_files_only=True).save_pretrained(folder)


def _write_sentencepiece(model: Path, folder: Path) -> None:
    """tokenizer.json built from the model's own pieces, scores and normalisation; the model itself beside it."""
    import transformers
    from sentencepiece import SentencePieceProcessor

    shutil.copyfile(model, folder / "tokenizer.model")
    processor = SentencePieceProcessor(model_file=str(model))
    eos = processor.eos_id()
    names = {"unk_token": processor.id_to_piece(processor.unk_id())}
    if eos >= 0:
        names["eos_token"] = processor.id_to_piece(eos)
    if processor.bos_id() >= 0:
        names["bos_token"] = processor.id_to_piece(processor.bos_id())
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_sentencepiece_backend(model), clean_up_tokenization_spaces=False, **names
    )
    tokenizer.save_pretrained(folder)


def _sentencepiece_backend(model: Path) -> Any:
    """A sentencepiece model as a `tokenizers.Tokenizer`: BPE or unigram, with byte fallback if it has it."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    bytes_ = bool(proto.trainer_spec.byte_fallback)
    if proto.trainer_spec.model_type == proto.trainer_spec.BPE:
        ids = {piece: number for number, (piece, _) in enumerate(pieces)}
        unknown = pieces[proto.trainer_spec.unk_id][0]
        kind: Any = models.BPE(ids, _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=bytes_)
    else:
        kind = models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id, byte_fallback=bytes_)
    tokenizer = Tokenizer(kind)
    spec = proto.normalizer_spec
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("\u2581"))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    back: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(back)
    control = [piece.piece for piece in proto.pieces if piece.type == piece.CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    return tokenizer


def _merges(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """BPE merges in the order of their results' scores; among the splits of one result, earlier pieces first."""
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces:
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [(left, right) for left, right in splits if left in ids and right in ids]
        known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(score, pair) for pair in known]
    merges.sort(key=lambda entry: -entry[0])
    return [pair for _, pair in merges]
