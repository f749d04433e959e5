"""Megatron's parameter names and what their rows and columns are: the one table."""

from megatron_growth.layout.names import ModelKey, canonical, full_name, parse_key, spellings
from megatron_growth.layout.parameters import PARAMETERS, Parameter, lookup, parameters_of

__all__ = [
    "PARAMETERS",
    "ModelKey",
    "Parameter",
    "canonical",
    "full_name",
    "lookup",
    "parameters_of",
    "parse_key",
    "spellings",
]
