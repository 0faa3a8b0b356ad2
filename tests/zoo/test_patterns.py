"""Every small pattern: its axes come out as it says, and cutting them is exact."""

from __future__ import annotations

import pytest
from torch import nn

import optin_fx as ofx
from optin_fx.testing.outcomes import fits, outcome
from optin_fx.testing.patterns import PATTERNS, Pattern

PLANS = 5


def test_there_are_enough() -> None:
    assert len(PATTERNS) >= 60
    assert len({p.name for p in PATTERNS}) == len(PATTERNS)
    assert all(p.why for p in PATTERNS)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_pattern(pattern: Pattern) -> None:
    inputs = pattern.example()
    program = ofx.trace(pattern.model(), inputs)
    groups = ofx.group(program)
    found = {place: outcome(program, groups, place) for place in pattern.expect}
    assert all(fits(found[place], wanted) for place, wanted in pattern.expect.items()), f"{found} against {pattern.expect}\n{groups}"
    for seed in range(PLANS):
        plan = ofx.random_plan(program, seed=seed)
        agreement = ofx.verify(program, plan)
        assert agreement, f"seed {seed}: {agreement}\n{plan}"
    small = ofx.rewrite(program, plan)
    small(*inputs)
    assert parameters(small) == parameters(program)


def parameters(program: ofx.Program) -> set[str]:
    """Names of the parameters that the graph reads."""
    return {name for name, tensor in program.tensors.items() if isinstance(tensor, nn.Parameter)}
