"""A tiny model with data in four formats, and one run of it that nothing has disturbed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_growth.posttrain import run as running
from megatron_growth.posttrain.examples import TRAIN, VALID
from megatron_growth.posttrain.run import posttrain
from tests.unit.posttrain import runs, tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and data in four formats."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("posttrain")
    tiny.write_model(folder / "model")
    (folder / "alpaca.json").write_text(json.dumps(tiny.alpaca(24)))
    tiny.jsonl(folder / "chat.jsonl", tiny.ultrachat(24))
    tiny.jsonl(folder / "pairs.jsonl", tiny.ultrafeedback(24))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(tiny.ultrachat(24)), folder / "chat.parquet")
    return folder


@pytest.fixture
def kept_data(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict]]:
    """What a run was trained on, taken before it is removed."""
    found: dict[str, list[dict]] = {}
    gather = running.finish.gather

    def look(work, request, processes):
        for name in (TRAIN, VALID):
            found[name] = runs.rows(work.data / name) if (work.data / name).is_file() else []
        gather(work, request, processes)

    monkeypatch.setattr(running.finish, "gather", look)
    return found


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    """A run of six steps from beginning to end."""
    posttrain(runs.request(place / "model", place / "chat.jsonl"), place / "undisturbed")
    return place / "undisturbed"
