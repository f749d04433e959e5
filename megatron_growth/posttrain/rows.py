"""Examples in the papers' data formats, as the one form that is trained on.

SFT   UltraChat-200k, Tulu-3   messages: a list of {role, content}
      Alpaca                   instruction, input (may be empty or absent), output
DPO   UltraFeedback            prompt, chosen, rejected; the last two as messages, with or without the prompt in front

The result is {"messages": [...]} for SFT and {"prompt": [...], "chosen": [...], "rejected": [...]} for DPO, all lists
of {role, content}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_growth.data.pieces import sound
from megatron_growth.errors import DataError
from megatron_growth.posttrain.presets import Kind

ROLES = ("system", "user", "assistant")
WANTED = {
    "sft": "messages (UltraChat, Tulu 3), or instruction and output, with or without input (Alpaca)",
    "dpo": "prompt, chosen and rejected (UltraFeedback)",
}
Message = dict[str, str]


class Skipped(Exception):
    """An example has nothing to learn from; the message says what it has not."""


def example(record: Mapping[str, Any], kind: Kind, where: str) -> dict[str, list[Message]]:
    """One row, as it was read, in the form that is trained on; `where` is its file and line, for errors.

    Raises:
        DataError: columns are missing or of another type.
        Skipped: it has no prompt or no answer, or two equal answers.
    """
    return _sft(record, where) if kind == "sft" else _dpo(record, where)


def check_columns(record: Mapping[str, Any], kind: Kind, where: str) -> None:
    """Refuse a row without the columns that are needed.

    Raises:
        DataError: with the columns found and those wanted.
    """
    known = set(record)
    fits = (
        known >= {"messages"} or known >= {"instruction", "output"}
        if kind == "sft"
        else known >= {"chosen", "rejected"}
    )
    if not fits:
        raise DataError(
            f"the data have the columns {', '.join(sorted(known)) or 'none'}; wanted for {kind}: {WANTED[kind]}",
            where=where,
            fix="rename the columns, or give data in one of these formats with --data",
        )


def _sft(record: Mapping[str, Any], where: str) -> dict[str, list[Message]]:
    check_columns(record, "sft", where)
    if "messages" in record:
        messages = _messages(record["messages"], "messages", where)
        if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
            raise Skipped("no answer")
        return {"messages": messages}
    instruction, answer = _text(record["instruction"], "instruction", where), _text(record["output"], "output", where)
    more = _text(record.get("input") or "", "input", where)
    if not answer.strip():
        raise Skipped("no answer")
    asked = f"{instruction}\n\n{more}" if more.strip() else instruction
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def _dpo(record: Mapping[str, Any], where: str) -> dict[str, list[Message]]:
    check_columns(record, "dpo", where)
    prompt = _conversation(record.get("prompt"), "user", "prompt", where)
    chosen = _conversation(record["chosen"], "assistant", "chosen", where)
    rejected = _conversation(record["rejected"], "assistant", "rejected", where)
    if len(chosen) > 1 and len(rejected) > 1:
        if chosen[:-1] != rejected[:-1]:
            raise DataError(
                "chosen and rejected answer different prompts", where=where, fix="give pairs of answers to one prompt"
            )
        prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    if not prompt:
        raise Skipped("no prompt")
    answers = [*chosen, *rejected]
    if any(m["role"] != "assistant" for m in answers):
        raise DataError("chosen and rejected must end with the assistant", where=where, fix="end them with an answer")
    if not all(m["content"].strip() for m in answers):
        raise Skipped("no answer")
    if chosen == rejected:
        raise Skipped("two equal answers")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _conversation(value: Any, role: str, column: str, where: str) -> list[Message]:
    """Messages, or one text that is a message of `role`."""
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _messages(value, column, where)


def _messages(value: Any, column: str, where: str) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise DataError(
            f"{column} is not a list of messages but {type(value).__name__}",
            where=where,
            fix='write a list of {"role": "user", "content": "..."}',
        )
    found = []
    for message in value:
        role = message.get("role")
        if role not in ROLES:
            raise DataError(
                f"a message of {column} has the role {role!r}",
                where=where,
                fix=f"roles are {', '.join(ROLES)}; leave out conversations with others, such as tool calls",
            )
        found.append({"role": str(role), "content": _text(message.get("content"), f"content in {column}", where)})
    return found


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{column} is not text but {type(value).__name__}", where=where, fix="give text there")
    return sound(value)
