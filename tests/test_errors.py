"""The one form of our errors: what, at, so, fix."""

from __future__ import annotations

import pytest

from optin_fx import errors
from optin_fx.errors import MissingExtra, OptinError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OptinError)]


def test_all_four_lines() -> None:
    error = OptinError("no rule for aten.roll.default", at="%roll_3, swin.py:211", so="2 groups cannot shrink", fix="add @ofx.rule(...)")
    assert str(error) == (
        "no rule for aten.roll.default\n  at  %roll_3, swin.py:211\n  so  2 groups cannot shrink\n  fix add @ofx.rule(...)"
    )


def test_absent_lines_are_left_out() -> None:
    assert str(OptinError("it broke", fix="mend it")) == "it broke\n  fix mend it"
    assert str(OptinError("it broke")) == "it broke"


def test_parts_stay_readable_by_programs() -> None:
    error = OptinError("a", at="b", so="c", fix="d")
    assert (error.what, error.at, error.so, error.fix) == ("a", "b", "c", "d")


def test_missing_extra_is_one_sentence_and_one_command() -> None:
    error = MissingExtra("onnxruntime", "onnx", needed_for="target 'onnxruntime:cpu'")
    assert str(error) == (
        "target 'onnxruntime:cpu' needs the package 'onnxruntime', which is not installed\n  fix pip install 'optin-fx[onnx]'"
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_says_what_it_means(kind: type[OptinError]) -> None:
    assert kind.__doc__
    assert kind.__doc__.strip().splitlines()[0].endswith(".")
