"""The parser of all verbs: an unknown option is refused with the nearest one, and so is an option given twice."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from megatron_growth.errors import nearest


class Parser(argparse.ArgumentParser):
    """Takes options by their whole names: an abbreviation means another option as soon as one more is added.

    A verb's parser makes those of its sub-verbs, which are of the same class.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As in argparse, but words that this parser does not know are refused here, where the verb is known."""
        self._refuse_unknown(args or ())
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"too many words: {' '.join(rest)}")
        return found, rest

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Before anything else is looked at: a misspelt option must not be reported as a missing one."""
        options = self._option_string_actions
        for word in words:
            if word == "--" or (self._subparsers and not word.startswith("-")):
                return
            name = word.partition("=")[0]
            if name.startswith("-") and name.lstrip("-")[:1].isalpha() and " " not in word and name not in options:
                longer = [option for option in options if option.startswith(name)]
                known = longer or [option for option in options if option.startswith("--")]
                self.error(f"no option {name}; {nearest(name, known, len(longer) or 1)}")


class _Once(argparse._StoreAction):
    """Stores the value of an option that is given once; of two, the first would be lost without a word."""

    _given: argparse.Namespace | None = None

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        if self._given is namespace:
            raise argparse.ArgumentError(self, f"given twice ({getattr(namespace, self.dest)} and {values})")
        self._given = namespace
        super().__call__(parser, namespace, values, option_string)
