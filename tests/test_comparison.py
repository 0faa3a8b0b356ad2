"""Scores beside each other, on one scale, and on the graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.annotation import annotated_scores, listing, notes_on
from optin_fx.comparison import compare, kind_of, plot, top_agreement
from optin_fx.costs import cost_model
from optin_fx.errors import ScoreError


@pytest.fixture
def program() -> ofx.Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10),
                        nn.ReLU(), nn.Linear(10, 2))  # fmt: skip
    return ofx.trace(net, (torch.randn(3, 3, 4, 4),))


def scores(program: ofx.Program, change: Callable[[torch.Tensor], torch.Tensor] = lambda v: v) -> ofx.Scores:
    generator = torch.Generator().manual_seed(1)
    values = {g.name: change(1 + torch.rand(g.extent, generator=generator, dtype=torch.float64)) for g in ofx.group(program).free}
    return ofx.Scores(values, "score-test", program.fingerprint)


WAYS = {
    "mean": lambda v: v / v.mean(), "max": lambda v: v / v.max(), "sum": lambda v: v / v.sum(),
    "z": lambda v: (v - v.mean()) / v.std(correction=0), "rank": lambda v: (v.argsort().argsort().double() + 0.5) / len(v),
}  # fmt: skip


@pytest.mark.parametrize("how", list(WAYS))
def test_normalising_within_groups(program: ofx.Program, how: str) -> None:
    raw = scores(program)
    found = raw.normalised(how, program)
    assert not found.additive
    assert raw.additive
    for name in raw:
        assert torch.allclose(found[name], WAYS[how](raw[name]))


def test_normalising_by_kind_and_by_cost(program: ofx.Program) -> None:
    raw = scores(program)
    by_kind, by_cost = raw.normalised("kind", program), raw.normalised("flops", program)
    kinds = {g.name: g.kind for g in ofx.group(program).free}
    assert len(set(kinds.values())) == 2
    for kind in set(kinds.values()):
        pooled = torch.cat([by_kind[name] for name in raw if kinds[name] == kind])
        assert float(pooled.mean()) == pytest.approx(1.0)
    model = cost_model(program)
    for name, extent in model.dense.items():
        one_less = {other: list(range(e - (other == name))) for other, e in model.dense.items()}
        saved = model.cost().flops - model.cost(one_less).flops
        assert torch.allclose(raw[name] / by_cost[name], torch.full((extent,), saved, dtype=torch.float64))
    assert raw.normalised("none", program) is raw
    with pytest.raises(ScoreError, match="cannot be normalised by 'luck'"):
        raw.normalised("luck", program)


def test_a_pass_normalises(program: ofx.Program) -> None:
    data = [torch.randn(4, 3, 4, 4)]
    plain, ranked = ofx.score(program, "fisher", data=data), ofx.score(program, "fisher{normalise=rank}", data=data)
    assert all(torch.equal(ranked[name], plain.normalised("rank", program)[name]) for name in plain)
    assert plain.additive
    assert not ranked.additive


def test_compare(program: ofx.Program) -> None:
    raw = scores(program)
    same, opposite = compare(raw, scores(program, lambda v: v**3)), compare(raw, scores(program, lambda v: -v))
    assert same.overall.spearman == pytest.approx(1.0)
    assert same.overall.units == sum(len(raw[name]) for name in raw)
    assert set(same.overall.top.values()) == {1.0}
    assert opposite.overall.spearman == pytest.approx(-1.0)
    assert opposite.overall.top[0.5] == pytest.approx(0.0)
    assert {kind: found.groups for kind, found in same.by_kind.items()} == {"filter": 2, "neuron": 1}
    assert "filter" in str(same)
    constant = compare(raw, scores(program, torch.ones_like))
    assert constant.overall.spearman is None
    assert " - " in str(constant)


def test_compare_refuses_other_models(program: ofx.Program) -> None:
    other = ofx.Scores({}, "score-test", "0123")
    with pytest.raises(ScoreError, match="different models"):
        compare(scores(program), other)
    with pytest.raises(ScoreError, match="no group in common"):
        compare(scores(program), ofx.Scores({"x": torch.ones(2)}, "score-test", program.fingerprint))


def test_plot(program: ofx.Program, tmp_path: Path) -> None:
    path = plot(scores(program), scores(program, lambda v: v**2), tmp_path / "plot.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_top_agreement_and_kinds() -> None:
    assert top_agreement(torch.tensor([4.0, 3, 2, 1]), torch.tensor([4.0, 1, 3, 2]), 0.5) == 0.5
    assert kind_of("encoder.layer.0:head#2") == "head"


def test_annotations_survive_saving_and_loading(program: ofx.Program, tmp_path: Path) -> None:
    text = str(program.graph_module.graph)
    found = ofx.score(program, "wanda", data=[torch.randn(4, 3, 4, 4)])
    assert str(program.graph_module.graph) == text
    notes = notes_on(program)
    assert set(notes) == {"conv2d_1", "linear", "linear_1"}
    program.save(tmp_path / "scored.pt2")
    back = ofx.load(tmp_path / "scored.pt2")
    assert notes_on(back) == notes
    again = annotated_scores(back)
    assert again is not None
    assert again.method == "score-wanda"
    for name in found:
        assert torch.allclose(again[name], found[name], rtol=1e-5)
    assert "%conv2d_1" in listing(back)
    assert f"max {float(found['0:filter'].max()):.3e}" in listing(back)
    exported = torch.export.load(tmp_path / "scored.pt2")  # without optin-fx
    assert any("optin_fx_scores" in (n.meta.get("custom") or {}) for n in exported.graph.nodes)


def test_later_scores_replace_earlier_ones(program: ofx.Program) -> None:
    ofx.score(program, "magnitude")
    ofx.score(program, "random")
    assert {facts["method"] for note in notes_on(program).values() for facts in note.values()} == {"score-random"}
    bare = ofx.trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 3),))
    assert notes_on(bare) == {}
    assert annotated_scores(bare) is None
    assert listing(bare) == "no node carries scores"
