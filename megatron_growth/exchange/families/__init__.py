"""The architectures of transformers that Megatron has, too: one file each, registered by transformers' `model_type`.

    @register
    @dataclass(frozen=True)
    class Mine(Family): ...

An outside package declares an entry point in the group `megatron_growth.families`; see `megatron_growth.registry`.
"""

from megatron_growth.exchange.families.base import Family
from megatron_growth.exchange.families.registry import FAMILIES, named, of_shape, register

__all__ = ["FAMILIES", "Family", "named", "of_shape", "register"]
