"""Growth and training methods in Megatron-Bridge: hooks of its ConfigContainer and a callback; neither is changed.

    hooks = GrowthHooks(source="checkpoints/1B", width="aki", depth="stack", methods=["freeze:patterns=embedding.*"])
    pretrain(hooks.into(config), forward_step, callbacks=[hooks])

Bridge has three places for it: hooks that see the model before it is wrapped (growth, freezing, adapters), a provider
of overrides for parameter groups (rates), and callbacks (what methods do after a step, such as ReLoRA's merges).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.utils.checkpoint_utils import checkpoint_exists

from megatron_growth import methods as training_methods
from megatron_growth.checkpoint.grow_on_load import GrowthRequest, fill
from megatron_growth.errors import UnsupportedError
from megatron_growth.exchange import open_source
from megatron_growth.methods import Method
from megatron_growth.plugin.active import ActiveMethods


class GrowthHooks(Callback):
    """What a run of Megatron-Bridge needs to grow and to train with methods.

    Args:
        source: a Megatron checkpoint or a Hugging Face folder to grow from; None grows nothing.
        width, depth: operators in their written form, `aki` or `interpolate:...`.
        seed: of every random choice of the growth.
        methods: in their written form, `freeze:patterns=...`, `relora:rank=128`.

    Raises:
        UnsupportedError: a method needs an optimizer or a schedule of its own, for which Bridge has no place.
    """

    def __init__(
        self,
        source: str | Path | None = None,
        width: str = "aki",
        depth: str = "stack",
        *,
        seed: int = 0,
        methods: Sequence[str] = (),
    ) -> None:
        self.source, self.growth = source, GrowthRequest(width, depth, seed, open_source=open_source)
        self.active = ActiveMethods([training_methods.get(text) for text in methods])
        self.config: Any = None
        for method in self.active.methods:
            if type(method).optimizer is not Method.optimizer or method.schedules():
                raise UnsupportedError(
                    f"{method.name} brings an optimizer or a schedule of its own; Megatron-Bridge has no hook for it",
                    fix="train this stage with Megatron's own loop and plug_into()",
                )

    def into(self, config: Any) -> Any:
        """Register in a ConfigContainer; returns the same one."""
        self.config = config
        if hasattr(config.model, "register_pre_wrap_hook"):  # a provider of Bridge's
            config.model.register_pre_wrap_hook(self.before_wrap)
        else:  # a ModelConfig of Megatron's
            config.model.pre_wrap_hooks.append(self.before_wrap)
        config.optimizer_config_override_provider = _Groups(config.optimizer_config_override_provider, self.active)
        return config

    def before_wrap(self, chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """Grow, unless the run has a checkpoint of its own; then let the methods change and freeze the model."""
        if self.source is not None and not checkpoint_exists(self.config.checkpoint.load):
            fill(chunks, self.source, self.growth)
        chunks = self.active.apply(chunks)
        if self.active.splits_layers:  # Megatron stacks a parameter's layers, unless some have no optimizer state
            for chunk in chunks:
                chunk.config.hetereogenous_dist_checkpoint = True
        return chunks

    def on_train_start(self, context: CallbackContext) -> None:
        """Model, optimizer and scheduler are there, and a checkpoint is loaded."""
        self.active.model.chunks = context.model
        for method in self.active.methods:
            method.after_setup(self.active.model, context.optimizer, context.scheduler)

    def on_train_step_end(self, context: CallbackContext) -> None:
        """After the optimizer's step and before the checkpoint; the last one is of a plain model."""
        iteration = context.state.train_state.step + 1  # Bridge counts it after the callbacks
        for method in self.active.methods:
            method.after_iteration(self.active.model, context.optimizer, context.scheduler, iteration)
        if iteration >= self.config.train.train_iters:
            plain = [method.end(self.active.model) for method in reversed(self.active.methods)]
            if any(plain):  # the optimizer's state belongs to tensors that are gone
                self.config.checkpoint.save_optim = False


@dataclass
class _Groups:
    """An OptimizerConfigOverrideProvider: the groups of another one, and those that the methods ask for."""

    before: Any
    active: ActiveMethods = field(repr=False)

    def build_config_overrides(self, context: Any) -> dict[Any, Any] | None:
        """Overrides by parameter matcher, as Bridge asks for them when it builds the optimizer."""
        overrides = {**(self.before.build_config_overrides(context) or {})}
        overrides |= self.active.overrides(context.optimizer_config)
        return overrides or None
