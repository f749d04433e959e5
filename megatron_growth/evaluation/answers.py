"""Answers to the questions of MT-Bench and AlpacaEval, in the files that these projects' judges read.

mt-bench      questions: FastChat's question.jsonl (question_id, category, turns)
              answers:   data/mt_bench/model_answer/NAME.jsonl (question_id, answer_id, model_id, choices, tstamp)
alpaca-eval   questions: a JSON list (instruction, dataset)
              answers:   a JSON list for --model_outputs (dataset, instruction, output, generator, and our answer_id)

Answers are written batch by batch to FILE.partial, one JSON object a line, and to FILE at the end; a command that was
stopped goes on with the first question that has no answer.  Nothing is judged here: that is the projects' own step,
with a judge that the user chooses (docs/evaluation.md).
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import IO, Any, Literal

from megatron_growth.data.pieces import JSONL, reading, sound
from megatron_growth.errors import DataError, RunError
from megatron_growth.evaluation.documents import check_columns, records
from megatron_growth.evaluation.generate import Answerer, Message
from megatron_growth.evaluation.perplexity import OnProgress
from megatron_growth.records.storage import parse_json, sha256_of, storage_errors, write_json, write_whole
from megatron_growth.records.unfinished import is_still, locked

Format = Literal["mt-bench", "alpaca-eval"]
COLUMNS: Mapping[Format, tuple[str, ...]] = {
    "mt-bench": ("question_id", "category", "turns"),
    "alpaca-eval": ("instruction",),
}
# Of FastChat's gen_model_answer.py: it samples in categories without a right answer.
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}


@dataclass(frozen=True)
class Question:
    """One question: what identifies it in its file, what the user says turn by turn, and the record as it was read."""

    key: str
    turns: tuple[str, ...]
    temperature: float
    record: dict[str, Any]


def read_questions(path: Path, kind: Format) -> list[Question]:
    """The questions of a file.

    Raises:
        DataError: it is missing, is not JSON, or has other columns (found and wanted).
    """
    if not path.is_file():
        raise DataError("there is no file of questions", where=str(path), fix=_SOURCE[kind])
    found: list[Question] = []
    turns: dict[str, tuple[str, ...]] = {}
    for number, entry in enumerate(_entries(path), 1):
        where = f"{path}, question {number}"
        check_columns(entry, COLUMNS[kind], where, _SOURCE[kind], purpose=f" for {kind}")
        if wrong := _not_text(entry, kind):
            raise DataError(wrong, where=where, fix=_SOURCE[kind])
        found.append(_question(entry, kind))
        if turns.setdefault(found[-1].key, found[-1].turns) != found[-1].turns:
            raise DataError(
                f"two questions have the question_id {found[-1].key}, and would share one answer",
                where=where,
                fix="give each question its own",
            )
    if not found:
        raise DataError("the file holds no questions", where=str(path), fix=_SOURCE[kind])
    return found


_SOURCE: Mapping[Format, str] = {
    "mt-bench": "give FastChat's fastchat/llm_judge/data/mt_bench/question.jsonl",
    "alpaca-eval": "give alpaca_eval.json of the data set tatsu-lab/alpaca_eval",
}


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, or of a JSON list."""
    if path.suffix.lower() in JSONL and path.suffix.lower() != ".json":
        yield from records(path)
        return
    try:
        with reading(path):
            found = parse_json(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"the questions are not JSON: {error}", where=str(path), fix="write a JSON list") from None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DataError("the questions are not a list of JSON objects", where=str(path), fix="write a JSON list")
    yield from found


def _not_text(entry: dict[str, Any], kind: Format) -> str:
    """What is wrong with a question whose text is not text; "" when it is."""
    if kind == "alpaca-eval":
        return "" if isinstance(entry["instruction"], str) else "the instruction is not text"
    turns = entry["turns"]
    right = isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)
    return "" if right else "the turns are not a list of texts"


def _question(entry: dict[str, Any], kind: Format) -> Question:
    if kind == "mt-bench":
        turns = tuple(sound(str(turn)) for turn in entry["turns"])
        return Question(str(entry["question_id"]), turns, TEMPERATURES.get(str(entry["category"]), 0.0), entry)
    text = sound(str(entry["instruction"]))
    key = hashlib.sha256(f"{entry.get('dataset', '')}\n{text}".encode()).hexdigest()[:16]
    return Question(key, (text,), 0.0, entry)


def answer(
    questions: Sequence[Question],
    kind: Format,
    target: Path,
    *,
    name: str,
    identity: str,
    answerer: Callable[[], Answerer],
    batch: int,
    progress: OnProgress = lambda *_: None,
) -> int:
    """Answer every question that has no answer yet; returns how many were answered now.

    Args:
        target: file of answers.
        name: of the model, as the judge will show it.
        identity: from `identity_of`; answers with another one are not continued.
        answerer: opens the model; called only when something is left to answer.
        batch: questions at a time.
        progress: called with (questions answered, questions in all).

    Raises:
        RunError: the target, or the file of unfinished answers beside it, exists and holds other answers; or another
            command is writing them.
        StorageError: the file system refused.
    """
    wanted = {question.key: _answer_id(identity, question) for question in questions}
    if _is_done(target, kind, name, wanted):
        return 0
    partial = target.with_name(target.name + ".partial")
    with storage_errors(partial), _alone(partial) as stream:
        if _is_done(target, kind, name, wanted):  # by a command that ended meanwhile
            partial.unlink()
            return 0
        answers = _begun(stream, partial, identity)
        todo = [question for question in questions if question.key not in answers]
        if todo:
            opened = answerer()
            for group in _groups(todo, batch):
                new = {question.key: turns for question, turns in zip(group, _turns(group, opened), strict=True)}
                if not stream.seek(0, io.SEEK_END):  # not before: a model that cannot be opened would keep others out
                    stream.write(_line({"identity": identity}))
                stream.writelines(_line({"key": key, "turns": turns}) for key, turns in new.items())
                stream.flush()
                answers |= new
                progress(len(answers), len(questions))
        with storage_errors(target):
            _write(target, kind, name, identity, questions, answers)
        partial.unlink(missing_ok=True)
    return len(todo)


