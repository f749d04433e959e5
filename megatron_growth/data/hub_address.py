"""`hf:OWNER/NAME[@REVISION][:CONFIG][/SPLIT]`: a data set, or a tokenizer, of the Hugging Face hub by name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from megatron_growth.errors import DataError, UnsupportedError, first_line

PREFIX = "hf:"
_PART = r"[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(
    rf"hf:(?P<name>{_PART}(?:/{_PART})?)(?:@(?P<revision>[^:/]+))?(?::(?P<config>{_PART})?)?(?:/(?P<split>{_PART}))?"
)
_FIX = (
    "Check the name, your access (`hf auth login` where it is gated) and the network; offline, give the files by their "
    "path."
)


@dataclass(frozen=True)
class Address:
    """A name on the hub; an empty `config` or `split` is the repository's own default."""

    name: str
    revision: str = "main"
    config: str = ""
    split: str = ""

    @property
    def text(self) -> str:
        """As a user writes it."""
        revision = f"@{self.revision}" if self.revision != "main" else ""
        config, split = (f":{self.config}" if self.config else ""), (f"/{self.split}" if self.split else "")
        return f"{PREFIX}{self.name}{revision}{config}{split}"


def parse(text: str, where: str) -> Address:
    """The address that `text` stands for; raises DataError when it is not one."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise DataError(
            f"{text!r} is not the name of something on the Hugging Face hub.",
            where=where,
            fix="Write hf:OWNER/NAME, hf:OWNER/NAME:CONFIG or hf:OWNER/NAME:CONFIG/SPLIT.",
        )
    found = match.groupdict()
    return Address(found["name"], found["revision"] or "main", found["config"] or "", found["split"] or "")


def api(where: str) -> Any:
    """The hub's client, for `HF_ENDPOINT` where that is set; raises UnsupportedError without its package."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise UnsupportedError(
            "Reading from the Hugging Face hub needs the package huggingface_hub.",
            where=where,
            fix="pip install megatron_growth[data], or give files by their path.",
        ) from error
    disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


@contextmanager
def hub_errors(what: str, where: str) -> Iterator[None]:
    """Turn what the hub's client raises (dozens of types) into a DataError about `what`."""
    try:
        yield
    except (DataError, UnsupportedError):
        raise
    except Exception as error:
        raise DataError(f"{what} could not be read from the hub: {first_line(error)}", where=where, fix=_FIX) from error
