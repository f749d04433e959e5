"""Imports that the fork server of `testing.distributed` makes once for all ranks; no rank sees a GPU."""

import os
import warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""

from megatron_growth.backend import cpu

with warnings.catch_warnings():
    # Megatron warns a dozen times that Transformer Engine and Apex are absent.
    warnings.simplefilter("ignore")
    cpu.install()
    # After install(): Megatron compiles some functions while it is imported.
    import megatron.training.argument_utils
    import megatron.training.training  # noqa: F401
