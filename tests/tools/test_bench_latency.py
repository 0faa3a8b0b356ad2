"""The latency table's tool: cells that are kept and resumed, the table and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import bench_latency
import pytest
import torch
from latency import models
from latency.cells import Cell
from torch import nn


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for a run over one small model."""
    net = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
    monkeypatch.setitem(models.MODELS, "tiny", models.Bench(lambda: (net, (torch.randn(2, 32),), {}), "32 numbers", 0.95))
    return [
        "--models", "tiny", "--targets", "eager", "--batches", "1", "8", "--shares", "50", "--align", "8", "--seconds", "0.1",
        "--cells", str(tmp_path / "cells"), "--out", str(tmp_path),
    ]  # fmt: skip


def test_cells_are_kept_and_resumed(tool: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert bench_latency.main(tool) == 0
    files = sorted((tmp_path / "cells").iterdir())
    assert [file.name for file in files] == ["tiny-eager-b1-t1.json", "tiny-eager-b8-t1.json"]
    table = (tmp_path / "latency.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| tiny")]
    assert len(rows) == 2
    assert any(f"0.95 {word}" in rows[1] for word in ("met", "open", "missed"))
    assert not any(f"0.95 {word}" in rows[0] for word in ("met", "open", "missed"))  # goals are for batch 8
    assert "goal met in" in table
    assert "Protocol: target eager:cpu" in table
    assert "<svg" in (tmp_path / "latency.svg").read_text()
    stored = [file.read_text() for file in files]
    assert {item["against"] for item in json.loads(stored[0])["report"]["agreements"]} == {"its program", "reference"}

    capsys.readouterr()
    assert bench_latency.main(tool) == 0
    assert "tiny |" not in capsys.readouterr().out  # nothing was measured again
    assert [file.read_text() for file in files] == stored
    files[0].write_text("{")  # torn
    assert bench_latency.main(tool) == 0
    assert files[1].read_text() == stored[1]
    assert json.loads(files[0].read_text())["cell"]["batch"] == 1


def test_a_cell_of_other_settings_is_measured_again(tool: list[str], tmp_path: Path) -> None:
    assert bench_latency.main([*tool, "--batches", "1"]) == 0
    cell = Cell("tiny", "eager", 1, (50,), 8, 1)
    assert cell.read(tmp_path / "cells") is not None
    assert Cell("tiny", "eager", 1, (50,), 1, 1).read(tmp_path / "cells") is None


def test_without_cells_there_is_no_table(tool: list[str], tmp_path: Path) -> None:
    assert bench_latency.main([*tool, "--table-only"]) == 1
    assert not (tmp_path / "latency.md").exists()


def test_every_model_of_the_table_has_a_goal() -> None:
    assert {bench.goal for name, bench in models.MODELS.items() if name not in ("resnet50", "efficientnet-b0")} == {0.95}
    assert models.MODELS["resnet50"].goal == models.MODELS["efficientnet-b0"].goal == 0.8
