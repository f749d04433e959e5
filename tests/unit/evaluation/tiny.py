"""A tiny random Llama as a Hugging Face folder, and questions in the benchmarks' real columns."""

import json

import torch

from megatron_growth.cli.main import main

PROSE = (
    "The river bends twice before it meets the mill, and the miller's daughter counts its stones.\n"
    "In winter she walks on the ice; in summer she sits on the bank and reads what the post has brought.\n\n"
    "Nobody remembers who built the bridge. It has stood there longer than the oldest tree, they say, "
    "and it will stand when the youngest has fallen.\n"
)


def write_tokenizer(folder, *, bos=False):
    """One id a byte, and an end-of-document id, 256."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)} | {"<eod>": len(alphabet)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"eos_token": "<eod>", "pad_token": "<eod>"} | ({"bos_token": "<eod>"} if bos else {})
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def write_model(folder, *, seed=0, vocab=257, length=128, **sizes):
    """A Llama with weights large enough to prefer something; returns it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": length,
        "vocab_size": vocab,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 256,
    }
    model = LlamaForCausalLM(LlamaConfig(**config | sizes)).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def output(capsys, *words):
    """The JSON document of `evaluate`; standard output holds nothing else."""
    capsys.readouterr()
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def error(capsys, *words):
    """What `evaluate` says when it refuses; standard output holds nothing."""
    capsys.readouterr()
    assert main(["evaluate", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def write_lines(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


_LETTERS = ["A", "B", "C", "D"]
_THINGS = ["stone", "a bright lamp", "the river at night", "iron"]


def _arc(number):
    return {
        "id": f"q{number}",
        "question": f"Which of these is number {number}?",
        "choices": {"text": _THINGS, "label": _LETTERS},
        "answerKey": _LETTERS[number % 4],
    }


def _hellaswag(number):
    return {
        "ind": number,
        "activity_label": "Baking",
        "ctx_a": "She opens the oven.",
        "ctx_b": "the cake",
        "ctx": "She opens the oven. the cake",
        "endings": ["is [title] ready.", "sings.", "has risen well.", "falls down"],
        "source_id": "x",
        "split": "val",
        "split_type": "indomain",
        "label": str(number % 4),
    }


def _truth(targets):
    return lambda number: {"question": f"Is water wet {number}?", targets: {"choices": _THINGS, "labels": [1, 0, 0, 1]}}


# One question of each task by its number, as the hub's data sets have them.
QUESTIONS = {
    "lambada_openai": lambda n: {"text": f"He took the road {n} times and came to the bridge"},
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "winogrande": lambda n: {
        "sentence": "The cup did not fit the shelf because _ was too large.",
        "option1": "the cup",
        "option2": "the shelf",
        "answer": str(n % 2 + 1),
    },
    "piqa": lambda n: {
        "goal": f"Open jar {n}",
        "sol1": "Turn its lid.",
        "sol2": "Paint it blue, then wait.",
        "label": n % 2,
    },
    "openbookqa": lambda n: {
        "id": f"o{n}",
        "question_stem": f"Water at {n} degrees is",
        "choices": {"text": _THINGS, "label": _LETTERS},
        "answerKey": _LETTERS[n % 4],
    },
    "hellaswag": _hellaswag,
    "boolq": lambda n: {"question": "is iron a metal", "passage": f"Iron is metal {n}.", "idx": n, "label": n % 2},
    "truthfulqa_mc1": _truth("mc1_targets"),
    "truthfulqa_mc2": _truth("mc2_targets"),
    "wikitext": lambda n: {"page": PROSE},
}


def _mmlu(number):
    return {"question": f" What is {number}? ", "subject": "x", "choices": _THINGS, "answer": number % 4}


def write_questions(folder, names, count=5):
    """JSONL files of these benchmarks; MMLU's subjects have one question more each, from 1."""
    from megatron_growth.evaluation.benchmarks import BENCHMARKS

    for name in names:
        for place, task in enumerate(BENCHMARKS[name].tasks):
            make, size = (_mmlu, place % 3 + 1) if name == "mmlu" else (QUESTIONS[name], count)
            write_lines(folder / f"{task}.jsonl", [make(number) for number in range(1 if name == "wikitext" else size)])
    return folder
