"""GaLore's seat in Megatron: its own optimizer, around an Adam that projects, with the low-rank state in checkpoints.

Megatron builds groups, masters, clipping and loss scaling as always; only the class of the inner Adam is another while
it does.  Its checkpoint code takes every state for a tensor of the weight's shape, so low-rank state is described here:
projectors and moments lie over tensor-parallel ranks as `Place` says and re-shard like weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import megatron.core.optimizer as factory
import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.optimizer import get_param_id_to_sharded_param_map
from megatron.core.optimizer import ParamKey

from megatron_growth.errors import UnsupportedError
from megatron_growth.layout.model_names import named_parameters
from megatron_growth.layout.names import parse_key
from megatron_growth.layout.parameters import PARAMETERS
from megatron_growth.methods.base import TrainedModel
from megatron_growth.methods.galore.adam import galore_adam, init_low_rank, places_of
from megatron_growth.methods.galore.matrices import matrices_of
from megatron_growth.methods.galore.projection import MARK, Place, Places, Ranks
from megatron_growth.methods.parts.optimizer_tensors import leaves, model_and_main
from megatron_growth.shape import ModelShape


def mark(model: TrainedModel, shape: ModelShape, taken: Collection[str], rank: int) -> None:
    """Give every projected parameter of this rank its `Places`."""
    tp, number = parallel_state.get_tensor_model_parallel_world_size(), 0
    for name, parameter in named_parameters(model.chunks):
        if name in taken:
            places = _places(parse_key(name).name, shape, rank, tp, number)
            setattr(parameter, MARK, places)
            number += len(places.places)


def _places(name: str, shape: ModelShape, rank: int, tp: int, number: int) -> Places:
    split = PARAMETERS[name].split
    cut = {"column": 0, "row": 1}.get(split) if tp > 1 else None
    found = {
        matrix.name: Place(matrix, rank, cut, tp if cut is not None else 1, number + i)
        for i, matrix in enumerate(matrices_of(name, shape))
    }
    groups = None
    if PARAMETERS[name].rows[0] == "qkv":
        groups = (shape.heads_per_group * shape.head_dim, shape.head_dim, shape.head_dim)
    return Places(found, groups)


def around_build(build: Callable[..., Any], gap: int, scale: float) -> Callable[..., Any]:
    """Megatron's `get_megatron_optimizer`, around an Adam that projects the marked parameters."""

    def get_megatron_optimizer(config: Any, model_chunks: Any, config_overrides: Any = None, **rest: Any) -> Any:
        if getattr(factory, "USING_PYTORCH_OPTIMIZER", False):
            raise UnsupportedError(
                "GaLore needs an Adam with FusedAdam's interface, and Megatron found torch's only",
                fix="install Transformer Engine or Apex, or start through megatron_growth's backend",
            )
        overrides = factory.get_standard_config_overrides(config) if config_overrides is None else config_overrides
        overrides = {**overrides, ParamKey(attr=MARK): {"galore": True}}
        stock = factory.Adam
        factory.Adam = galore_adam(stock)
        try:
            optimizer = build(config, model_chunks, config_overrides=overrides, **rest)
        finally:
            factory.Adam = stock
        _finish(optimizer, gap, scale)
        return optimizer

    return get_megatron_optimizer


def _finish(optimizer: Any, gap: int, scale: float) -> None:
    """Marks of the masters, the settings, and the checkpoint's form."""
    ranks = Ranks(
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_data_parallel_group(with_context_parallel=True),
    )
    for leaf in leaves(optimizer):
        inner = leaf.optimizer
        if not hasattr(inner, "_galore_step"):
            continue
        inner.gap, inner.scale, inner.ranks, inner.anew = gap, scale, ranks, set()
        for parameter, main in model_and_main(leaf):
            if (places := places_of(parameter)) is not None:
                setattr(main, MARK, places)
        leaf.init_state_fn = _init_state
        wrapper: Any = type(leaf)
        leaf.__class__ = with_low_rank_state(wrapper)


