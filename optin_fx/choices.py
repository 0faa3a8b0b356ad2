"""Run two versions of a program with the same choices: which of near ties a top-k, a sort or a comparison takes, rounding decides.

A detector takes 300 of 8,400 queries by their scores, and some scores are equal but for the last bit. Two programs that compute the same in
another order then choose, or order, others, and everything behind differs. So one program's choices are put into the other, and what each
chose by is compared instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from optin_fx.program import Program
from optin_fx.source_lines import user_line

_BY_RANK = {"topk", "sort", "argsort", "argmax", "argmin", "max", "min", "median", "kthvalue"}


def first_choice(program: Program) -> str | None:
    """The first op that chooses among floats by their rank, as `name (file:line)`; None where no op does."""
    for node in program.graph_module.graph.nodes:
        if node.op != "call_function" or str(node.target).removeprefix("aten.").split(".")[0] not in _BY_RANK:
            continue
        values, results = (source.meta.get("val") for source in node.all_input_nodes), pytree.tree_leaves(node.meta.get("val"))
        if any(map(_floats, values)) and any(map(_chooses, results)):
            where = user_line(node.meta.get("stack_trace"))
            return node.name + (f" ({where})" if where else "")
    return None


class Choosing(fx.Interpreter):
    """Remembers, by node, what was chosen and by which values; a choice is anything but floats that an op makes of floats."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.made: dict[str, tuple[list[torch.Tensor], Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """A node's result; a choice is handed to `chosen`."""
        result = super().run_node(n)
        if n.op != "call_function" or not any(map(_chooses, pytree.tree_leaves(result))):
            return result
        by = [leaf for leaf in pytree.tree_leaves(self.fetch_args_kwargs_from_env(n)) if _floats(leaf)]
        return self.chosen(n.name, by, result) if by else result

    def chosen(self, name: str, by: list[torch.Tensor], result: Any) -> Any:
        """Note a choice, before an op changes it in place."""
        self.made[name] = pytree.tree_map_only(torch.Tensor, torch.clone, (by, result))
        return result


class Following(Choosing):
    """Makes the choices of another run.

    Attributes:
        furthest: largest relative difference of the values by which both chose, where they chose otherwise.
    """

    def __init__(self, module: fx.GraphModule, leader: Choosing) -> None:
        super().__init__(module)
        self.leader, self.furthest = leader, 0.0

    def chosen(self, name: str, by: list[torch.Tensor], result: Any) -> Any:
        """The leader's choice, and floats of one's own; where shapes differ, inside what was cut, all is one's own."""
        if name not in self.leader.made:
            return result
        others, theirs = self.leader.made[name]
        ours, spec = pytree.tree_flatten(result)
        led = pytree.tree_leaves(theirs)
        pairs = list(zip(ours, led, strict=True)) if (len(ours), len(by)) == (len(led), len(others)) else []
        if not pairs or not all(_alike(a, b) for a, b in (*pairs, *zip(by, others, strict=True))):
            return result
        if all(torch.equal(a, b) for a, b in pairs if _chooses(a)):
            return result
        self.furthest = max(self.furthest, *(apart(a, b)[1] for a, b in zip(by, others, strict=True)))
        return pytree.tree_unflatten([b.clone() if _chooses(a) else a for a, b in pairs], spec)


def _floats(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _chooses(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and not leaf.is_floating_point() and not leaf.is_complex()


def _alike(ours: Any, theirs: Any) -> bool:
    tensors = isinstance(ours, torch.Tensor), isinstance(theirs, torch.Tensor)
    return (ours.shape == theirs.shape and ours.dtype == theirs.dtype) if all(tensors) else not any(tensors)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """Largest difference of two tensors of one shape, and that as a share of the largest finite entry, in float64.

    Infinities and NaNs are equal where both have one; both figures are infinite where one has and the other has not.
    """
    ours, theirs = ours.double(), theirs.double()
    finite = torch.isfinite(ours)
    if not torch.equal(finite, torch.isfinite(theirs)):
        return float("inf"), float("inf")
    if not finite.any():
        return 0.0, 0.0
    difference, scale = (ours - theirs)[finite].abs().max().item(), theirs[finite].abs().max().item()
    return difference, difference / scale if scale > 0 else difference
