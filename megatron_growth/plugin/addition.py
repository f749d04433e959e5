"""What one part of the plugin adds to a run; `plug.py` loops over all of them."""

from __future__ import annotations

import inspect
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


def named(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a function of Megatron is called with, by the names of its parameters; `rebind.TARGETS` lists them."""
    return inspect.signature(original).bind(*args, **kwargs).arguments


def then(act: Callable[[Any], None]) -> Wrap:
    """Wraps a function of Megatron: `act` gets what it returns, and may change that in place."""

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def with_act(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            act(result)
            return result

        return with_act

    return around


def after_step(act: Callable[[Any, Any, Any, int], None]) -> Wrap:
    """Wraps `post_training_step_callbacks`: `act` gets chunks, optimizer, scheduler and iteration before a save."""

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def post_training_step_callbacks(
            model: Any, optimizer: Any, opt_param_scheduler: Any, iteration: int, *rest: Any, **kwargs: Any
        ) -> Any:
            result = original(model, optimizer, opt_param_scheduler, iteration, *rest, **kwargs)
            act(model, optimizer, opt_param_scheduler, iteration)
            return result

        return post_training_step_callbacks

    return around
