"""ReLoRA: low-rank adapters on frozen linear layers, merged and restarted every so often (arXiv 2307.05695).

    y = W x + alpha / r B A dropout(x)      W frozen (n_out x n_in), A (r x n_in) and B (n_out x r) train

Every `reset_iterations` the product is added to W, A is drawn again, B is zeroed, and most of Adam's moments of both
are reset.  STEP (arXiv 2504.04151, sec. 3) puts such adapters on the layers that were there before growth.  At the end
of training the last product is merged and the model is a plain one, so its checkpoint loads anywhere; a restart there
would draw adapters that nothing trains any more, and is left out (the authors' code restarts in the step that follows,
so it has none there either).

Only the hooks of a training process import torch and Megatron; `layers.py` and `restart.py` do the work.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from megatron_growth.errors import CheckpointError, RecipeError, UnsupportedError
from megatron_growth.layout.names import is_layer_matrix, parse_key
from megatron_growth.methods.base import Cost, CountedParameter, Factor, Method, StageFacts, TrainedModel
from megatron_growth.methods.fewer_layers import FewerLayers
from megatron_growth.methods.registry import register, written
from megatron_growth.records.human import plural
from megatron_growth.records.numbers import COUNT, SEED, SIZE
from megatron_growth.shape import ModelShape

_OWN = re.compile(r"\.lora_(?:a|b|master)$")

# Flags of Megatron under which an adapter's optimizer state or weight cannot be reached, or its layers are not called.
_REFUSED = (
    *("use_precision_aware_optimizer", "optimizer_cpu_offload", "use_transformer_engine_op_fuser"),
    *("num_experts", "multi_latent_attention"),
    "fp8_param_gather",  # a merge would be rounded to FP8, and its master made of FP8 values
)


@register
@dataclass(frozen=True)
class ReLoRA(Method):
    """Adapters on the linear layers of Transformer layers, whose weights are frozen.

    Attributes:
        rank: r.
        alpha: the product is scaled by alpha / rank.
        dropout: of an adapter's input.
        layers: numbers of the adapted layers, from 0; `all`; or, in a recipe, `source`: those that were there before
            this stage's growth.
        freeze_layers: freeze the adapted layers whole, norms included, as in STEP.
        reset_iterations: merge and restart every so many iterations; null for never.
        optimizer_reset: what becomes of the adapters' moments then: `zero`, or pruned at `random` or by `magnitude`.
        optimizer_reset_ratio: the share of entries that pruning zeroes.
        merge_at_end: merge when training ends; the last checkpoint is then a plain model's, without optimizer state.
        seed: of A's values.
    """

    name: ClassVar[str] = "relora"
    paper: ClassVar[str] = "ReLoRA (2023), sec. 3; STEP (2025), sec. 3"
    leaves_moments: ClassVar[bool] = False
    takes_fp8_weights: ClassVar[bool] = False

    rank: Annotated[int, Field(ge=1, le=SIZE)] = 128
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    layers: Literal["all", "source"] | tuple[int, ...] = "all"
    freeze_layers: bool = False
    reset_iterations: Annotated[int, Field(ge=1, le=COUNT)] | None = 5000
    optimizer_reset: Literal["zero", "random", "magnitude"] = "magnitude"
    optimizer_reset_ratio: Annotated[float, Field(ge=0, le=1)] = 0.9
    merge_at_end: bool = True
    seed: Annotated[int, Field(ge=0, le=SEED)] = 0

    @property
    def leaves_plain_model(self) -> bool:
        """Whether the adapters are merged at the end."""
        return self.merge_at_end

    # Before a run -------------------------------------------------------------------------------------------------

    def planned(self, facts: StageFacts) -> Self:
        """The method with `layers=source` replaced by the layers' numbers."""
        return replace(self, layers=facts.old_layers) if self.layers == "source" else self

    def _adapts(self, layer: int) -> bool:
        if self.layers == "source":
            raise RecipeError(
                "layers=source has a meaning in a recipe only, where the layers before growth are known",
                where=f"method {self.name}",
                fix="write the numbers, counted from 0 in the grown model: layers=[0,2,4]",
            )
        return self.layers == "all" or layer in self.layers

    def select(self, names: Sequence[str], frozen: Collection[str] = ()) -> tuple[str, ...]:  # noqa: ARG002
        """The weights of the adapted linear layers."""
        matrices = [name for name in names if is_layer_matrix(name)]
        linear = {name: layer for name in matrices if (layer := parse_key(name).layer) is not None}
        missing = [] if isinstance(self.layers, str) else sorted(set(self.layers) - set(linear.values()))
        if missing or not linear:
            last = max(linear.values(), default=-1)
            raise RecipeError(
                f"there is no layer {', '.join(map(str, missing)) or 'at all'} to put adapters on",
                where=f"method {self.name}",
                fix=f"the model's layers are 0 to {last}" if linear else "give the model layers",
            )
        return tuple(sorted(name for name, layer in linear.items() if self._adapts(layer)))

    def freezes(self, names: Sequence[str], frozen: Collection[str] = ()) -> tuple[str, ...]:
        """The adapted weights, or all of their layers."""
        taken = self.select(names, frozen)
        if not self.freeze_layers:
            return taken
        adapted = {parse_key(name).layer for name in taken}
        return tuple(sorted(name for name in names if parse_key(name).layer in adapted))

    def on_fewer_layers(self, left: FewerLayers) -> Self | None:
        """With the layers that are left."""
        if isinstance(self.layers, str):
            return self
        layers = left.numbers(self.layers)
        return replace(self, layers=layers) if layers else None

    def check(self, shape: ModelShape) -> None:
        """Refuse a rank above a side of a matrix."""
        queries, groups = shape.heads * shape.head_dim, shape.query_groups * shape.head_dim
        sides = [shape.hidden, queries, queries + 2 * groups]
        if shape.sublayers == "full":
            sides.append(shape.ffn)
        if self.rank > min(sides):
            raise RecipeError(
                f"adapters of rank {self.rank} do not fit a matrix with a side of {min(sides)}",
                where=f"method {self.name}",
                fix=f"give a rank from 1 to {min(sides)}",
            )

    def check_arguments(self, args: argparse.Namespace) -> None:
        """Refuse flags under which adapters cannot be reached."""
        for name in _REFUSED:
            if getattr(args, name, None):
                flag = f"--{name.replace('_', '-')}"
                raise UnsupportedError(f"ReLoRA does not work with {flag}", fix=f"leave out {flag}")
        if getattr(args, "optimizer", "adam") != "adam":
            raise UnsupportedError(f"ReLoRA resets Adam's moments, not {args.optimizer}'s", fix="--optimizer adam")

    def cost(self, parameter: CountedParameter, tp: int = 1) -> Cost | None:  # noqa: ARG002
        """Two trained factors beside a frozen matrix; masters of bf16 weights lie on the host."""
        layer = parse_key(parameter.name).layer
        if layer is None or not self._adapts(layer):
            return None
        if parameter.kind != "linear":
            return Cost(trains=False) if self.freeze_layers else None
        inputs, outputs = parameter.ends
        a = Factor(inputs, self.rank, "row" if parameter.split == "row" else "none")
        b = Factor(self.rank, outputs, "column" if parameter.split == "column" else "none")
        merging = 2.0 * self.rank * inputs * outputs / (self.reset_iterations or float("inf"))
        return Cost(trains=False, factors=(a, b), step_flops=merging)

    def describe(self, names: Sequence[str], frozen: Collection[str] = ()) -> str:
        """One line: rank, number of adapted matrices, resets, and number of frozen parameters."""
        taken, rest = self.select(names, frozen), self.freezes(names, frozen)
        reset = (
            f"merged every {plural(self.reset_iterations, 'iteration')}" if self.reset_iterations else "never merged"
        )
        adapted = "1 matrix" if len(taken) == 1 else f"{len(taken)} matrices"
        return f"  relora: adapters of rank {self.rank} on {adapted}, {reset}; {plural(len(rest), 'parameter')} frozen"

    # In a training process ----------------------------------------------------------------------------------------

    def transform(self, model: TrainedModel) -> None:
        """Swap the classes of the adapted layers."""
        from megatron_growth.methods.relora import layers

        form = layers.Form(self.rank, self.alpha, self.dropout, self.seed)
        layers.attach(model.chunks, form, None if self.layers == "all" else tuple(map(int, self.layers)))
        model.memory[self.name] = "attached"

    def check_resumed(self, before: Method, names: Sequence[str], saved_keys: Collection[str]) -> None:
        """Adapters that are not merged are part of the function, by their rank, their scale and where they are."""
        if not isinstance(before, ReLoRA) or not any(self.owns(key) for key in saved_keys):
            return
        other = [key for key in ("rank", "alpha") if getattr(self, key) != getattr(before, key)]
        other += ["layers"] if self.select(names) != before.select(names) else []
        if other:
            was = replace(self, rank=before.rank, alpha=before.alpha, layers=before.layers)
            raise CheckpointError(
                f"the checkpoint holds adapters of another kind than this run's: another {', '.join(other)}",
                where=f"method {self.name}",
                fix=f"go on with {written(was)!r}; or let that run train to its end, where it merges them",
            )

    @contextlib.contextmanager
    def loading(self, model: TrainedModel, saved_keys: Collection[str]) -> Iterator[None]:
        """From a checkpoint without adapters take the weights, and leave the adapters as they were initialised."""
        from megatron_growth.methods.relora import layers

        plain = not any(self.owns(key) for key in saved_keys)
        found = list(layers.adapters(model.chunks))
        for module in found:
            module.lora_hidden = plain
        try:
            yield
        finally:
            for module in found:
                module.lora_hidden = False

    def after_iteration(self, model: TrainedModel, optimizer: Any, scheduler: Any, iteration: int) -> None:  # noqa: ARG002
        """Merge and restart the adapters every `reset_iterations`; not after the last iteration, where `end` merges."""
        if not self.reset_iterations or iteration % self.reset_iterations:
            return
        if model.is_over and self.merge_at_end:  # what a restart draws anew would never be trained
            return
        from megatron_growth.methods.relora import restart

        count, begin = iteration // self.reset_iterations, time.perf_counter()
        restart.restart(model.chunks, optimizer, count, self.optimizer_reset, self.optimizer_reset_ratio)
        seconds = round(time.perf_counter() - begin, 6)
        model.log(
            f"growth: adapters merged and restarted after iteration {iteration} (restart {count}, {seconds:.3f} s)"
        )
        what = {"event": "method", "method": self.name, "what": "restart", "count": count, "seconds": seconds}
        model.record({**what, "iteration": iteration})

    def end(self, model: TrainedModel) -> bool:
        """Merge, and give every layer its stock class back, if `merge_at_end`."""
        if not self.merge_at_end:
            return False
        from megatron_growth.methods.relora import layers, restart

        restart.merge(model.chunks)
        layers.detach(model.chunks)
        model.memory[self.name] = "merged"
        model.log("growth: adapters merged; the last checkpoint is a plain model's, without optimizer state")
        return True

    # In and after a checkpoint ------------------------------------------------------------------------------------

    @classmethod
    def owns(cls, key: str) -> bool:
        """Whether this is A, B, or the fp32 master of the weight beside them."""
        return bool(_OWN.search(key))

    def metadata(self, model: TrainedModel) -> Mapping[str, Any]:
        """A key for each layer when only some have adapters: Megatron stacks a key over all layers or not at all."""
        some = self.layers != "all" and model.memory.get(self.name) == "attached"
        return {"non_homogeneous_layers": True} if some else {}

    def merge(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """W + alpha / r B A for every adapted weight, added to the fp32 master where there is one."""
        merged = {}
        for name, tensor in super().merge(tensors).items():
            stem = name.removesuffix(".weight")
            a, b = tensors.get(f"{stem}.lora_a"), tensors.get(f"{stem}.lora_b")
            if a is None or b is None:
                merged[name] = tensor
                continue
            if len(a) != self.rank:
                raise CheckpointError(f"adapters of rank {len(a)}, not {self.rank}", where=stem, fix="give their rank")
            base = tensors.get(f"{stem}.lora_master", tensor)
            whole = base.double() + self.alpha / self.rank * (b.double() @ a.double())
            merged[name] = whole.to(tensor.dtype)
        return merged


def unmerged(keys: Iterable[str]) -> list[str]:
    """The keys of a checkpoint that belong to adapters, sorted."""
    return sorted(key for key in keys if ReLoRA.owns(key) and not key.startswith("optimizer."))
