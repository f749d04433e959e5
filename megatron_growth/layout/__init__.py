"""Megatron's parameter names and what their rows and columns are: the one table, and the sides it yields."""

from megatron_growth.layout.names import ModelKey, canonical, full_name, parse_key, spellings
from megatron_growth.layout.parameters import PARAMETERS, Parameter, lookup, parameters_of
from megatron_growth.layout.sides import gradient_sides, sides

__all__ = [
    "PARAMETERS",
    "ModelKey",
    "Parameter",
    "canonical",
    "full_name",
    "gradient_sides",
    "lookup",
    "parameters_of",
    "parse_key",
    "sides",
    "spellings",
]
