"""What a part of an outside package raises: a message that names the part, its package and the place."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from megatron_growth.cli.main import main
from megatron_growth.errors import part_of, unexpected
from megatron_growth.methods import METHODS
from megatron_growth.operators import build_map, get
from megatron_growth.operators.registry import REGISTRIES
from megatron_growth.run import failures
from megatron_growth.schedules.registry import SCHEDULES
from megatron_growth.shape import ModelShape
from tests import registries

PARTS = """
from dataclasses import dataclass
from megatron_growth import methods, operators, schedules

@operators.register
@dataclass(frozen=True)
class Width(operators.WidthOperator):
    name = "faulty-width"
    def maps(self, source, target, seed):
        return {}["an index"]

@operators.register
@dataclass(frozen=True)
class Depth(operators.DepthOperator):
    name = "faulty-depth"
    def layers(self, old, new, seed):
        raise ValueError("no layers today")

@methods.register
@dataclass(frozen=True)
class Taker(methods.Method):
    name = "faulty-method"
    def select(self, names, frozen=()):
        return names[10**9]
    @classmethod
    def owns(cls, key):
        raise TypeError("whose?")
    @property
    def leaves_plain_model(self):
        raise TypeError("plain?")

@schedules.register
@dataclass(frozen=True)
class Rate(schedules.Schedule):
    name = "faulty-schedule"
    def after_warmup(self, step):
        return 1 / 0
"""
SMALL = ModelShape(hidden=16, ffn=32, layers=2, heads=2, query_groups=2, head_dim=8, vocab=64)
LARGE = ModelShape(hidden=32, ffn=64, layers=4, heads=4, query_groups=4, head_dim=8, vocab=64)


@pytest.fixture
def package(tmp_path):
    """An installed package of faulty parts."""
    (tmp_path / "faulty_parts.py").write_text(PARTS)
    points = {f"megatron_growth.{group}": {"mine": "faulty_parts"} for group in ("operators", "methods", "schedules")}
    with registries.package(tmp_path, "faulty", points, *REGISTRIES.values(), METHODS, SCHEDULES):
        yield


def of(what: str) -> str:
    return f"{what}, package faulty 1.2)"


def test_each_kind_of_part_says_whose_an_exception_is_and_keeps_its_type(package):
    with pytest.raises(KeyError) as width:
        build_map(SMALL, LARGE, get("width", "faulty-width"), get("depth", "stack"))
    with pytest.raises(ValueError, match="no layers today") as depth:
        build_map(SMALL, LARGE, get("width", "aki"), get("depth", "faulty-depth"))
    with pytest.raises(ZeroDivisionError) as rate:
        SCHEDULES.get("faulty-schedule", peak=1.0, iterations=5).lr(2)
    method = METHODS.get("faulty-method")
    with pytest.raises(TypeError, match="whose") as owns:
        type(method).owns("key")
    with pytest.raises(TypeError, match="plain") as plain:
        _ = method.leaves_plain_model
    assert part_of(width.value) == of("width operator 'faulty-width' (faulty_parts.Width")
    assert part_of(depth.value) == of("depth operator 'faulty-depth' (faulty_parts.Depth")
    assert part_of(rate.value) == of("schedule 'faulty-schedule' (faulty_parts.Rate")
    assert part_of(owns.value) == part_of(plain.value) == of("method 'faulty-method' (faulty_parts.Taker")
    assert "raised by the width operator" in width.value.__notes__[0]
    assert str(unexpected(pickle.loads(pickle.dumps(width.value)))) == str(unexpected(width.value))  # to a parent


def test_a_command_prints_one_message_and_with_debug_the_whole_traceback(package, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: nano-progressive\nname: mine\ngrowth: {width: faulty-width}\n")
    assert main(["plan", str(recipe)]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert of("the width operator 'faulty-width' (faulty_parts.Width") + " failed: KeyError: 'an index'" in said
    assert "faulty_parts.py:10, in maps" in said
    assert main(["plan", str(recipe), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_rank_names_the_part_and_the_log_has_the_rest(package, tmp_path, monkeypatch):
    monkeypatch.setenv(failures.FAILURES_VARIABLE, str(tmp_path / "failures"))
    with pytest.raises(IndexError), failures.recorded():
        METHODS.get("faulty-method").select(("a",))
    failure = failures.first(tmp_path / "failures")
    error = failures.as_error("small", failure, Path("log.txt"), 1)
    assert of("rank 0 in the method 'faulty-method' (faulty_parts.Taker") + ": IndexError: tuple index" in error.what
    assert "read the log" in error.fix
