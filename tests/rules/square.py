"""The commuting square of a rule: one call of its op, its axes by the real analysis, units removed by the real rewriting.

For every leaf that is left free: running the op on sliced operands must give the slice of what it gives on masked ones. A free
factor is not masked anywhere (`slice . op == op . slice`), a contracted one is (`op . slice == op . mask`); where a leaf is both,
both must hold at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

import optin_fx.rules  # noqa: F401  registers the rules
from optin_fx.analysis import Analysis
from optin_fx.dims import Axis, leaves, positions
from optin_fx.plan import Cut
from optin_fx.program import Program
from optin_fx.rewriting import mask_graph, slice_graph

aten = torch.ops.aten
RANDOM = ("rand", "bernoulli", "dropout", "empty")  # ops whose values say nothing; their shapes do


class Draw:
    """A source of sample calls: numbers from hypothesis (which shrinks them) or from a seed, tensors from a seed."""

    def __init__(self, integer: Callable[[int, int], int]) -> None:
        self.integer = integer
        self.generator = torch.Generator().manual_seed(0)

    @classmethod
    def seeded(cls, seed: int) -> Draw:
        return cls(random.Random(seed).randint)

    def size(self, low: int = 1, high: int = 4) -> int:
        return self.integer(low, high)

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[self.integer(0, len(choices) - 1)]

    def flag(self) -> bool:
        return bool(self.integer(0, 1))

    def shape(self, low: int = 1, high: int = 4) -> list[int]:
        return [self.size() for _ in range(self.integer(low, high))]

    def dim(self, rank: int) -> int:
        return self.integer(-rank, rank - 1)

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def index(self, bound: int, *shape: int) -> Tensor:
        return torch.randint(0, bound, shape, generator=self.generator)

    def broadcastable(self, shape: Sequence[int]) -> Tensor:
        """A tensor that broadcasts to the shape: some extents are one, some leading dims are missing."""
        return self.tensor(*[n if self.flag() else 1 for n in shape][self.integer(0, len(shape)) :])


@dataclass
class OneOp:
    """A program of one call on constants, as much of a `Program` as the analysis and the rewriting read."""

    graph_module: fx.GraphModule
    node: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    allow: frozenset[str] = frozenset({"averaged"})
    state_outputs: frozenset[int] = frozenset()
    state_inputs: frozenset[str] = frozenset()

    @property
    def tensors(self) -> dict[str, Tensor]:
        return dict(self.graph_module.named_buffers())


def one_op(op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> OneOp:
    graph, root, count = fx.Graph(), nn.Module(), iter(range(99))

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        root.register_buffer(name := f"t{next(count)}", value)
        node = graph.get_attr(name)
        node.meta["val"] = value
        if op._schema.is_mutable:
            node = graph.call_function(aten.clone.default, (node,))
            node.meta["val"] = value
        return node

    nodes = pytree.tree_map(place, (tuple(args), kwargs or {}))
    node = graph.call_function(op, *nodes)
    copied = pytree.tree_map_only(Tensor, torch.clone, (tuple(args), kwargs or {}))
    node.meta["val"] = op(*copied[0], **copied[1])
    graph.output(())
    return OneOp(fx.GraphModule(root, graph), node.name)


def analysed(program: OneOp) -> Analysis:
    return Analysis(cast(Program, program)).run()


def run(module: fx.GraphModule, node: str) -> list[Any]:
    nodes = {n.name: n for n in module.graph.nodes}
    nodes["output"].args = (nodes[node],)
    module.recompile()
    return pytree.tree_leaves(module())


def check(program: OneOp, draw: Draw) -> list[Axis]:
    """Check the square for every free leaf, and for all of them at once. Returns the free leaves."""
    analysis = analysed(program)
    pins = analysis.pinned_leaves()
    every = dict.fromkeys(leaf for root in analysis.roots() for leaf in leaves(root))
    free = [leaf for leaf in every if leaf not in pins and leaf.size > 1]
    plans = [[leaf] for leaf in free] + ([free] if len(free) > 1 else [])
    for chosen in plans:
        kept = {}
        for leaf in chosen:
            count = draw.integer(1, leaf.size)
            kept[leaf] = torch.randperm(leaf.size, generator=draw.generator)[:count].sort().values
        compare(program, Cut(analysis, kept))
    return free


def compare(program: OneOp, cut: Cut) -> None:
    op = next(n.target for n in program.graph_module.graph.nodes if n.name == program.node)
    small = run(slice_graph(cast(Program, program), cut), program.node)
    masked = run(mask_graph(cast(Program, program), cut), program.node)
    axes = cut.analysis.axes[program.node]
    every = axes if len(masked) > 1 or (axes and isinstance(axes[0], list)) else [axes]
    assert len(small) == len(masked) == len(every)
    for ours, theirs, dims in zip(small, masked, every, strict=True):
        for dim, axis in enumerate(dims):
            index = positions(axis, cut.units)
            theirs = theirs if index is None else theirs.index_select(dim, index)
        assert ours.shape == theirs.shape, f"{op}: sliced {tuple(ours.shape)}, slice of masked {tuple(theirs.shape)}, {described(cut)}"
        if not any(word in str(op) for word in RANDOM):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True, msg=lambda m: f"{op}, {described(cut)}: {m}")


def described(cut: Cut) -> str:
    applied = list(cut.analysis.applied.values())[-1]
    return f"line {applied.line}, kept {[(leaf.size, units.tolist()) for leaf, units in cut.kept.items()]}"


def signature(program: OneOp) -> str:
    """The axes of a call as the analysis sees them, one letter per leaf, `!` where it is pinned."""
    analysis = analysed(program)
    pins = analysis.pinned_leaves()
    letters: dict[Axis, str] = {}

    def dim(axis: Axis) -> str:
        root = axis.root()
        if root.sign:
            return "(" + (" " if root.sign == "*" else " + ").join(dim(part) for part in root.parts) + ")"
        if root.size == 1:
            return "1"
        letter = letters.setdefault(root, chr(ord("a") + len(letters)))
        return letter + ("!" if root in pins else "")

    def dims(axes: Any) -> str:
        return ", ".join(map(dims, axes)) if axes and isinstance(axes[0], list) else "[" + " ".join(map(dim, axes)) + "]"

    node = next(n for n in program.graph_module.graph.nodes if n.name == program.node)
    left = ", ".join(dims(analysis.axes[n.name]) for n in node.all_input_nodes)
    return f"{left} -> {dims(analysis.axes[node.name])}".strip()
