"""The methods of one training process, and the places in Megatron where their hooks are called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.optimizer import ParamKey
from megatron.training import get_args, print_rank_0

from megatron_growth.errors import CheckpointError, RecipeError
from megatron_growth.layout.model_names import all_names, named_parameters
from megatron_growth.layout.names import parse_key
from megatron_growth.methods import METHODS, GroupSettings, Method, TrainedModel, frozen_names, group_of
from megatron_growth.methods.freeze import take_out_of_training
from megatron_growth.plugin import bucket_order, state_by_name, stopping
from megatron_growth.plugin.addition import Addition, Wrap, after_step, then
from megatron_growth.records.human import plural

Chunks = list[torch.nn.Module]


class ActiveMethods:
    """The methods of a run, in the order given; without any, Megatron's training stays as it is.

    The first method that matches a parameter decides; `record` receives events for the run's metrics.

    Attributes:
        model: this rank's share of the model; empty until it is built.
    """

    def __init__(self, methods: Sequence[Method], record: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        self.methods, self._record = tuple(methods), record
        self.model = TrainedModel([], log=print_rank_0, record=record)
        self.optimizer: Any = None

    def apply(self, chunks: Chunks) -> Chunks:
        """A `pre_wrap_hook`: let each method change the model, freeze what is frozen, and log every choice once.

        Raises:
            RecipeError: a method takes what the model does not have, or nothing is left to train.
        """
        names = all_names(chunks, parallel_state.get_pipeline_model_parallel_group())
        model = self.model = TrainedModel(chunks, names, log=print_rank_0, record=self._record)
        if not self.methods:
            return chunks
        model.log(self.table())
        model.frozen = frozenset(frozen_names(self.methods, model.names))
        for method in self.methods:
            method.transform(model)
        take_out_of_training(chunks, model.frozen)
        self._refuse_to_train_nothing()
        return chunks

    def table(self) -> str:
        """Which parameters each method takes, and how many no method takes, as lines for a log."""
        lines, frozen, taken = ["how parameters train (the first match wins):"], set[str](), set[str]()
        for method in self.methods:
            lines.append(method.describe(self.model.names, frozen))
            taken |= set(method.select(self.model.names, frozen))
            frozen |= set(method.freezes(self.model.names, frozen))
        lines.append(f"  (no rule): the run's schedule for {plural(len(set(self.model.names) - taken), 'parameter')}")
        return "\n".join(line for line in lines if line)

    def _refuse_to_train_nothing(self) -> None:
        trained = [name for name, p in named_parameters(self.model.chunks) if p.requires_grad]
        if not state_by_name.any_rank(bool(trained)):
            raise RecipeError(
                "every parameter of the model is frozen; nothing is left to train",
                where=", ".join(f"method {method.name}" for method in self.methods),
                fix="leave at least one parameter out of --growth-freeze",
            )

    @property
    def splits_layers(self) -> bool:
        """Whether some layer's parameter is frozen while the same parameter of another layer is trained."""
        trained = set(self.model.names) - self.model.frozen
        return bool({parse_key(name).name for name in self.model.frozen} & {parse_key(name).name for name in trained})

    @property
    def schedules(self) -> tuple[str, ...]:
        """The schedules that parameter groups may name, in their written form."""
        return tuple(dict.fromkeys(text for method in self.methods for text in method.schedules()))

    def addition(self) -> Addition:
        """The hook, the replacements that some method of this run needs, and what every save needs."""
        bind: dict[str, Wrap] = {}
        if self._has("group"):
            bind["get_megatron_optimizer_config"] = self.around_optimizer_config
        if self._has("optimizer"):
            bind["get_megatron_optimizer"] = self.around_optimizer
        bind["setup_model_and_optimizer"] = then(self._set_up)
        if self._has("after_iteration") or self._has("end"):
            bind["post_training_step_callbacks"] = after_step(self._step)
        bind["_build_sharded_state_dict_metadata"] = then(self._note)
        return Addition(before_wrap=self.apply, bind=bind)

    def _has(self, hook: str) -> bool:
        """Whether any method of this run overrides a hook."""
        return any(getattr(type(method), hook) is not getattr(Method, hook) for method in self.methods)

    # Replacements -------------------------------------------------------------------------------------------------

    def around_optimizer_config(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Put parameters with their own settings into separate groups, through Megatron's overrides."""

        def get_megatron_optimizer_config(args: Any) -> Any:
            config, overrides = original(args)
            return config, {**(overrides or {}), **self.overrides(config)}

        return get_megatron_optimizer_config

    def overrides(self, config: Any) -> dict[ParamKey, dict[str, Any]]:
        """Mark this rank's parameters by group and return the settings of each mark; the first method decides."""
        found: list[GroupSettings] = []
        for name, parameter in named_parameters(self.model.chunks):
            settings = group_of(self.methods, name) if parameter.requires_grad else None
            if settings is not None:
                if settings not in found:
                    found.append(settings)
                setattr(parameter, _mark(found.index(settings)), True)
        rates = (config.lr, config.min_lr or 0.0)
        return {ParamKey(attr=_mark(i)): settings.as_group(*rates) for i, settings in enumerate(found)}

    def around_optimizer(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Let each method wrap the optimizer that those before it build."""
        for method in self.methods:
            original = method.optimizer(original)
        return original

    def _set_up(self, found: tuple[Chunks, Any, Any]) -> None:
        """Call `after_setup` with model, optimizer and scheduler; keep the optimizer for every save."""
        self.model.chunks, self.optimizer, scheduler = found
        for method in self.methods:
            method.after_setup(self.model, self.optimizer, scheduler)

    def _step(self, chunks: Chunks, optimizer: Any, scheduler: Any, iteration: int) -> None:
        self.model.chunks = chunks
        self.model.is_over = iteration >= get_args().train_iters or stopping.is_asked_for()
        for method in self.methods:
            method.after_iteration(self.model, optimizer, scheduler, iteration)
        if self.model.is_over:
            self._end()

    def _end(self) -> None:
        """Let every method turn the model back into a plain one; optimizer state that no longer fits is not saved."""
        for method in reversed(self.methods):
            if method.end(self.model):
                get_args().no_save_optim = True

    def _note(self, metadata: dict[str, Any]) -> None:
        """What a save notes of its content, once there is an optimizer and where there are methods."""
        if self.optimizer is not None:
            bucket_order.note(metadata, self.model.chunks, self.optimizer)
        if self.methods:
            self._describe(metadata)

    def _describe(self, metadata: dict[str, Any]) -> None:
        """Save each layer under its own key when only some have optimizer state, or when a method asks for it.

        Adam's step is saved too: Megatron takes it from the first rank, which may train nothing.

        Megatron stacks the layers of a parameter into one global tensor, which must be complete.  The checkpoint
        says how its layers are stored, so a later run loads it with or without the plugin.
        """
        if self.splits_layers and not bucket_order.in_buckets(metadata) and not get_args().no_save_optim:
            metadata["non_homogeneous_layers"] = True
        for method in self.methods:
            metadata.update(method.metadata(self.model))
        if self.optimizer is not None and not get_args().no_save_optim:
            metadata[state_by_name.STEP_KEY] = state_by_name.largest(state_by_name.step_of(self.optimizer))

    @contextlib.contextmanager
    def loading(self, folder: str, saved_methods: Sequence[Method], *, optimizer: bool) -> Iterator[None]:
        """Wraps the loading of a checkpoint, optimizer state included or not; refuses one that holds state of a method
        this run does not use, or uses with parameters that make something else of it."""
        with contextlib.ExitStack() as stack:
            saved = frozenset(dist_checkpointing.load_tensors_metadata(folder))
            self._refuse_foreign(folder, saved)
            read = saved if optimizer else {key for key in saved if not key.startswith("optimizer.")}
            for method in self.methods:
                for before in saved_methods:
                    if before.name == method.name:
                        method.check_resumed(before, self.model.names, read)
                stack.enter_context(method.loading(self.model, saved))
            yield

    def _refuse_foreign(self, folder: str, saved: Collection[str]) -> None:
        """Megatron ignores tensors that the model does not have: what a method added would be lost silently."""
        active = {method.name for method in self.methods}
        for name in METHODS.names():
            owned = sorted(key for key in saved if METHODS.find(name).owns(key)) if name not in active else []
            if owned:
                raise CheckpointError(
                    f"the checkpoint was saved with the method {name}, which this run does not use",
                    where=f"{folder}: {owned[0]} and {len(owned) - 1} more",
                    fix=f"add --growth-method {name}:... as it was, or load that run's last checkpoint",
                )


def _mark(number: int) -> str:
    """Name of the attribute that marks the parameters of one group for Megatron's `ParamKey`."""
    return f"growth_group_{number}"
