"""The layer spec that --growth-layer-spec and --growth-sublayers ask for, given to Megatron's model configuration.

With `auto` the layers follow the machine, so a checkpoint may have been written by the other kind.  Parameters and
optimizer state have the same names in both; Transformer Engine's norms also keep an extra state, always empty, that
layers without it do not write, and Megatron's loader fails where it is not stored.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.training.checkpointing import get_checkpoint_name
from torch.distributed.checkpoint import FileSystemReader

from megatron_growth.backend.layer_spec import layer_spec
from megatron_growth.plugin.addition import Addition, named
from megatron_growth.plugin.arguments import PluginOptions


def addition(options: PluginOptions) -> Addition:
    """Sets the layer spec; nothing where Megatron's own layers are wanted."""
    if options.layer_spec == "stock" and options.sublayers == "full":
        return Addition()

    def configure(model_cfg: Any) -> None:
        spec = layer_spec(options.layer_spec, options.sublayers, document_masks=options.document_masks)
        if spec is not None:
            model_cfg.transformer_layer_spec = spec  # Megatron calls it when it builds the model

    bind = {"_load_global_dist_base_checkpoint": around_load} if options.layer_spec == "auto" else {}
    return Addition(configure=configure, bind=bind)


def around_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Load as Megatron does, but do not ask for extra states of norms that the checkpoint lacks."""

    def _load_global_dist_base_checkpoint(*args: Any, **kwargs: Any) -> Any:
        given = named(original, args, kwargs)
        if not given["rank0"] and given["sharded_state_dict"] is not None:
            folder = get_checkpoint_name(given["load_dir"], given["iteration"], given["release"], return_base_dir=True)
            _drop_missing_norm_states(given["sharded_state_dict"], Path(folder))
        return original(*args, **kwargs)

    return _load_global_dist_base_checkpoint


def _drop_missing_norm_states(state: dict[str, Any], folder: Path) -> None:
    """Take the extra states of norms out of a sharded state dict, if they are not stored in this checkpoint.

    A norm without one starts as a new norm does: with an empty one.
    """
    models = [value for name, value in state.items() if name.startswith("model") and isinstance(value, dict)]
    asked = [(model, name) for model in models for name, entry in model.items() if _is_norm_state(name, entry)]
    if not asked:
        return
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    for model, name in asked:
        if model[name].unique_key not in stored:
            del model[name]


def _is_norm_state(name: str, entry: Any) -> bool:
    return name.endswith("layernorm._extra_state") and isinstance(entry, ShardedObject)
