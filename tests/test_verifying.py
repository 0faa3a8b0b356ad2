"""`verify`: what it measures, and what it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx import rulebook, shrink, verifying
from optin_fx.attributes import assign
from optin_fx.errors import VerifyError
from optin_fx.verifying import Agreement, agreement


def test_relative_to_the_largest_entry_of_the_same_output() -> None:
    found = agreement((torch.tensor([1.0, -4.0]), torch.tensor([2])), (torch.tensor([1.0, -4.002]), torch.tensor([9])))
    assert found.max_abs == pytest.approx(0.002, rel=1e-3)
    assert found.max_rel == pytest.approx(0.002 / 4.002, rel=1e-3)
    assert not found
    assert agreement(torch.zeros(2), torch.zeros(2)).equal


def test_the_coarsest_dtype_gives_the_tolerance() -> None:
    one = torch.ones(2)
    assert agreement((one.double(),), (one.double(),)).tolerance == 1e-9
    assert agreement((one.double(), one), (one.double(), one)).tolerance == 1e-4
    assert agreement(one.bfloat16(), one.bfloat16()).tolerance == 1e-1


def test_infinities_and_nans() -> None:
    bad = torch.tensor([1.0, float("nan")])
    assert agreement(bad, bad).equal
    assert agreement(bad, torch.ones(2)).max_rel == float("inf")


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        ((torch.ones(2),), (), "1 floating outputs against 0\n  so  they cannot be compared\n  fix compare like with like"),
        (torch.ones(2), torch.ones(3), "outputs of shapes (2,) and (3,)\n  so  they cannot be compared\n  fix compare like with like"),
    ],
)
def test_what_cannot_be_compared(ours: object, theirs: object, text: str) -> None:
    with pytest.raises(VerifyError) as error:
        agreement(ours, theirs)
    assert str(error.value) == text


def test_the_text_of_an_agreement() -> None:
    assert (
        str(Agreement(1e-7, 2e-7, 1e-4, 0.5)) == "equal: max abs 1.00e-07, max rel 2.00e-07 (tolerance 1e-04), moved from dense by 5.00e-01"
    )
    assert str(Agreement(1.0, 2.0, 1e-4, 0.5)).startswith("NOT EQUAL: ")


def test_a_wrong_rule_is_found_out() -> None:
    op = torch.ops.aten.softmax.int
    program = ofx.trace(nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2)), (torch.randn(2, 3),))
    right = rulebook.find(op)
    assert right is not None
    rulebook.forget(op)
    try:
        rulebook.rule(op, mapping="... -> ...")
        plan = ofx.make_plan(program, {"0:neuron": [0, 2]})
        found = ofx.verify(program, plan)
        assert not found
        assert found.moved > 1e-3
        with pytest.raises(VerifyError) as error:
            ofx.verify(program, plan, strict=True)
    finally:
        rulebook._RULES[op] = right
    assert str(error.value) == (
        f"the smaller program differs from the masked one by {found.max_rel:.2e} (relative)\n"
        "  so  the rewrite is not exact for this model, and its result must not be used\n"
        "  fix optin_fx.shrink.bisect(program, plan) names the first node that differs; please report it"
    )


class Ranked(nn.Module):
    """Rows in the order of their scores, of which thousands lie so close together that rounding decides between some."""

    def __init__(self, by: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by = by
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.body(x)
        scores = rows[:, 0]
        values, order = scores.topk(len(rows) - 1) if self.by == "topk" else (scores, scores.argsort())
        if self.by == "argsort, then changed":
            scores.add_(1)
        return rows[order], values


@pytest.mark.parametrize("by", ["topk", "argsort", "argsort, then changed"])
def test_choices_that_rounding_decides(by: str) -> None:
    program = ofx.trace(Ranked(by).eval(), torch.randn(20_000, 8))
    plan = ofx.random_plan(program, seed=0)
    found = ofx.verify(program, plan)
    assert shrink.bisect(program, plan) is None
    assert found.rounding is not None
    assert found.rounding > 1e-2
    assert found.max_rel < 1e-5
    assert "near ties" in str(found)


def test_the_same_choices_do_not_excuse_a_wrong_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    program = ofx.trace(Ranked("argsort").eval(), torch.randn(20_000, 8))
    plan = ofx.random_plan(program, seed=0)
    whole = verifying.mask_graph

    def wrong(*args: object, **kwargs: object) -> torch.fx.GraphModule:
        module = whole(*args, **kwargs)
        bias = next(name for name, value in module.named_parameters() if value.shape == (3,))
        assign(module, bias, nn.Parameter(module.get_parameter(bias) + 1e-4))
        return module

    monkeypatch.setattr(verifying, "TOLERANCE", {torch.float64: 1e-9, torch.float32: 1e-6})
    assert ofx.verify(program, plan)
    monkeypatch.setattr(verifying, "mask_graph", wrong)
    found = ofx.verify(program, plan)
    assert not found
    assert found.rounding is None
