"""Extents as integers: fixed ones are themselves, symbolic ones are products of large primes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from optin_fx.dims import SYMBOLIC, Axis, atom
from optin_fx.program import Program


@cache
def _prime(index: int) -> int:
    """Distinct primes that stand for symbols. Far above any real extent, so that sums and quotients of symbolic sizes do not
    collide with one another or with fixed extents."""
    return 2**61 - 1 if index == 0 else int(sympy.prevprime(_prime(index - 1)))


class Sizes:
    """The sizes in a program's graph.

    Attributes:
        program: whose graph.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._symbols: dict[Any, int] = {}
        self._hints: dict[int, int] = {}
        self._exprs: dict[Any, int] = {}
        self._shapes: dict[str, Any] = {}

    def size(self, extent: Any) -> int:
        """The integer that stands for an extent: itself, or a product of primes for a symbolic one."""
        if isinstance(extent, int):
            return extent
        expr = extent.node.expr
        found = self._exprs.get(expr)
        if found is None:
            for symbol in sorted(expr.free_symbols, key=str):
                self._symbols.setdefault(symbol, _prime(len(self._symbols)))
            found = int(expr.xreplace({s: sympy.Integer(self._symbols[s]) for s in expr.free_symbols}))
            self._exprs[expr] = found
            hints = {s: self.symbol_hints[s] for s in expr.free_symbols if s in self.symbol_hints}
            try:
                self._hints[found] = int(expr.xreplace(hints))
            except TypeError:
                self._hints[found] = int(extent.node.hint) if extent.node.has_hint() else 1
        return found

    def hint(self, size: int) -> int:
        """The extent in the example inputs of a size."""
        return size if size < SYMBOLIC else self._hints.get(size, 1)

    @cached_property
    def symbol_hints(self) -> Mapping[Any, int]:
        """Extents of the graph's symbols in the program's example inputs."""
        found: dict[Any, int] = {}
        leaves = pytree.tree_leaves((self.program.args, self.program.kwargs))
        example = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        tensors = [n.meta["val"] for n in self.program.placeholders if isinstance(n.meta.get("val"), torch.Tensor)]
        if len(example) == len(tensors):
            for value, fake in zip(example, tensors, strict=True):
                for extent, symbolic in zip(value.shape, fake.shape, strict=False):
                    if not isinstance(symbolic, int) and symbolic.node.expr.is_symbol:
                        found.setdefault(symbolic.node.expr, sympy.Integer(extent))
        return found

    def fresh(self, shape: Iterable[int]) -> list[Axis]:
        """New axes of which only the sizes are known."""
        return [atom(size, self.hint(size)) for size in shape]

    def shape_of(self, node: fx.Node) -> Any:
        """Integer sizes of a node's tensor; a list of them for several results; None where there is no tensor."""
        if node.name in self._shapes:
            return self._shapes[node.name]
        if node.op == "get_attr":
            value: Any = self.program.tensors.get(str(node.target))
        else:
            value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            shape: Any = tuple(self.size(d) for d in value.shape)
        elif isinstance(value, (list, tuple)):
            shape = [tuple(self.size(d) for d in v.shape) if isinstance(v, torch.Tensor) else None for v in value]
        else:
            shape = None
        self._shapes[node.name] = shape
        return shape
