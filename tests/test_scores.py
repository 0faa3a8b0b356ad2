"""Scores: saved without pickle, read back whole, refused when they are something else; and the simple criteria."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.analysis import analyse
from optin_fx.dims import atom, product, total
from optin_fx.errors import LoadError, ScoreError
from optin_fx.units import unit_of_position


@pytest.fixture(scope="module")
def program() -> ofx.Program:
    torch.manual_seed(0)
    return ofx.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), (torch.rand(2, 4),))


def test_save_and_load(program: ofx.Program, tmp_path: Path) -> None:
    scores = ofx.score(program, "fisher", data=[torch.rand(7, 4)], keep_samples=True)
    back = ofx.Scores.load(scores.save(tmp_path / "scores.safetensors"))
    assert back.method == scores.method
    assert back.fingerprint == program.fingerprint
    assert list(back)
    assert set(back) == set(scores)
    assert all(torch.equal(back[name], scores[name]) for name in scores)
    assert all(torch.equal(back.extra[name], scores.extra[name]) for name in scores.extra)
    assert len(scores.extra) == 2
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(LoadError, match="not a file of scores"):
        ofx.Scores.load(tmp_path / "other")
    with pytest.raises(LoadError, match="not a file of scores"):
        ofx.Scores.load(tmp_path / "missing")


def test_an_unknown_group_is_named(program: ofx.Program) -> None:
    with pytest.raises(ScoreError, match="no scores for the group 'nobody'"):
        ofx.score(program, "random")["nobody"]


def test_magnitude_is_the_norm_of_all_slices(program: ofx.Program) -> None:
    scores = ofx.score(program, "magnitude")
    first, second = program.tensors["0.weight"].double(), program.tensors["2.weight"].double()
    expected = (first.square().sum(1) + second.square().sum(0)).sqrt().detach()
    assert torch.allclose(scores["0:neuron"], expected / expected.mean())


def test_random_scores_repeat(program: ofx.Program) -> None:
    assert torch.equal(ofx.score(program, "random", seed=3)["0:neuron"], ofx.score(program, "random", seed=3)["0:neuron"])
    assert not torch.equal(ofx.score(program, "random", seed=3)["0:neuron"], ofx.score(program, "random", seed=4)["0:neuron"])


def test_labels_are_used_when_given(program: ofx.Program) -> None:
    x, y = torch.rand(7, 4), torch.randint(0, 2, (7,))
    scores = ofx.score(program, "fisher", data=[ofx.Batch((x,), {}, y)], labels="given")
    model = nn.Sequential(*[nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)])
    model.load_state_dict(dict(program.tensors.items()))
    total_ = torch.zeros(6, dtype=torch.float64)
    for xi, yi in zip(x, y, strict=True):  # by hand, sample by sample
        gate = torch.ones(6, requires_grad=True)
        loss = nn.functional.cross_entropy(model[4](torch.relu(model[2](torch.relu(model[0](xi)) * gate)))[None], yi[None])
        total_ += torch.autograd.grad(loss, gate)[0].double().square()
    assert torch.allclose(scores["0:neuron"], 0.5 * total_ / 7, rtol=1e-5)


def test_units_of_positions() -> None:
    h, d, x = atom(3), atom(2), atom(4)
    assert unit_of_position(product([h, d]), h).tolist() == [0, 0, 1, 1, 2, 2]
    assert unit_of_position(product([h, d]), d).tolist() == [0, 1, 0, 1, 0, 1]
    assert unit_of_position(total([x, d, x]), d).tolist() == [-1] * 4 + [0, 1] + [-1] * 4
    pair = total([d, d])
    assert unit_of_position(product([h, pair]), d).tolist() == [0, 1, 0, 1] * 3


def test_layers_and_consumers_are_named_not_held(program: ofx.Program) -> None:
    consumers = analyse(program).consumers()
    assert [c.node for c in consumers] == ["linear", "linear_1", "linear_2"]
    assert all(isinstance(c.node, str) for c in consumers)
