"""Every registered rule, every free leaf: what the rule's line promises is checked by running the op."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import samples_of_shapes  # noqa: F401  registers more samples
import samples_of_zoo  # noqa: F401  registers more samples
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from samples import SAMPLES, Sample
from square import Draw, check, one_op, signature
from torch._ops import OpOverload

from optin_fx.rulebook import _RULES, pointwise

EXAMPLES = int(os.environ.get("OPTIN_FX_SQUARES", "8"))
LISTED = Path(__file__).parent.parent / "golden" / "rules.txt"


def try_sample(op: OpOverload, draw: Draw, maker: int) -> Sample | None:
    return SAMPLES[op][maker % len(SAMPLES[op])](draw)


def listed(op: OpOverload) -> bool:
    """Rules that were written by hand; those of pointwise ops come from PyTorch's own tags."""
    return _RULES[op].mapping is not pointwise


def test_every_rule_has_a_sample() -> None:
    missing = sorted(str(op) for op in _RULES if listed(op) and op.namespace == "aten" and op not in SAMPLES)
    assert not missing, f"write a sample call in tests/rules/samples*.py for: {', '.join(missing)}"


@pytest.mark.parametrize("op", sorted(SAMPLES, key=str), ids=str)
def test_square(op: OpOverload) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=True
    )
    @given(st.data())
    def square(data: st.DataObject) -> None:
        draw = Draw(lambda low, high: data.draw(st.integers(low, high)))
        found = try_sample(op, draw, draw.integer(0, 3))
        if found is None:
            reject()
        check(one_op(op, *found), draw)

    square()


def golden_listing() -> str:
    lines = []
    for op in sorted(SAMPLES, key=str):
        for maker in range(len(SAMPLES[op])):
            texts: list[str] = []
            for seed in range(16):  # the call with the most letters says most
                found = try_sample(op, Draw.seeded(seed), maker)
                if found is not None and (text := signature(one_op(op, *found))) not in texts:
                    texts.append(text)
            texts.sort(key=lambda text: (-len({c for c in text if c.isalpha()}), -text.count("!"), len(text), text))
            lines += [f"{str(op).removeprefix('aten.'):<44} {text}" for text in texts[:2]]
    return "\n".join(lines) + "\n"


def test_golden_listing(request: pytest.FixtureRequest) -> None:
    """What each rule pins (`!`), on sample calls, as text for people. Written anew with `pytest --regenerate`."""
    found = golden_listing()
    if request.config.getoption("--regenerate"):
        LISTED.write_text(found)
    assert found == LISTED.read_text()


def test_an_op_without_a_rule_keeps_its_axes() -> None:
    program = one_op(torch.ops.aten.linalg_inv.default, [torch.eye(3, dtype=torch.float64) + 1])
    assert signature(program) == "[a! b!] -> [c! d!]"
    assert check(program, Draw.seeded(0)) == []
