"""Greedy removal with compensation: the sum of its steps is the joint loss; chunks and blocks agree with it; scores keep its order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.data import Batch
from optin_fx.elimination import Elimination, removal_order, scores_of_curve
from optin_fx.execution import accumulate, execution
from optin_fx.testing import published


def _problem(seed: int, columns: int, outputs: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    mix = torch.randn(columns, columns, dtype=torch.float64)
    return torch.randn(outputs, columns, dtype=torch.float64), mix @ mix.T / columns


def _joint(weight: torch.Tensor, covariance: torch.Tensor, gone: list[int]) -> float:
    """tr(W_P [(C^-1)_PP]^-1 W_P^T)."""
    inverse = torch.linalg.inv(covariance)[gone][:, gone]
    return float(torch.trace(weight[:, gone] @ torch.linalg.inv(inverse) @ weight[:, gone].T))


@pytest.mark.parametrize(("per_unit", "chunk"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_losses_add_up_to_the_joint_loss(per_unit: int, chunk: int) -> None:
    weight, covariance = _problem(0, 12)
    columns = torch.arange(12).reshape(-1, per_unit)
    order, added = removal_order([Elimination.of(weight, covariance, columns, 0.0)], len(columns), chunk)
    assert sorted(order) == list(range(len(columns)))
    for count in range(1, len(order) + 1):
        gone = columns[order[:count]].flatten().tolist()
        assert sum(added[:count]) == pytest.approx(_joint(weight, covariance, gone), rel=1e-6)


def test_each_step_takes_the_least() -> None:
    weight, covariance = _problem(1, 8)
    order, added = removal_order([Elimination.of(weight, covariance, torch.arange(8)[:, None], 0.0)], 8, 1)
    for step in range(8):
        base = _joint(weight, covariance, order[:step]) if step else 0.0
        choices = [_joint(weight, covariance, [*order[:step], u]) - base for u in range(8) if u not in order[:step]]
        assert added[step] == pytest.approx(min(choices), rel=1e-6)


def test_consumers_count_together() -> None:
    (w1, c1), (w2, c2) = _problem(2, 6), _problem(3, 6, outputs=2)
    made = [Elimination.of(w, c, torch.arange(6)[:, None], 0.0) for w, c in ((w1, c1), (w2, c2))]
    order, added = removal_order(made, 6, 2)
    assert sum(added[:3]) == pytest.approx(_joint(w1, c1, order[:3]) + _joint(w2, c2, order[:3]), rel=1e-6)


def test_scores_rank_in_the_order_and_sum_to_the_hull() -> None:
    order, added = [3, 0, 2, 1], [1.0, 4.0, 2.0, 9.0]
    scores = scores_of_curve(order, added)
    assert torch.argsort(scores).tolist() == order
    assert scores[torch.tensor(order)].tolist() == pytest.approx([1.0, 3.0, 3.0, 9.0])


@pytest.mark.parametrize("rows", [40, 64, 256])
def test_losses_on_other_rows(rows: int) -> None:
    """Independent columns cannot make up for each other; few rows look as if they could."""
    torch.manual_seed(rows)
    weight, x = torch.randn(3, 32, dtype=torch.float64), torch.randn(rows, 32, dtype=torch.float64)
    columns, units = torch.arange(32)[:, None], torch.arange(32)
    covariance = torch.cov(x.T)
    true = weight.square().sum(0)
    naive = Elimination.of(weight, covariance, columns, 1e-2).losses(units)
    found = Elimination.of(weight, covariance, columns, 1e-2, rows).losses(units)
    assert float((found / true).log().mean().abs()) < 0.5 * float((naive / true).log().mean().abs())


def test_of_a_pair_of_equal_units_one_goes_for_free() -> None:
    """Magnitudes and gradients see two units that matter; with compensation the first of them costs nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight[5], model[0].bias[5] = model[0].weight[4], model[0].bias[4]
        model[2].weight[:, 4:6] *= 4
    data = [torch.randn(64, 6) for _ in range(4)]
    program = ofx.trace(model, (data[0],))
    scores = ofx.score(program, "reconstruction{ridge=1e-6}", data=data)["0:neuron"]
    assert int(scores.argmin()) in (4, 5)
    assert float(scores.min()) < 1e-3 * float(scores.sort().values[1])
    assert float(ofx.score(program, "trajectory-sketch", data=data)["0:neuron"][4:6].min()) > float(scores.median())


def test_the_criterions_values_in_the_order_of_removal() -> None:
    torch.manual_seed(0)
    data = [torch.randn(64, 6) for _ in range(4)]
    program = ofx.trace(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), (data[0],))
    by_curve = ofx.score(program, "reconstruction", data=data)["0:neuron"]
    by_value = ofx.score(program, "reconstruction{allocate=within}", data=data)["0:neuron"]
    assert by_value.argsort().tolist() == by_curve.argsort().tolist()
    alone = ofx.score(program, "trajectory-sketch", data=data)["0:neuron"]
    assert torch.allclose(by_value.sort().values, alone.sort().values)
    assert float(by_curve.sum()) < float(alone.sum())  # refitted neighbours make up for some of it


def test_kinds_that_are_not_asked_for_keep_the_values_of_the_criterion_within() -> None:
    program = published.program("minilm", brief=True)
    data = [ofx.Batch(program.args, program.kwargs)]
    alone, both = (ofx.score(program, text, data=data) for text in ("trajectory-sketch", "reconstruction"))
    some = ofx.score(program, "reconstruction{kinds=neuron}", data=data)
    kinds = {g.name: g.kind for g in ofx.group(program).free}
    assert {"head", "neuron"} <= set(kinds.values())
    for name, kind in kinds.items():
        assert torch.equal(some[name], (both if kind == "neuron" else alone)[name])
    heads = [name for name, kind in kinds.items() if kind == "head"]
    assert not any(torch.equal(both[name], alone[name]) for name in heads)


class _Interrupted(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("loop", ["sensitivities", "covariances"])
def test_an_interrupted_score_goes_on_where_it_was(loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of different sizes, and more rows than are used, so that what is drawn must be the same again."""
    torch.manual_seed(0)
    data = [torch.randn(size, 3, 6) for size in (8, 5, 8, 3)]
    program = ofx.trace(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2)), (data[0],))
    text = "reconstruction{rows=7, within=magnitude}"
    whole = ofx.score(program, text, data=data)
    ran: list[int] = []
    limit = 2

    def counting(label: str, items: Sequence[Batch], step: Callable[[int, Batch], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        def counted(number: int, item: Batch) -> dict[str, torch.Tensor]:
            if label == loop:
                if len(ran) == limit:
                    raise _Interrupted
                ran.append(number)
            return step(number, item)

        return accumulate(label, items, counted)

    module = "optin_fx.sensitivity" if loop == "sensitivities" else "optin_fx.passes.score_reconstruction"
    monkeypatch.setattr(f"{module}.accumulate", counting)
    with execution(partial=tmp_path):
        with pytest.raises(_Interrupted):
            ofx.score(program, text, data=data)
        limit = 4
        resumed = ofx.score(program, text, data=data)
    assert ran == [0, 1, 2, 3]
    for name in whole:
        assert torch.equal(resumed[name], whole[name])
