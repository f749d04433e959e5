"""Which tokens the rows of a checkpoint's embedding stand for, and whether a run or a tokenizer has the same ones.

Megatron saves --vocab-size, which is None where the tokenizer knows it (sentencepiece, Hugging Face).  It always saves
the padded size and its multiple, so the number of tokens is known up to that padding.  A run of the plugin also saves
the number itself and a hash of the tokenizer's files.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_growth.errors import CheckpointError

SAVED = "growth_vocabulary"  # attribute of the saved arguments
_FILES = ("tokenizer_model", "vocab_file", "merge_file")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a run.

    Attributes:
        tokens: how many, without padding; 0 when not known.
        fingerprint: SHA-256 of the tokenizer's files; "" when it has none that can be read (NullTokenizer, a name).
        identity: of the tokenizer that wrote the data (--growth-tokenizer); "" when not given.
    """

    tokens: int
    fingerprint: str = ""
    identity: str = ""

    @classmethod
    def of_run(cls, args: argparse.Namespace, tokens: int) -> Vocabulary:
        """The vocabulary of a run with these arguments, whose tokenizer has `tokens` tokens."""
        return cls(tokens, fingerprint(args), str(getattr(args, "growth_tokenizer", None) or ""))

    @classmethod
    def of_saved(cls, args: argparse.Namespace) -> Vocabulary:
        """The vocabulary that saved arguments describe; the tokenizer's files are read where they still exist."""
        if hasattr(args, SAVED):
            recorded = getattr(args, SAVED)
            if not recorded:
                return cls(0)
            return cls(int(recorded["tokens"]), str(recorded["fingerprint"]), str(recorded.get("identity", "")))
        return cls(int(getattr(args, "vocab_size", None) or 0), fingerprint(args))

    def record(self, args: argparse.Namespace) -> None:
        """Save it with a run's arguments, in every checkpoint of the run."""
        setattr(args, SAVED, asdict(self))


def fingerprint(args: argparse.Namespace) -> str:
    """A hash of the files that --tokenizer-model, --vocab-file and --merge-file name; "" when none can be read."""
    digest, found = hashlib.sha256(), False
    for name in _FILES:
        file = getattr(args, name, None)
        if file and Path(file).is_file():
            digest.update(Path(file).read_bytes())
            found = True
    return digest.hexdigest() if found else ""


def token_range(args: argparse.Namespace) -> tuple[int, int]:
    """The least and the largest number of tokens that saved arguments allow."""
    rows = int(getattr(args, "padded_vocab_size", None) or 0)
    if not rows:
        return 0, 1 << 62
    multiple = int(getattr(args, "make_vocab_size_divisible_by", None) or 0)
    if multiple == 1:  # imported: nothing says how many rows are padding
        return 0, rows
    step = multiple * int(getattr(args, "tensor_model_parallel_size", None) or 0)
    # With --use-checkpoint-args the rows were padded by an earlier run, to another multiple.
    padded_here = step and rows % step == 0 and not getattr(args, "use_checkpoint_args", False)
    return (rows - step + 1 if padded_here else 0), rows


def refuse_other(saved: argparse.Namespace, run: Vocabulary, where: str) -> None:
    """Refuse a checkpoint, by the arguments saved in it, whose embedding belongs to other tokens than a run's.

    Raises:
        CheckpointError: the numbers of tokens, or the tokenizers' files, differ.
    """
    theirs, (least, most) = Vocabulary.of_saved(saved), token_range(saved)
    if theirs.tokens and run.tokens and theirs.tokens != run.tokens:
        problem = f"the source was trained with a vocabulary of {theirs.tokens} tokens, this run has {run.tokens}"
    elif run.tokens and not least <= run.tokens <= most:
        problem = f"the source has {most} embedding rows, for {least} to {most} tokens; this run has {run.tokens}"
    elif theirs.identity and run.identity and theirs.identity != run.identity:
        problem = (
            f"the source was trained with another tokenizer ({theirs.identity[:12]}) than this run's data "
            f"({run.identity[:12]})"
        )
    elif theirs.fingerprint and run.fingerprint and theirs.fingerprint != run.fingerprint:
        problem = "the source was trained with another tokenizer: its files differ from this run's"
        where += f"; its tokenizer was {getattr(saved, 'tokenizer_model', None) or 'a vocabulary file'}"
    else:
        return
    fix = "embedding rows belong to the tokens of one tokenizer: use the tokenizer and data of the source"
    raise CheckpointError(problem, where=where, fix=fix)
