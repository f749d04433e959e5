"""The table of all operators, as docs/operators.md prints it: `python ci/operators_page.py`."""

from __future__ import annotations

import inspect
from dataclasses import fields

from megatron_growth.operators.base import Operator
from megatron_growth.operators.registry import KINDS, REGISTRIES, names

HEADER = "| name | in one sentence | exact | parameters | source |\n|---|---|---|---|---|"


def table(kind: str) -> str:
    """A Markdown table of the operators of one kind, in the order of their names.

    Args:
        kind: "width" or "depth".
    """
    return "\n".join([HEADER, *(_row(REGISTRIES[kind].find(name)) for name in names(kind))])


def _row(cls: type[Operator]) -> str:
    sentence = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    parameters = ", ".join(f"`{f.name}={f.default}`" for f in fields(cls)) or "–"
    return f"| `{cls.name}` | {sentence} | {cls.exact} | {parameters} | {cls.paper} |"


if __name__ == "__main__":
    for operator_kind in KINDS:
        print(f"{table(operator_kind)}\n")
