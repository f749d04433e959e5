"""Requests on the tiny model, and the losses that transformers alone computes for the same examples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from megatron_growth.posttrain.request import Request

END = "<|endoftext|>"


def request(model: Path, data: Path, **changes: Any) -> Request:
    """A short training."""
    values: dict[str, Any] = {
        "kind": "sft",
        "preset": "nano-sft",
        "model": str(model),
        "data": str(data),
        "rates": (1e-3,),
        "epochs": 1,
        "batch": 4,
        "warmup": 0.1,
        "max_length": 64,
        "betas": (0.9, 0.999),
        "weight_decay": 0.0,
        "clip": 1.0,
        "dtype": "float32",
        "saves": 3,
        "micro_batch": 4,
    }
    return Request(**(values | changes))


def load(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer)."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def answer_logps(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> tuple[float, int]:
    """Sum of the log-probabilities of what the assistant says, and how many tokens that is.

    The conversation is written out here, with its own idea of the template.
    """
    parts = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            last = number == len(messages) - 1
            parts += [("<|assistant|>\n", False), (message["content"] + END, True), ("" if last else "\n", False)]
        else:
            parts.append((f"<|{message['role']}|>\n{message['content']}\n", False))
    text = "".join(part for part, _ in parts)
    spans, place = [], 0
    for part, counts in parts:
        spans += [(place, place + len(part))] if counts else []
        place += len(part)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor([coded["input_ids"]])
    with torch.no_grad():
        logps = model(ids).logits[0].log_softmax(-1)
    total, count = 0.0, 0
    for position in range(1, ids.shape[1]):
        begin, end = coded["offset_mapping"][position]
        if any(first <= begin and end <= last for first, last in spans):
            total += float(logps[position - 1, ids[0, position]])
            count += 1
    return total, count


def sft_loss(folder: Path, conversations: list[list[dict[str, str]]]) -> float:
    """Mean over all tokens of the answers."""
    model, tokenizer = load(folder)
    found = [answer_logps(model, tokenizer, messages) for messages in conversations]
    return -sum(total for total, _ in found) / sum(count for _, count in found)


def dpo_loss(tuned: Path, reference: Path, pairs: list[dict[str, Any]], beta: float) -> float:
    """Mean over pairs of -log sigmoid(beta (log-ratio of the chosen answer - that of the rejected one))."""
    losses = []
    (model, tokenizer), (before, _) = load(tuned), load(reference)
    for pair in pairs:
        ratios = []
        for answer in ("chosen", "rejected"):
            messages = [*pair["prompt"], *pair[answer]]
            ratios.append(answer_logps(model, tokenizer, messages)[0] - answer_logps(before, tokenizer, messages)[0])
        losses.append(-torch.nn.functional.logsigmoid(torch.tensor(beta * (ratios[0] - ratios[1]))).item())
    return sum(losses) / len(losses)


def rows(path: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(path: Path) -> list[int]:
    """Iterations in a metrics file."""
    return [line["iteration"] for line in rows(path) if "event" not in line]


def plain(error: BaseException) -> str:
    """An error in one line."""
    return re.sub(r"\s+", " ", str(error))
