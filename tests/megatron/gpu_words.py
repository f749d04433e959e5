"""Megatron's own parser and validation over the words of a stage, as a GPU's start would run them, without a GPU.

`torch.cuda` answers as a GPU of some compute capability, Transformer Engine's version and kernels are answered for
where an installation has them, and what stands in for what is missing is asked of the table in `backend/`, as a start
asks it.  Nothing is built: what comes out are the arguments and the configurations of model, optimizer and DDP.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from megatron_growth.backend.installation import INSTALLATIONS, Installation
from megatron_growth.backend.stand_ins import environment, missing_words, ranks_of_a_layer, stand_ins

CAPABILITIES = {"Hopper": (9, 0), "Blackwell": (10, 0)}
GPU_INSTALLATIONS = ("container", "gpu", "pip")


@dataclass(frozen=True)
class Validated:
    """What Megatron makes of the words: its arguments and the configurations that are built from them."""

    args: Any
    model: Any
    container: Any


def installation(name: str, gpu: str) -> Installation:
    """One of the supported installations, on a GPU of a generation."""
    return replace(INSTALLATIONS[name], gpu=gpu, capability=CAPABILITIES[gpu])


def validated(words: list[str], here: Installation, world_size: int) -> Validated:
    """Parse, validate and build configurations, as `run/pretrain.py` does.

    Raises:
        AssertionError, ValueError, RuntimeError, SystemExit: what Megatron says against the words.
    """
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import validate_args

    rows = stand_ins(here, ranks_of_a_layer(words))
    variables = {**environment(rows), "WORLD_SIZE": str(world_size), "RANK": "0"}
    with _faked(here), mock.patch.dict(os.environ, variables), contextlib.redirect_stdout(io.StringIO()):
        if "CUDA_DEVICE_MAX_CONNECTIONS" not in variables:
            os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
        args = _parsed([*words, *missing_words(rows, words)])
        validate_args(args, {})
        model = gpt_config_from_args(args)
        return Validated(args, model, pretrain_cfg_container_from_args(args, model))


def _parsed(words: list[str]) -> Any:
    from megatron.training import arguments

    parser = _parser()
    with (
        mock.patch.object(arguments, "add_megatron_arguments", return_value=parser),
        mock.patch("sys.argv", ["", *words]),
    ):
        return arguments.parse_args()


@functools.cache
def _parser() -> Any:
    """Megatron's parser with our arguments; building it takes longer than a validation."""
    import argparse

    from megatron.training.arguments import add_megatron_arguments

    from megatron_growth.run.pretrain import add_arguments

    return add_arguments(add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)))


@contextlib.contextmanager
def _faked(here: Installation) -> Iterator[None]:
    """`torch.cuda` and Transformer Engine as an installation has them."""
    import torch
    from megatron.core import utils
    from megatron.core.models.common.embeddings import rope_utils
    from packaging.version import Version

    properties = mock.Mock(major=here.capability[0], minor=here.capability[1])
    kernel = object() if here.transformer_engine else None
    with contextlib.ExitStack() as stack:
        for name, value in (
            ("is_available", lambda: True),
            ("device_count", lambda: 8),
            ("current_device", lambda: 0),
            ("get_device_capability", lambda *_: here.capability),
            ("get_device_properties", lambda *_: properties),
        ):
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(utils, "_te_version", Version(here.transformer_engine or "0.0.0")))
        for name in ("fused_apply_rotary_pos_emb", "fused_apply_rotary_pos_emb_thd"):
            stack.enter_context(mock.patch.object(rope_utils, name, kernel))
        yield
