"""The model that is tuned, a Hugging Face folder or an exported Megatron checkpoint, and its tokenizer.

A base model's tokenizer has no chat template.  It gets Tulu 3's (chat.jinja), which needs no new tokens: `<|user|>` and
`<|assistant|>` are plain text, and an answer ends with the end-of-text token.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from megatron_growth.data.tokenizers.huggingface import open_folder
from megatron_growth.errors import CheckpointError, DataError, UserError, first_line
from megatron_growth.exchange.folder import is_huggingface
from megatron_growth.posttrain.presets import Kind

OURS = "tulu"
TEMPLATE = Path(__file__).with_name("chat.jinja")
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")  # which TRL looks for; to ask it would be to import it, for seconds
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")


def base_model(model: Path, folder: Path, tokenizer: str = "") -> Path:
    """The Hugging Face folder of a model; a Megatron checkpoint is exported to `folder`, or found there.

    Raises:
        CheckpointError: there is no model.
        DataError: no tokenizer is known for a checkpoint outside a run directory, or `tokenizer` is not a folder.
    """
    if is_huggingface(model):
        if tokenizer and not Path(tokenizer).is_dir():
            raise DataError(
                f"--tokenizer {tokenizer} is not a folder, and a Hugging Face model's tokenizer is a folder of files",
                where=str(model),
                fix="name that folder, or leave --tokenizer out",
            )
        return model
    if not model.is_dir():
        raise CheckpointError(
            f"there is no model {model}",
            where=str(model),
            fix="name a checkpoint, or the folder that `megatron-growth export` wrote",
        )
    from megatron_growth.checkpoint.source import Source
    from megatron_growth.exchange.export import export
    from megatron_growth.exchange.export_plan import plan_export
    from megatron_growth.exchange.tokenizer_files import tokenizer_of

    if is_huggingface(folder):  # exported earlier: training goes on from it, even if the checkpoint has moved on
        return folder
    spec, found = tokenizer_of(model, tokenizer)
    plan = plan_export(Source(model), vocab=found.vocab_size, eod=found.eod)
    export(plan, folder, tokenizer=(spec, found))
    return folder


def load_tokenizer_of(model: Path, kind: Kind, chat_template: str = "", tokenizer: str = "") -> Any:
    """The tokenizer of a Hugging Face folder, with the chat template that is used in training.

    Args:
        kind: for SFT the template must mark the answers.
        chat_template: a Jinja file, or `tulu` for ours; when "", the tokenizer's own, or ours where it has none.
        tokenizer: a folder with the tokenizer's files, for a model without them.

    Raises:
        DataError: there is no tokenizer, it has no end-of-text token, or it has more ids than the model.
        UserError: the template does not mark answers.
    """
    folder = Path(tokenizer) if tokenizer and Path(tokenizer).is_dir() else model
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise DataError(
            f"there are no tokenizer files in {folder}",
            where=str(folder),
            fix="put them there, name their folder with --tokenizer, or export the model with --tokenizer",
        )
    try:
        found = open_folder(folder)
    except Exception as error:  # the type that transformers raises depends on the damage
        raise DataError(
            f"the tokenizer cannot be loaded: {first_line(error)}", where=str(folder), fix="repair its files"
        ) from error
    _check_tokens(found, model)
    if chat_template:
        found.chat_template = _template(chat_template)
    elif not found.chat_template:
        found.chat_template = _template(OURS)
    if kind == "sft":
        found.chat_template = _marked(found, chat_template)
    return found


def _check_tokens(tokenizer: Any, model: Path) -> None:
    if tokenizer.eos_token is None:
        raise DataError(
            "the tokenizer has no end-of-text token, so a model could not learn to stop",
            where=str(model),
            fix="set eos_token in tokenizer_config.json",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ids = int(json.loads((model / "config.json").read_text("utf-8")).get("vocab_size", 0))
    if len(tokenizer) > ids:
        raise DataError(
            f"the tokenizer has {len(tokenizer)} ids, the model {ids}",
            where=str(model),
            fix="give the tokenizer that the model was trained with",
        )


def _template(name: str) -> str:
    path = TEMPLATE if name == OURS else Path(name)
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UserError(
            f"the chat template cannot be read: {error.strerror}", where=name, fix=f"give a Jinja file, or {OURS}"
        ) from error


def is_marked(template: str | dict[str, str]) -> bool:
    """Whether a chat template, or the default one of several, has marks around the answers."""
    return _MARK.search(template["default"] if isinstance(template, dict) else template) is not None


def _marked(tokenizer: Any, given: str) -> str | dict[str, str]:
    """The template with marks around the answers; for a template that TRL knows, TRL's own marked version."""
    template: str | dict[str, str] = tokenizer.chat_template
    if is_marked(template):
        return template
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer) or template
    except ValueError:
        raise UserError(
            "the chat template does not mark what the assistant says, so the loss cannot leave out the rest",
            where=given or "the tokenizer's own template",
            fix=f"put {{% generation %}} and {{% endgeneration %}} around the answers, or take --chat-template {OURS}",
        ) from None
