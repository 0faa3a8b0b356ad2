"""The zoo's tool: results are kept, a failure is a row, shares are what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import zoo as tool
from torch import nn

import optin_fx as ofx
from optin_fx.testing import zoo
from optin_fx.testing.survey import inner_share, survey


def test_a_model_is_surveyed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.select(family="plain")[0]
    page = tmp_path / "zoo.md"
    (tmp_path / "random-graphs.jsonl").write_text('{"seed": 3, "free": 2}\n{"seed": 9, "error": "no"}\n')
    for _ in range(2):
        with pytest.raises(typer.Exit) as done:
            tool.main([entry.name], plans=1, cache=tmp_path, write=page)
        assert done.value.exit_code == 0
        monkeypatch.setattr(tool, "run", None)  # the second time, nothing is run
    facts = json.loads((tmp_path / "small-1" / f"{entry.name}.json").read_text())
    assert facts["nodes"] > 0
    assert len(facts["errors"]) == 1
    assert f"| {entry.name} | {facts['nodes']} |" in page.read_text()
    assert "architectures were run: 1 of 1 are exact" in page.read_text()
    assert "2 seeds between 3 and 9, 2 prunable groups, two random plans each. Seeds that failed: 9." in page.read_text()
    assert entry.name in capsys.readouterr().out


def test_a_failure_is_a_row(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("no such thing\nand more")

    tool.run(tmp_path / "a.json", fail)
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts == {"failed": "ValueError: no such thing"}
    assert not tool.good(facts)
    assert not tool.good({"errors": [1e-9, 1e-3]})


def test_shares() -> None:
    """The stem is held by the input, the head by the output; inside, one unit of 16 is left on both sides of the middle layer."""
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    program = ofx.trace(model, (torch.randn(2, 4),))
    found = survey(program, plans=1)
    assert found.inner_share == inner_share(program) == pytest.approx(1 - 1 / 256)
    assert found.flops_share == pytest.approx(1 - (4 + 1 + 3) / (4 * 16 + 256 + 16 * 3))
    assert found.kinds == {"neuron": 2}