def _init_state(inner: torch.optim.Optimizer, config: Any = None) -> None:  # noqa: ARG001
    """Megatron's `init_state_fn`: zero state for every parameter that has none."""
    for group in inner.param_groups:
        for parameter in group["params"]:
            if (places := places_of(parameter)) is not None:
                init_low_rank(inner, parameter, places)
            elif not inner.state[parameter]:
                inner.state[parameter]["exp_avg"] = torch.zeros_like(parameter.data)
                inner.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter.data)


@cache
def with_low_rank_state(wrapper: Any) -> Any:
    """A subclass of one of Megatron's optimizers whose checkpoint has low-rank state in it."""

    class LowRankState(wrapper):
        """The wrapper's checkpoint, with low-rank state in it."""

        _hidden: dict[int, dict[str, torch.Tensor]] | None = None

        def state_dict(self) -> Any:
            """As Megatron's; while a sharded one is made, without the low-rank states, which are put aside."""
            found = super().state_dict()
            if self._hidden is not None:
                states = found.get("optimizer", found)["state"]
                low = [number for number, state in states.items() if any("." in key for key in state)]
                self._hidden.update({number: states.pop(number) for number in low})
            return found

        def sharded_state_dict(self, model_sharded_state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            """As Megatron's, and every low-rank tensor as what it is a shard of."""
            self._hidden = {}
            try:
                found = super().sharded_state_dict(model_sharded_state_dict, *args, **kwargs)
                hidden = self._hidden
            finally:
                self._hidden = None
            pairs = list(model_and_main(self))
            by_id = get_param_id_to_sharded_param_map(model_sharded_state_dict, (model for model, _ in pairs))
            states = found.get("optimizer", found)["state"]
            for number, state in hidden.items():
                states[number] = _sharded_state(pairs[number][1], state, by_id[number])
            return found

        def own_sharded_state(self, main: torch.Tensor, weight: Any) -> dict[str, ShardedTensor] | None:
            """A projected parameter's state, for loading it alone; None for other parameters.

            Args:
                main: what the inner Adam steps.
                weight: Megatron's description of the model's parameter.
            """
            return None if places_of(main) is None else _sharded_state(main, self.optimizer.state[main], weight)

        def begins_anew(self, main: torch.Tensor) -> None:
            """A projected parameter had no state in a checkpoint: its first projection does not wait for the gap."""
            self.optimizer.anew.add(main)

    return LowRankState


def _sharded_state(main: torch.Tensor, state: dict[str, torch.Tensor], weight: Any) -> dict[str, ShardedTensor]:
    """All low-rank tensors of a parameter, as what they are shards of."""
    places = places_of(main)
    assert places is not None
    return {key: _sharded(key, tensor, places, weight) for key, tensor in state.items()}


def _sharded(key: str, tensor: torch.Tensor, places: Places, weight: Any) -> ShardedTensor:
    """One low-rank tensor, named after its weight: `optimizer.state.galore_KIND.MATRIX.WEIGHT`."""
    kind, name = key.split(".", 1)
    one = weight.build()[0] if isinstance(weight, ShardedTensorFactory) else weight
    ahead = one.prepend_axis_num
    offsets = [(axis, one.global_offset[axis], one.axis_fragmentations[axis]) for axis in range(ahead)]
    place, tp_rank = places.places[name], parallel_state.get_tensor_model_parallel_rank()
    axis = place.axis(kind)
    if axis is not None:
        offsets.append((ahead + axis, tp_rank, place.tp))
    copy = tp_rank if place.cut is not None and axis is None else 0
    return ShardedTensor.from_rank_offsets(
        f"optimizer.state.galore_{kind}.{name}.{one.key}",
        tensor,
        *offsets,
        replica_id=(0, copy, one.replica_id[-1]),
        prepend_axis_num=ahead,
    )
