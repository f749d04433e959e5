"""Which saved parameter group a group of this run continues, and with which learning rates.

Megatron finds a saved group by values that include its peak learning rate, so a stage with another rate cannot load the
last stage's optimizer.  Here a group is known by what it is: its weight decay and the like, and the rule, multiple and
schedule that made it; never by its place in a list.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from megatron.core.optimizer.optimizer import param_group_identifier_keys

from megatron_growth.errors import RunError
from megatron_growth.methods import MULTIPLE_KEY, RULE_KEY, SCHEDULE_KEY

Group = dict[str, Any]

WHICH_SCHEDULE = (
    "--override-opt_param-scheduler takes this run's, --use-checkpoint-opt_param-scheduler the checkpoint's"
)
RATES = ("max_lr", "min_lr", SCHEDULE_KEY)
IDENTITY = (RULE_KEY, MULTIPLE_KEY, SCHEDULE_KEY)
_STRUCTURE = tuple(key for key in param_group_identifier_keys if key not in RATES)


def match_group(group: Group, saved_groups: Sequence[Group], args: argparse.Namespace) -> Group:
    """What a group of this run loads: its saved counterpart, with the learning rates that the flags ask for.

    Raises:
        RunError: the rates differ and neither flag says which to take, or the checkpoint's are asked for and it has
            none for this group.
    """
    saved = counterpart(group, saved_groups)
    takes_saved = args.use_checkpoint_opt_param_scheduler
    where = f"now {_described(group)}; in the checkpoint {' / '.join(map(_described, saved_groups))}"
    if saved is None and takes_saved:
        raise RunError(
            "the checkpoint has no learning rate for a parameter group of this run",
            where=where,
            fix="--override-opt_param-scheduler takes this run's",
        )
    same = saved is not None and _same(saved, group, RATES)
    if not (same or takes_saved or args.override_opt_param_scheduler):
        raise RunError(
            "a parameter group of this run has other learning rates than the checkpoint's",
            where=where,
            fix=WHICH_SCHEDULE,
        )
    rates = saved if takes_saved and saved is not None else group
    own = {key: group[key] for key in (*_STRUCTURE, "default_config") if key in group}
    kept = {key: value for key, value in (saved or saved_groups[0]).items() if key not in (*RATES, *IDENTITY)}
    return {**kept, **own, **{key: rates[key] for key in (*RATES, *IDENTITY) if key in rates}}


def counterpart(group: Group, saved_groups: Sequence[Group]) -> Group | None:
    """The saved group that matches this one in all but its rates; else the only one of the same rule."""
    alike = [saved for saved in saved_groups if _same(saved, group, _STRUCTURE)]
    for keys in (IDENTITY, (RULE_KEY,)):
        found = [saved for saved in alike if _same(saved, group, keys)]
        if len(found) == 1:
            return found[0]
    return None


def _same(one: Group, other: Group, keys: Sequence[str]) -> bool:
    return all(one.get(key) == other.get(key) for key in keys)


def _described(group: Group) -> str:
    """Rule and rates of a group, for a message."""
    rule = [f"rule {group[RULE_KEY]!r}"] if group.get(RULE_KEY) else []
    return ", ".join([*rule, *(f"{key} {group[key]}" for key in RATES if group.get(key) is not None)])
