"""Names for dynamic sizes: `batch` in place of `s77`, in the graph, the engine and the profile alike."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from optin_fx.errors import LoweringError

Size = int | str


def name_symbols(inputs: Mapping[str, Any], dim_names: Mapping[str, Mapping[int, str]] | None = None) -> dict[str, str]:
    """Symbol of torch.export (`s77`) -> name, for every symbol that is a whole dim of a tensor input.

    Args:
        inputs: fake tensors by input name, in call order.
        dim_names: input name -> dim -> name, where the caller has one.
    """
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    leading = {str(value.shape[0]) for value in tensors.values() if value.dim() and _is_symbol(value.shape[0])}
    names: dict[str, str] = {}
    for name, dims in (dim_names or {}).items():
        if name not in tensors:
            raise LoweringError(
                f"dim_names speaks of an input {name!r} that the program does not have",
                fix=f"use one of {', '.join(tensors)}",
            )
        for dim, label in dims.items():
            if dim < tensors[name].dim() and _is_symbol(tensors[name].shape[dim]):
                names[str(tensors[name].shape[dim])] = label
    for name, value in tensors.items():
        for dim, size in enumerate(value.shape):
            if _is_symbol(size):
                label = "batch" if dim == 0 and len(leading) == 1 else f"{name}_dim{dim}"
                names.setdefault(str(size), label)
    return names


def sizes_of(tensor: torch.Tensor, symbols: Mapping[str, str]) -> tuple[Size, ...]:
    """Sizes of a fake tensor with symbols renamed; a derived size stays an expression (`2*batch`)."""
    return tuple(int(size) if str(size).isdigit() else renamed(str(size), symbols) for size in tensor.shape)  # a SymInt may be a number


def renamed(expression: str, symbols: Mapping[str, str]) -> str:
    """`expression` with every known symbol replaced by its name."""
    return re.sub(r"[A-Za-z_]\w*", lambda match: symbols.get(match[0], match[0]), expression)


def names_in(expression: str) -> set[str]:
    """The symbols that an expression is written in."""
    return {node.id for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Name)} - set(_FUNCTIONS)


def evaluated(expression: Size, sizes: Mapping[str, int]) -> int:
    """What an expression over symbols is, where they have these sizes: `2*batch` -> 6.

    Only arithmetic on whole numbers is read, since expressions come from files, too.

    Raises:
        LoweringError: another operation, or a symbol without a size.
    """

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in sizes:
                return sizes[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
                return _OPERATIONS[type(operation)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*map(value, arguments))
        raise LoweringError(
            f"{ast.unparse(node)} cannot be computed from the inputs' sizes",
            at=str(expression),
            fix=f"use whole numbers, {', '.join(sizes)}, and the operations that torch writes sizes with",
        )

    return value(ast.parse(str(expression), mode="eval").body)


_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
}


def _is_symbol(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and str(size).isidentifier()
