"""Small patterns: modules of a few lines, each a way in which the bookkeeping of channels goes wrong.

Each says what becomes of its axes, in a form that a test checks: for `"fc1.weight:0"` (a parameter and a dim of it) either

* `"free"`: all its units may go, or `"pinned"`: none may, or `"part"`: some of its factors or terms may;
* a tuple of numbers: these are the numbers of units of its free groups, ascending (`(3, 10)`: heads and dims).

The class's docstring says why. Whatever the outcome, sliced must equal masked under every plan. The last layer is called
`out`; its output is the model's and stays. Seven features come in; widths are chosen to be confusable (6 = 2 x 3 = 3 x 2).
"""

from __future__ import annotations

from optin_fx.testing.patterns import (  # noqa: F401  each enters its patterns
    choices,
    convolutions,
    joins,
    moves,
    parameters,
    products,
    reductions,
    repeats,
    shapes,
    widths,
)
from optin_fx.testing.patterns.pattern import PATTERNS, Pattern


def get(name: str) -> Pattern:
    """The pattern of that name."""
    return next(p for p in PATTERNS if p.name == name)


__all__ = ["PATTERNS", "Pattern", "get"]