@contextmanager
def _alone(partial: Path) -> Iterator[IO[bytes]]:
    """The file of unfinished answers, open and ours alone: what two commands wrote into it would be lost.

    Raises:
        RunError: another command answers into the same file.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with partial.open("a+b") as stream:
            if not locked(stream.fileno()):
                raise RunError(
                    "another command is writing these answers",
                    where=str(partial),
                    fix="wait for it, or end it; the same command then goes on where it was",
                )
            if is_still(stream.fileno(), partial):  # else the other one has just finished, and removed it
                yield stream
                return


def _is_done(target: Path, kind: Format, name: str, wanted: dict[str, str]) -> bool:
    """Whether the target holds the wanted answers, ids by key; raises RunError when it holds others, or is a folder."""
    if target.is_dir():
        raise RunError("the target is a folder", where=str(target), fix="name a file with --to")
    if not target.exists():
        return False
    done: dict[str, str] = {}
    with suppress(ValueError, KeyError, TypeError, DataError):  # it is something else
        if kind == "mt-bench":
            done = {str(one["question_id"]): one["answer_id"] for one in records(target) if one["model_id"] == name}
        else:
            found = parse_json(target.read_text("utf-8"))
            done = {_question(one, kind).key: one["answer_id"] for one in found if one["generator"] == name}
    if done != wanted:
        raise RunError(
            "the target holds other answers: of another model, to other questions, or with other settings",
            where=str(target),
            fix="name another file, or remove it",
        )
    return True


def _groups(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """At most `size` questions of equal temperature and number of turns, in order."""
    kinds = dict.fromkeys((question.temperature, len(question.turns)) for question in questions)
    for kind in kinds:
        same = [question for question in questions if (question.temperature, len(question.turns)) == kind]
        yield from map(list, batched(same, size))


def _turns(group: Sequence[Question], answerer: Answerer) -> list[list[str]]:
    """The answers to every turn of each question; a later turn sees the earlier answers."""
    conversations: list[list[Message]] = [[] for _ in group]
    found: list[list[str]] = [[] for _ in group]
    seed = int.from_bytes(hashlib.sha256(group[0].key.encode()).digest()[:4], "big")
    for turn in range(len(group[0].turns)):
        for conversation, question in zip(conversations, group, strict=True):
            conversation.append({"role": "user", "content": question.turns[turn]})
        for place, text in enumerate(answerer(conversations, temperature=group[0].temperature, seed=seed + turn)):
            conversations[place].append({"role": "assistant", "content": text})
            found[place].append(text)
    return found


def _line(entry: dict[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode()


def _begun(stream: IO[bytes], partial: Path, identity: str) -> dict[str, list[str]]:
    """Answers of an earlier command for the same model; a last line that was cut off is dropped."""
    head = _line({"identity": identity})
    stream.seek(0)
    found = stream.read()
    if head.startswith(found):  # new, or cut off before its first line was whole
        stream.truncate(0)
        return {}
    if not found.startswith(head):
        raise RunError(
            "the unfinished answers there are another model's, to other questions or with other settings, or not ours",
            where=str(partial),
            fix="name another file with --to, or remove this one",
        )
    stream.truncate(found.rfind(b"\n") + 1)
    whole = found.split(b"\n")[1:-1]  # what follows the last line break is cut off, or empty
    return {entry["key"]: entry["turns"] for entry in map(json.loads, whole)}


def _answer_id(identity: str, question: Question) -> str:
    """Identifies one answer, and with it the model and the settings that gave it."""
    return hashlib.sha256(f"{identity} {question.key}".encode()).hexdigest()[:22]


def _write(
    target: Path,
    kind: Format,
    name: str,
    identity: str,
    questions: Sequence[Question],
    answers: Mapping[str, list[str]],
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "alpaca-eval":
        keep = ("dataset", "instruction")
        rows = [
            {key: one.record[key] for key in keep if key in one.record}
            | {"output": answers[one.key][0], "generator": name, "answer_id": _answer_id(identity, one)}
            for one in questions
        ]
        write_json(target, rows)
        return
    lines = [
        {
            "question_id": one.record["question_id"],
            "answer_id": _answer_id(identity, one),
            "model_id": name,
            "choices": [{"index": 0, "turns": answers[one.key]}],
            "tstamp": time.time(),
        }
        for one in questions
    ]
    write_whole(target, b"".join(map(_line, lines)))


def identity_of(model_hash: str, questions: Path, settings: Mapping[str, Any]) -> str:
    """A hash of what must be the same for answers to be continued."""
    document = {"model": model_hash, "questions": sha256_of(questions), **settings}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
