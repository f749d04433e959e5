"""What a checkpoint stores once (arguments, iteration, scheduler), checked before anything is computed from it."""

from __future__ import annotations

import math
from typing import Any

from megatron_growth.errors import CheckpointError

_COUNTS = ("num_attention_heads", "num_query_groups", "kv_channels", "ffn_hidden_size", "num_layers", "hidden_size")
_NUMBERS = ("layernorm_epsilon", "init_method_std", "embedding_init_method_std")
_MAY_BE_NONE = "embedding_init_method_std"  # None means "as init_method_std"
_DICTIONARIES = ("optimizer", "opt_param_scheduler", "content_metadata")


def checked(loaded: Any, where: str) -> dict[str, Any]:
    """The common state as a dictionary whose numbers are numbers.

    Args:
        loaded: what was unpickled.
        where: for the message.

    Raises:
        CheckpointError: it is not a dictionary, or a value in it has the wrong type.
    """
    if isinstance(loaded, list) and loaded:
        loaded = loaded[0]
    if not isinstance(loaded, dict):
        raise _wrong(f"the common state is a {type(loaded).__name__}", where)
    iteration = loaded.get("iteration", 0)
    if type(iteration) is not int or iteration < 0:
        raise _wrong(f"the saved iteration is {iteration!r}", where)
    for name in _DICTIONARIES:
        if not isinstance(loaded.get(name), dict | list | None):
            raise _wrong(f"what is saved as {name} is a {type(loaded[name]).__name__}", where)
    args = loaded.get("args")
    if args is not None and not hasattr(args, "__dict__"):
        raise _wrong(f"the saved arguments are a {type(args).__name__}", where)
    if args is not None and not getattr(args, "num_attention_heads", None):
        raise _wrong("the saved arguments do not say the number of attention heads", where)
    if getattr(args, "group_query_attention", False) and not getattr(args, "num_query_groups", None):
        raise _wrong("the saved arguments group queries but do not say the number of groups", where)
    for name in _COUNTS:
        value = getattr(args, name, None)
        if value is not None and (type(value) is not int or value < 0):
            raise _wrong(f"the saved argument {name} is {value!r}", where)
    for name in _NUMBERS:
        value = getattr(args, name, 0.0)
        if value is None and name == _MAY_BE_NONE:
            continue
        if not (isinstance(value, int | float) and math.isfinite(value)):
            raise _wrong(f"the saved argument {name} is {value!r}", where)
    return dict(loaded)


def _wrong(what: str, where: str) -> CheckpointError:
    return CheckpointError(what, where=where, fix="restore the checkpoint from a copy, or use another iteration")
