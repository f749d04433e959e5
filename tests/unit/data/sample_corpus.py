"""A small made-up corpus for the data tests."""

import json

WORDS = [
    "the model",
    "grows",
    "in width",
    "depth;",
    "naïve café",
    "東京",
    "🙂",
    "def f(x):\n    return",
    "12345",
    "it's",
]


def texts(count, first=0):
    """`count` different short documents."""
    return [
        f"Document {n}. " + " ".join(WORDS[(n * 7 + k * k) % len(WORDS)] for k in range(5 + n % 40))
        for n in range(first, first + count)
    ]


def write_jsonl(path, documents, field="text"):
    """Write `documents` as JSON lines and return the path."""
    lines = (json.dumps({field: text, "id": n}) + "\n" for n, text in enumerate(documents))
    path.write_text("".join(lines), "utf-8")
    return path
