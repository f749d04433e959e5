"""What one part of the plugin adds to a run; `plug.py` loops over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Addition:
    """What one part of the plugin adds; empty when the flags do not ask for it.

    Attributes:
        configure: changes Megatron's model configuration.
        before_wrap: a `pre_wrap_hook`, called with the model chunks before Megatron wraps them.
        bind: a wrapper for each function of `rebind.TARGETS` that is replaced.
    """

    configure: Callable[[Any], None] | None = None
    before_wrap: Callable[[list[Any]], list[Any]] | None = None
    bind: Mapping[str, Wrap] = field(default_factory=dict)
