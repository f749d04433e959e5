"""A Llama of a few thousand weights with a tokenizer of its own, and small data in the papers' formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QUESTIONS = [("one plus one", "two"), ("two plus two", "four"), ("a red fruit", "an apple"), ("the sky is", "blue")]


def write_model(folder: Path, seed: int = 0) -> Path:
    """Write it; the tokenizer has bytes, a few merges and an end of text, but no chat template."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator([f"{q} {a}" for q, a in QUESTIONS] * 4, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=fast.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def alpaca(count: int) -> list[dict[str, Any]]:
    """Rows of Alpaca; every third has an input."""
    rows = []
    for number in range(count):
        question, answer = QUESTIONS[number % len(QUESTIONS)]
        rows.append({"instruction": question, "input": "now" if number % 3 == 0 else "", "output": answer})
    return rows


def ultrachat(count: int) -> list[dict[str, Any]]:
    """Conversations of two turns."""
    rows = []
    for number in range(count):
        messages = []
        for question, answer in (QUESTIONS[number % 4], QUESTIONS[(number + 1) % 4]):
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"prompt": messages[0]["content"], "prompt_id": str(number), "messages": messages})
    return rows


def ultrafeedback(count: int) -> list[dict[str, Any]]:
    """Pairs of answers, with the prompt in front as the data set has it."""
    rows = []
    for number in range(count):
        question, answer = QUESTIONS[number % 4]
        asked = {"role": "user", "content": question}
        answers = [{"role": "assistant", "content": text} for text in (answer, f"not {answer}")]
        rows.append({"prompt": question, "chosen": [asked, answers[0]], "rejected": [asked, answers[1]]})
    return rows


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
