"""How a pattern is written down: a module class of a few lines, its inputs, and what becomes of its axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from optin_fx.testing.zoo.entry import randomise

Outcome = str | tuple[int, ...]
M = TypeVar("M", bound=type[nn.Module])


@dataclass(frozen=True)
class Pattern:
    """A small module with its inputs and what is expected of it.

    Attributes:
        name: of the class, which is the pattern.
        make: the module's class.
        inputs: makes its positional inputs.
        expect: outcome by `parameter:dim`.
        why: the reason, for people; the class's docstring.
    """

    name: str
    make: type[nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    expect: Mapping[str, Outcome]
    why: str

    def model(self, seed: int = 0) -> nn.Module:
        """The module in eval mode, with random parameters and statistics."""
        torch.manual_seed(seed)
        return randomise(self.make().eval(), seed)

    def example(self, seed: int = 0) -> tuple[Any, ...]:
        """Inputs that are the same on every call."""
        torch.manual_seed(seed + 1)
        return self.inputs()

    def __repr__(self) -> str:
        return f"Pattern({self.name})"


PATTERNS: list[Pattern] = []


def pattern(inputs: Callable[[], tuple[Any, ...]], expect: Mapping[str, Outcome]) -> Callable[[M], M]:
    """Enter a module class into the list."""

    def enter(cls: M) -> M:
        PATTERNS.append(Pattern(cls.__name__, cls, inputs, expect, " ".join((cls.__doc__ or "").split())))
        return cls

    return enter


def rows() -> tuple[Tensor, ...]:
    """Two rows of seven features."""
    return (torch.randn(2, 7),)


def tokens() -> tuple[Tensor, ...]:
    """Two sequences of five tokens of seven features."""
    return (torch.randn(2, 5, 7),)


def image() -> tuple[Tensor, ...]:
    """Two images of three channels."""
    return (torch.randn(2, 3, 8, 8),)


def wave() -> tuple[Tensor, ...]:
    """Two signals of three channels."""
    return (torch.randn(2, 3, 16),)


class Hidden(nn.Module):
    """`a`, something in between that a subclass writes, `out`."""

    middle = 12
    last = 12

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, self.middle)
        self.out = nn.Linear(self.last, 5)

    def between(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.between(self.a(x)))


class ConvHidden(nn.Module):
    """The same with 3x3 convolutions."""

    middle = 12
    last = 12

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, self.middle, 3, padding=1)
        self.out = nn.Conv2d(self.last, 5, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.between(self.a(x)))
