"""How parameters train: one file or folder a method, registered by name.  `get("freeze:patterns=[embedding.*]")`."""

from megatron_growth.methods.base import (
    MULTIPLE_KEY,
    RULE_KEY,
    SCHEDULE_KEY,
    Cost,
    Factor,
    GroupSettings,
    Method,
    StageFacts,
    TrainedModel,
    check_together,
    cost_of,
    frozen_names,
    group_of,
)
from megatron_growth.methods.registry import METHODS, get, register, written

__all__ = [
    "METHODS",
    "MULTIPLE_KEY",
    "RULE_KEY",
    "SCHEDULE_KEY",
    "Cost",
    "Factor",
    "GroupSettings",
    "Method",
    "StageFacts",
    "TrainedModel",
    "check_together",
    "cost_of",
    "frozen_names",
    "get",
    "group_of",
    "register",
    "written",
]
