"""Validation of a YAML document by a pydantic model: all problems in one error, each with file, line and key."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from megatron_growth.errors import RecipeError, nearest
from megatron_growth.recipes.blocks import NO_NUMBER, Document
from megatron_growth.recipes.source import KeyPath, YamlText, dotted
from megatron_growth.recipes.wording import models_in, wanted

Problem = tuple[KeyPath, str]

# What other programs, and people, call the keys of a recipe.
SYNONYMS = {
    "iterations": "steps train_iters train_steps max_steps num_steps",
    "query_groups": "kv_heads n_kv_heads num_kv_heads num_key_value_heads num_query_groups kv_groups",
    "heads": "n_heads num_heads num_attention_heads attention_heads",
    "hidden": "hidden_size d_model dim width n_embd",
    "layers": "num_layers n_layers n_layer num_hidden_layers depth",
    "ffn": "ffn_hidden_size intermediate_size d_ff ffn_dim ffn_hidden",
    "head_dim": "kv_channels head_size head_width",
    "lr": "learning_rate max_lr peak_lr",
    "global_batch_size": "batch_size gbs batch",
    "micro_batch_size": "mbs micro_batch",
    "sequence_length": "seq_length seq_len context context_length max_seq_len max_position_embeddings",
    "vocab": "vocab_size padded_vocab_size vocabulary",
    "vocab_multiple": "make_vocab_size_divisible_by",
    "rope_base": "rope_theta rotary_base",
    "norm_epsilon": "rms_norm_eps layer_norm_eps layernorm_epsilon norm_eps",
    "tied_embeddings": "tie_word_embeddings tie_embeddings tied",
    "init_std": "init_method_std initializer_range",
    "warmup_iterations": "warmup warmup_steps lr_warmup_iters",
    "min_lr_ratio": "alpha min_ratio decay_ratio",
    "name": "style decay_style lr_decay_style",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "eps": "adam_eps epsilon",
    "clip": "clip_grad grad_clip max_grad_norm gradient_clip",
    "tp": "tensor_parallel tensor_model_parallel_size tensor_parallel_size",
    "pp": "pipeline_parallel pipeline_model_parallel_size pipeline_parallel_size",
    "vpp": "virtual_pipeline interleave",
    "dp": "data_parallel data_parallel_size",
    "precision": "dtype",
    "corpus": "dataset data_path text path",
    "valid_fraction": "validation_fraction val_fraction",
    "interval": "every eval_interval save_interval",
    "from": "source_stage grow_from parent",
    "freeze": "frozen",
    "evaluation": "validation eval",
    "checkpoint": "checkpoints save",
    "baselines": "baseline",
    "variants": "ablations",
    "extends": "base inherits",
}
_MEANT = {word: key for key, words in SYNONYMS.items() for word in words.split()}
# The types that a value may have, by the type of pydantic's error when it has none of them.
_KINDS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type"), "a mapping of keys"),
}
# The names of types, which pydantic puts behind the key of a value with several.
_TYPE = re.compile(r"(?:str|int|float|bool|function-\w+|tuple|list|dict|union)(?:\[.*\])?", re.DOTALL)
# YAML 1.1 reads these as base 60 and base 8.
_CHANGED = re.compile(r"[-+]?(?:\d[\d_]*(?::[0-5]?\d)+(?:\.\d*)?|0[0-7_]*[0-7])$")


class _Found(NamedTuple):
    """Something that is wrong with a value: its place, what it is called by pydantic, and the sentence in parts.

    Attributes:
        given: the value, in brackets.
        advice: how to put it in quotes, which comes in place of `given`.
    """

    path: KeyPath
    type: str
    says: str
    given: str = ""
    advice: str = ""


def validate[T: Document](cls: type[T], document: Any, source: YamlText, what: str) -> T:
    """`document` as a `cls` that knows its source.

    Args:
        what: what the document is, for the message: "recipe", "cluster profile".

    Raises:
        RecipeError: all problems; unknown keys with the nearest known ones.
    """
    changed = {one.path: one for one in _changed_numbers(document, source)}
    found: list[_Found] = []
    try:
        valid = cls.model_validate(document)
    except ValidationError as error:
        found = _at_keys([_of_pydantic(dict(e), cls, source) for e in error.errors()], document)
    found = [*(one for one in found if one.path not in changed), *changed.values()]
    if found:
        advised = [_where_quotes_help(one, cls, document, source) for one in found]
        raise report([(one.path, one.says + one.given + one.advice) for one in advised], source, what)
    valid._source = source
    return valid


def _at_keys(found: Sequence[_Found], document: Any) -> list[_Found]:
    """What is wrong with keys that may have several types, once for each key; pydantic has one for each type."""
    by_key: dict[KeyPath, list[_Found]] = {}
    for one in found:
        path = _written_part(one.path, document)
        by_key.setdefault(path, []).append(one._replace(path=path))
    kept = []
    for path, several in by_key.items():
        advised = [one for one in several if one.advice]
        if len(several) > 1 and advised:
            several = [one for one in several if one.type == NO_NUMBER] or advised
        elif len(several) > 1 and all(one.type in _KINDS for one in several):
            *first, last = dict.fromkeys(_KINDS[one.type] for one in several)
            several = [_Found(path, "", f"it must be {', '.join(first)} or {last}", several[0].given)]
        kept += several
    return kept


def _written_part(path: KeyPath, document: Any) -> KeyPath:
    """A key path without the names of types, which pydantic puts behind the key of a value with several."""
    value = document
    for at, key in enumerate(path):
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return path[:at] if isinstance(key, str) and _TYPE.fullmatch(key) else path
    return path


def report(problems: Sequence[Problem], source: YamlText, what: str) -> RecipeError:
    """One error for all problems, by line; a problem that several places inherit from one line is listed once."""
    once: dict[tuple[tuple[str, int], str], Problem] = {}
    for path, message in problems:
        once.setdefault((source.place(path), message), (path, message))
    ordered = sorted(once.items(), key=lambda item: item[0])
    listed = [f"{source.where(path)}: {message}" for _, (path, message) in ordered]
    count = "a problem" if len(listed) == 1 else f"{len(listed)} problems"
    return RecipeError(f"the {what} has {count}:\n" + "\n".join(f"  {line}" for line in listed))


def _changed_numbers(document: Any, source: YamlText) -> Iterator[_Found]:
    """Values written in base 60 or 8, such as 24:00:00 and 010, which are never meant as such in a recipe."""
    for path, place in source.places.items():
        if _CHANGED.match(place.written):
            try:
                value = reduce(getitem, path, document)
            except (KeyError, IndexError, TypeError):
                continue  # a variant that was not chosen
            if isinstance(value, int | float):
                yield _to_quote(path, place.written, value, " (a number, without a leading 0 or colons)")


def _to_quote(path: KeyPath, written: str, value: Any, unless: str = "") -> _Found:
    """A value without quotes that YAML does not read as what is written; `unless` says when quotes do not help."""
    if _is_word(value):
        read = {None: "nothing", True: "true", False: "false"}[value]
    else:
        read = f"the number {value}" if isinstance(value, int | float) else "a date"
    advice = f'; put it in quotes: "{written}"{unless}'
    return _Found(path, "string_type", f"YAML reads {written} as {read}", advice=advice)


def _where_quotes_help(found: _Found, cls: type[BaseModel], document: Any, source: YamlText) -> _Found:
    """Advice to put a value in quotes only where it helps: else what is wrong with it in quotes as well."""
    path, written = found.path, source.written(found.path)
    if not (found.advice and written and path):
        return found
    quoted = copy.deepcopy(document)
    reduce(getitem, path[:-1], quoted)[path[-1]] = written
    try:
        cls.model_validate(quoted)
    except ValidationError as error:
        still: list[dict[str, Any]] = [dict(e) for e in error.errors() if e["loc"][: len(path)] == path]
        if any(e["type"].startswith(("int_", "float_")) for e in still):
            return found._replace(advice="; write a number, without a leading 0 or colons")
        if still:
            refused = _of_pydantic(still[0], cls, source).says
            return found._replace(advice=f"; in quotes it is refused too: {refused}")
    return found


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _of_pydantic(error: Mapping[str, Any], root: type[BaseModel], source: YamlText) -> _Found:
    """One error of pydantic in our words."""
    path, kind, value = tuple(error["loc"]), error["type"], error["input"]
    if kind == "extra_forbidden":
        return _Found(path, kind, _unknown(str(path[-1]), root, path[:-1]))
    if kind == "missing":
        return _Found(path, kind, _missing(root, path))
    written = source.written(path) or source.written(path[:-1])
    if kind == "string_type" and written and not isinstance(value, dict | list):
        return _to_quote(path, written, value)
    says = error["msg"].removeprefix("Value error, ")
    says = says[:1].lower() + says[1:]
    if kind in ("tuple_type", "list_type", "dict_type", "model_type"):  # YAML has neither tuples nor dictionaries
        says = f"input should be {_KINDS[kind]}"
        if kind in ("tuple_type", "list_type"):
            says += f", as {path[-1]}: [...]"
    if isinstance(value, dict | list):
        return _Found(path, kind, says)
    return _Found(path, kind, says, f" (got {value!r}{f', written {written}' if _is_word(value) else ''})")


def _unknown(key: str, root: type[BaseModel], path: KeyPath) -> str:
    """The message for an unknown key at a path: the right name, or the block it belongs to."""
    known = [field.alias or name for model in _models_at(root, path) for name, field in model.model_fields.items()]
    name = _MEANT.get(key.lower().replace("-", "_"), "")
    if name in known:
        return f"unknown key {key!r}; it is called {name} here"
    if homes := [home for home in _homes(root, name or key) if home != dotted(path)]:
        called = f", as {name}" if name and name != key else ""
        return f"unknown key {key!r}; it belongs under {' or '.join(homes)}{called}"
    return f"unknown key {key!r}; {nearest(key, known)}"


def _missing(root: type[BaseModel], path: KeyPath) -> str:
    """The message for a missing key, with what it takes."""
    fields = [
        f for model in _models_at(root, path[:-1]) for n, f in model.model_fields.items() if path[-1] in (n, f.alias)
    ]
    return f"{dotted(path)} is missing" + (f": give it {wanted(fields[0])}" if fields else "")


def _homes(root: type[BaseModel], key: str) -> list[str]:
    """Where else in the document a key belongs: `model`, `stages[]`, `stages[].layout`."""
    found: dict[str, None] = {}

    def walk(model: type[BaseModel], at: str) -> None:
        for name, field in model.model_fields.items():
            below = f"{at}.{field.alias or name}".lstrip(".")
            if key in (name, field.alias) and at:
                found.setdefault(at)
            for inner in models_in(field.annotation):
                several = "[]" if str(field.annotation).startswith("tuple") else ""
                walk(inner, below + several)

    walk(root, "")
    return list(found)[:2]


def _models_at(root: type[BaseModel], path: KeyPath) -> list[type[BaseModel]]:
    models = [root]
    for key in path:
        fields = [f for m in models for name, f in m.model_fields.items() if key in (name, f.alias)]
        models = [model for f in fields for model in models_in(f.annotation)] or models
    return models
