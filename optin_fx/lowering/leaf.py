"""One input or output of a program, and whether a value fits it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import ConstantArgument

from optin_fx.errors import LoweringError
from optin_fx.lowering.symbols import Size, evaluated, names_in, renamed, sizes_of


@dataclass(frozen=True)
class Leaf:
    """One leaf of the model's input or output structure.

    Attributes:
        name: stable name: the program's placeholder for inputs, the place in the output structure for outputs.
        dtype: `float32`, `int64`, ...; `None` for a leaf that is no tensor.
        sizes: one int, or one text over the symbols' names, per dim. Of a number that follows from the inputs' sizes, such as
            the length of a cache: that number alone.
        constant: the value of any other leaf that is no tensor (None, a bool, a number, a text).
    """

    name: str
    dtype: str | None
    sizes: tuple[Size, ...] = ()
    constant: Any = None

    @property
    def is_tensor(self) -> bool:
        return self.dtype is not None

    @property
    def is_size(self) -> bool:
        return self.dtype is None and bool(self.sizes)

    def number(self, symbols: Mapping[str, int]) -> Any:
        """The value of a leaf that is no tensor, where the symbols have these sizes."""
        return evaluated(self.sizes[0], symbols) if self.is_size else self.constant

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, str(self.dtype))


def leaf_of(arg: Any, name: str, values: Mapping[str, Any], symbols: Mapping[str, str], *, follows: bool = False) -> Leaf:
    """The leaf of an input or output that a program's signature calls `arg`.

    Args:
        values: fake values by node name.
        symbols: torch's symbols (`s77`) and their names.
        follows: a number may stand here that the sizes of the inputs give.

    Raises:
        LoweringError: neither a tensor nor a constant, nor such a number.
    """
    if isinstance(arg, ConstantArgument):
        return Leaf(name, None, (), arg.value)
    value = values.get(arg.name)
    if isinstance(value, torch.Tensor):
        return Leaf(name, str(value.dtype).removeprefix("torch."), sizes_of(value, symbols))
    if value is None or isinstance(value, bool | int | float | str):
        return Leaf(name, None, (), value)
    size = renamed(str(value), symbols)
    if follows and isinstance(value, torch.SymInt) and names_in(size) <= set(symbols.values()):
        return Leaf(name, None, (size,))
    raise LoweringError(
        f"{name} is a symbolic {type(value).__name__}, {value}, that the sizes of the inputs do not give",
        so="engines take and return tensors, and such numbers as follow from sizes",
        fix="give the size as a tensor's shape, or trace the model with a fixed number",
    )


def checked(value: Any, leaf: Leaf, symbols: dict[str, int], bounds: Mapping[str, tuple[int, int | None]]) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise LoweringError(f"input {leaf.name} is a {type(value).__name__}, not a tensor", fix=f"pass a {leaf.dtype} tensor")
    if value.dtype != leaf.torch_dtype:
        raise LoweringError(
            f"input {leaf.name} has dtype {str(value.dtype).removeprefix('torch.')}, the engine takes {leaf.dtype}",
            fix=f"convert it with .to(torch.{leaf.dtype})",
        )
    fits = value.dim() == len(leaf.sizes)
    for size, expected in zip(value.shape, leaf.sizes, strict=False):
        known = symbols.setdefault(expected, size) if isinstance(expected, str) and expected.isidentifier() else expected
        fits = fits and (isinstance(known, str) or size == known)
    if not fits:
        shown = ", ".join(f"{size}={symbols[size]}" if size in symbols else str(size) for size in leaf.sizes)
        raise LoweringError(
            f"input {leaf.name} has shape {list(value.shape)}, the engine takes [{shown}]",
            fix="pass inputs of the traced sizes, or trace with more dynamic dims",
        )
    for size, expected in zip(value.shape, leaf.sizes, strict=True):
        low, high = bounds.get(expected, (0, None)) if isinstance(expected, str) else (0, None)
        if size < low or (high is not None and size > high):
            raise LoweringError(
                f"input {leaf.name} has {expected}={size}, the engine takes {low} to {'any' if high is None else high}",
                fix="pass inputs within those bounds, or trace with wider ones",
            )
    return value
