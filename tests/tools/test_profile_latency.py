"""The profile by operator: what the engines' profilers say of a small model, and the page that holds it."""

from __future__ import annotations

from pathlib import Path

import profile_latency
import pytest
import torch
from latency import models
from torch import nn


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page with text of a person's above the tables, and a small model called tiny."""
    net = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 8))
    monkeypatch.setitem(models.MODELS, "tiny", models.Bench(lambda: (net, (torch.randn(2, 64),), {}), "64 numbers", 0.95))
    path = tmp_path / "page.md"
    path.write_text(f"# Reasons\n\nWritten by hand.\n\n{profile_latency.MARK}\nan older table\n")
    monkeypatch.setattr(profile_latency, "PAGE", path)
    return path


@pytest.mark.parametrize(("target", "operator"), [("onnxruntime:cpu", "Gemm"), ("aotinductor", "linear")])
def test_operators_of_both_programs_are_timed(page: Path, target: str, operator: str) -> None:
    if target.startswith("onnxruntime"):
        pytest.importorskip("onnxruntime")
    profile_latency.main(["tiny:4:60", "--targets", target, "--runs", "3", "--write"])
    text = page.read_text()
    assert text.startswith("# Reasons\n\nWritten by hand.\n")
    assert "an older table" not in text
    assert f"### tiny, {target}, batch 4\n\nKept: " in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == ["operator", "dense ms", "60 % ms", "left", "share of the dense time"]
    assert any(operator in row[0] for row in rows)
    assert rows[-1][0] == "**all**"
    assert all(float(row[2]) >= 0 for row in rows[2:])


@pytest.mark.parametrize("text", ["tinier", "tiny:1:2:3"])
def test_a_case_that_is_none(page: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        profile_latency.main([text])
    assert "is not MODEL[:BATCH[:PERCENT]] with a model of " in capsys.readouterr().err
