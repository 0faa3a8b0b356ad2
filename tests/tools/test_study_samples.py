"""`tools/study_samples.py`: totals by sample, and what the loudest have of them."""

from __future__ import annotations

import pytest
import torch
from study_samples import share_of_loudest, totals
from torch import nn

import optin_fx as ofx


def test_totals_are_what_the_scores_are_means_of() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3))
    program = ofx.trace(model, (torch.randn(5, 4),))
    scores = ofx.score(program, "fisher", data=[torch.randn(5, 4), torch.randn(3, 4)], keep_samples=True, draws=2)
    found = totals(scores)
    assert found.shape == (16,)
    assert float(0.5 * found.mean()) == pytest.approx(sum(float(values.sum()) for values in scores.values.values()), rel=1e-5)


def test_the_loudest_have_their_share() -> None:
    found = torch.tensor([1.0, 7.0, 1.0, 1.0])
    assert share_of_loudest(found, 0.25) == pytest.approx(0.7)
    assert share_of_loudest(found, 0.01) == pytest.approx(0.7)  # one at least
    assert share_of_loudest(found, 1.0) == pytest.approx(1.0)
