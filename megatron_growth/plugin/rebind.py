"""The one list of what the plugin replaces inside `megatron.training`, and the way back.

Megatron-Core 0.19 has hooks for a model before and after it is wrapped, for arguments and for layer specs; the plugin
uses those where they exist.  For the rest it replaces functions of `megatron.training.training` and one of
`megatron.training.checkpointing`, which those modules look up by name at every call.  A function is replaced only when
a --growth-* flag needs it, each replacement calls the original, and `unbind_all()` puts every original back.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_growth.backend.replacements import Replacement, apply
from megatron_growth.errors import UnsupportedError

SUPPORTED_SERIES = (0, 19)
SUPPORTED = "0.19.x"

_TRAINING = "megatron.training.training"


@dataclass(frozen=True)
class Target:
    """A function of Megatron that the plugin may replace.

    Attributes:
        name: its name in `module`.
        why: what the plugin needs it for.
        parameters: the names of its parameters in order, separated by spaces; any others mean an unknown Megatron.
        module: where `megatron.training` looks it up.
    """

    name: str
    why: str
    parameters: str
    module: str = _TRAINING


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "setup_model_and_optimizer",
            "act on the optimizer once model, optimizer and checkpoint are in place, and on every save",
            "model_type model_provider_func checkpointing_context cfg_container pg_collection",
        ),
        Target(
            "get_megatron_optimizer_config",
            "give parameters that match a pattern their own learning rate (--growth-schedule)",
            "args",
        ),
        Target(
            "get_megatron_optimizer",
            "train with the optimizer that a method wants (--growth-method)",
            "config model_chunks config_overrides use_gloo_process_groups pg_collection dump_param_to_param_group_map",
        ),
        Target(
            "get_optimizer_param_scheduler",
            "follow the schedules of --growth-schedule, and let a changed learning rate load",
            "optimizer",
        ),
        Target(
            "load_checkpoint",
            "load optimizer state when learning rates or freezing have changed since it was saved",
            "ddp_model optimizer opt_param_scheduler load_arg strict checkpointing_context skip_load_to_model_and_opt "
            "tp_group pp_group dp_cp_group dp_group expt_dp_group rng_state_key_prefix",
        ),
        Target(
            "_build_sharded_state_dict_metadata",
            "save layers under a key each when only some are trained (--growth-freeze, --growth-method); save the last "
            "checkpoint so that its optimizer state can be grown (--growth-reshardable-end); note the order of "
            "parameters in the optimizer's buckets",
            "args dp_cp_group",
            "megatron.training.checkpointing",
        ),
        Target(
            "_load_global_dist_base_checkpoint",
            "load what layers without Transformer Engine have written into layers with it (--growth-layer-spec auto)",
            "load_dir args rank0 sharded_state_dict iteration release checkpointing_context dp_cp_group expt_dp_group",
            "megatron.training.checkpointing",
        ),
        Target(
            "build_train_valid_test_datasets",
            "read a window of the one sample order (--growth-data-start); feed the evaluation at iteration 0",
            "build_train_valid_test_datasets_provider train_valid_test_num_samples",
        ),
        Target(
            "train",
            "open the metrics at the loaded iteration; evaluate before the first step (--growth-evaluate-at-start)",
            "forward_step_func model optimizer opt_param_scheduler train_data_iterator valid_data_iterator "
            "process_non_loss_data_func config checkpointing_context non_loss_data_func inference_model "
            "p2p_communicator pg_collection",
        ),
        Target(
            "training_log",
            "write one metrics line an iteration, with the loss in full precision (--growth-metrics)",
            "loss_dict total_loss_dict learning_rate iteration loss_scale report_memory_flag skipped_iter grad_norm "
            "params_norm num_zeros_in_grad max_attention_logit pg_collection is_first_iteration "
            "seqlen_squared_sum_in_batch total_real_tokens_in_batch",
        ),
        Target(
            "evaluate",
            "take the validation loss in full precision (--growth-metrics, --growth-stop-below)",
            "forward_step_func data_iterator model process_non_loss_data_func config verbose non_loss_data_func "
            "eval_iters pg_collection p2p_communicator",
        ),
        Target(
            "evaluate_and_print_results",
            "know the iteration that an evaluation belongs to (--growth-metrics, --growth-stop-below)",
            "prefix forward_step_func data_iterator model iteration process_non_loss_data_func config verbose "
            "write_to_tensorboard non_loss_data_func pg_collection p2p_communicator",
        ),
        Target(
            "save_checkpoint_and_time",
            "note every checkpoint in the metrics, and leave its time out of the step time (--growth-metrics)",
            "iteration model optimizer opt_param_scheduler num_floating_point_operations_so_far "
            "checkpointing_context non_persistent_ckpt train_data_iterator",
        ),
        Target(
            "post_training_step_callbacks",
            "act after an iteration, before its checkpoint (adapters that merge and restart; measured memory)",
            "model optimizer opt_param_scheduler iteration prof num_floating_point_operations_since_last_log_event "
            "nsys_nvtx_context",
        ),
    )
}


_bound: list[tuple[str, Callable[[], None]]] = []  # what is replaced, and its undoing


def check_version() -> None:
    """Refuse a Megatron-Core whose internals we do not know.

    Raises:
        UnsupportedError: naming the supported versions.
    """
    package_info = importlib.import_module("megatron.core.package_info")
    if (package_info.MAJOR, package_info.MINOR) != SUPPORTED_SERIES:
        raise UnsupportedError(
            f"megatron_growth does not know Megatron-Core {package_info.__shortversion__}",
            where="megatron.core",
            fix=f"install a supported version: pip install 'megatron-core=={SUPPORTED.replace('x', '*')}'",
        )


def bind(name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace the function of TARGETS with this name by `wrap` of the present one, which has the same signature.

    Raises:
        UnsupportedError: the function has gone, or its signature is not the known one.
    """
    target, found = TARGETS[name], original(name)
    if not callable(found):
        raise _unknown(target, "is not there")
    parameters = " ".join(inspect.signature(found).parameters)
    if parameters != target.parameters:
        raise _unknown(target, f"has the parameters ({parameters}), not ({target.parameters})")
    module = importlib.import_module(target.module)
    _bound.append((name, apply([Replacement(module, name, functools.wraps(found)(wrap(found)), target.why)])))


def original(name: str) -> Any:
    """The present function of Megatron under a name of the table; None when there is none."""
    return getattr(importlib.import_module(TARGETS[name].module), name, None)


def bound() -> tuple[str, ...]:
    """Names of the functions that are replaced now, in the order of replacement."""
    return tuple(name for name, _ in _bound)


def unbind_all() -> None:
    """Put every original back, the last replaced first."""
    while _bound:
        _bound.pop()[1]()


def _unknown(target: Target, problem: str) -> UnsupportedError:
    return UnsupportedError(
        f"{target.module}.{target.name} {problem}; the plugin needs it to {target.why}",
        where=target.module,
        fix=f"use a supported, unmodified Megatron-Core ({SUPPORTED}), or leave out the flag that needs it",
    )
