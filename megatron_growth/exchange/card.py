"""README.md of a model's folder: where it comes from, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_growth.checkpoint.metadata import PROVENANCE
from megatron_growth.exchange.export_plan import ExportPlan
from megatron_growth.exchange.families import named
from megatron_growth.layout.parameters import parameter_count

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [{tags}]
---

# {name}

{sentence}

| | |
|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM{import_}

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", dtype="auto")
{tokenizer}```
"""


def card(name: str, tags: str, sentence: str, facts: Mapping[str, Any], tokenizer: str) -> str:
    """A model card in Markdown.

    Args:
        facts: rows of its table; one whose value is None is left out.
        tokenizer: the class of transformers that opens the folder's tokenizer; "" for none.
    """
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value is not None)
    load = f'tokenizer = {tokenizer}.from_pretrained("path/to/this/folder")\n' if tokenizer else ""
    import_ = f", {tokenizer}" if tokenizer else ""
    return _CARD.format(name=name, tags=tags, sentence=sentence, rows=rows, tokenizer=load, import_=import_)


def model_card(plan: ExportPlan, *, name: str, tokenizer: str, run: dict[str, Any] | None = None) -> str:
    """The card of an exported model, by what its checkpoint says.

    Args:
        name: title of the card.
        tokenizer: name of the exported tokenizer, "" for none.
        run: further rows from the run directory: recipe, stage, tokens, FLOPs.
    """
    args, shape = plan.args, plan.shape
    facts: dict[str, Any] = {
        "layers x hidden x FFN": f"{shape.layers} x {shape.hidden} x {shape.ffn}",
        "heads / key-value heads / head size": f"{shape.heads} / {shape.query_groups} / {shape.head_dim}",
        "vocabulary": f"{plan.vocab} ids (Megatron padded it to {shape.vocab})",
        "tokenizer": tokenizer or "not exported",
        "iteration": plan.iteration,
        "samples x sequence length": _tokens(args),
        **(run or {}),
        **_grown(getattr(args, PROVENANCE, None)),
    }
    family, parameters = plan.config["model_type"], parameter_count(shape.with_(vocab=plan.vocab))
    sentence = f"A {family} of {parameters:,} parameters, exported from Megatron-Core with megatron_growth."
    kind = named(family).tokenizer if tokenizer else ""
    return card(name, "megatron-core, megatron_growth", sentence, facts, kind)


def _tokens(args: Any) -> str | None:
    samples, length = getattr(args, "consumed_train_samples", None), getattr(args, "seq_length", None)
    return f"{samples:,} x {length:,} = {samples * length:,} tokens" if samples and length else None


def _grown(provenance: dict[str, Any] | None) -> dict[str, Any]:
    """One row for every growth step, the last one first."""
    rows: dict[str, Any] = {}
    while provenance:
        step = "grown from" if not rows else f"grown from, {len(rows) + 1} steps back"
        rows[step] = (
            f"iteration {provenance.get('source_iteration')} of a smaller model: width {provenance.get('width')}, "
            f"depth {provenance.get('depth')}, seed {provenance.get('seed')}"
        )
        provenance = provenance.get("source_grown_from")
    return rows
