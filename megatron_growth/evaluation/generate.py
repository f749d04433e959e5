"""Answers of a Hugging Face model to conversations, in batches.

Shape legend: b conversations, t tokens of the longest prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from megatron_growth.data.tokenizers.huggingface import open_folder
from megatron_growth.errors import UserError, first_line
from megatron_growth.evaluation.huggingface import HuggingFaceModel

Message = dict[str, str]


class Answerer:
    """Continues conversations.

    Args:
        longest: most new tokens in an answer.
        plain: give each question as it is, followed by a line break, instead of using the tokenizer's chat template.

    Raises:
        UserError: the tokenizer has no chat template, and plain was not asked for.
    """

    def __init__(self, opened: HuggingFaceModel, *, longest: int, plain: bool = False) -> None:
        self._opened, self._longest, self._plain = opened, longest, plain
        self._tokenizer = open_folder(opened.folder)
        if not plain and not self._tokenizer.chat_template:
            raise UserError(
                "the model's tokenizer has no chat template: it was never taught to answer",
                where=str(opened.folder),
                fix="tune it first (megatron-growth posttrain sft ...), or add --plain to give questions as they are",
            )
        ends = opened.model.generation_config.eos_token_id
        self._ends = ends if ends is not None else opened.tokenizer.eod

    @torch.inference_mode()
    def __call__(
        self, conversations: Sequence[Sequence[Message]], *, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """The next answer in each conversation.

        Args:
            conversations: (b,) lists of {role, content}, the last message from the user.
            temperature: of sampling; 0 takes the likeliest token.
            seed: of sampling.

        Raises:
            UserError: the chat template refuses a conversation.
        """
        room = max(1, min(self._longest, self._opened.length // 2))
        most = self._opened.length - room  # a prompt that leaves no room for an answer loses its beginning
        prompts = [torch.tensor(self._prompt(one)[-most:], dtype=torch.int64) for one in conversations]
        pad = self._opened.tokenizer.eod
        ids = pad_sequence(prompts, batch_first=True, padding_value=pad, padding_side="left")
        mask = pad_sequence([torch.ones_like(one) for one in prompts], batch_first=True, padding_side="left")
        torch.manual_seed(seed)
        sampling: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        )
        out = self._opened.model.generate(
            input_ids=ids.to(self._opened.device),
            attention_mask=mask.to(self._opened.device),
            max_new_tokens=room,
            pad_token_id=pad,
            eos_token_id=self._ends,
            **sampling,
        )
        return [self._tokenizer.decode(one, skip_special_tokens=True).strip() for one in out[:, ids.shape[1] :]]

    def _prompt(self, conversation: Sequence[Message]) -> list[int]:
        if self._plain:
            text = "".join(f"{message['content']}\n" for message in conversation)
            return [self._opened.start, *self._tokenizer(text, add_special_tokens=False)["input_ids"]]
        try:
            text = self._tokenizer.apply_chat_template(list(conversation), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template may raise anything
            raise UserError(
                f"the chat template refuses a conversation: {first_line(error)}", where=str(self._opened.folder)
            ) from error
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
