"""`optin-fx measure`: grids, the picture, and the comparison with the masked dense model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.cli.application import run


class Net(nn.Module):
    """Two dynamic dims and one group."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """dense.pt2, small.pt2 and plan.json."""
    sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=64)}
    dense = ofx.trace(Net(), (torch.randn(2, 4, 8),), dynamic_shapes=(sizes,))
    plan = ofx.random_plan(dense, 0.5)
    dense.save(tmp_path / "dense.pt2")
    ofx.rewrite(dense, plan).save(tmp_path / "small.pt2")
    (tmp_path / "plan.json").write_text(plan.to_json())
    return [str(tmp_path / name) for name in ("dense.pt2", "small.pt2")]


def test_a_grid_a_picture_and_the_masked_model(files: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    plot, plan = tmp_path / "latency.svg", tmp_path / "plan.json"
    sizes = ["--rows", "1", "--rows", "3", "--lengths", "5"]
    assert run(["measure", *files, "--target", "eager:cpu", *sizes, "--plan", str(plan), "--plot", str(plot), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert [(item["batch"], item["length"]) for item in report["latencies"] if item["candidate"] == "after"] == [(1, 5), (3, 5)]
    masked = [item for item in report["agreements"] if item["against"] == "reference"]
    assert len(masked) == 2
    assert max(item["max_rel"] for item in masked) < 1e-5
    assert "<svg" in plot.read_text()


def test_a_cpu_has_no_cuda_graphs(files: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["measure", *files, "--target", "eager:cpu", "--cuda-graphs"]) == 2
    assert "error: a run of eager:cpu cannot be captured as a CUDA graph" in capfd.readouterr().err
