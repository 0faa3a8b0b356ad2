"""Reductions. A sum contracts, and so does a p-norm; a mean does when it goes on to divide by the dense extent. A maximum, a variance
or a position changes when an entry goes, so it pins what it reduces."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import fx

from optin_fx.rulebook import POSITIONS, TIMES, Call, Line, Resized, is_constant, is_left, line, rule

aten = torch.ops.aten

CASTS = (aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.contiguous.default)


def _reduced(call: Call) -> tuple[list[str], list[str], list[str]]:
    """Dims of the operand, of the result, and the names that are reduced."""
    rank = len(call.operands[0].shape)
    dims = call.dims(call.arguments.get("dim"))
    keep = bool(call.arguments.get("keepdim", False))
    names = [f"n{i}" for i in range(rank)]
    out = [("1" if i in dims else n) for i, n in enumerate(names) if keep or i not in dims]
    return names, out, [names[i] for i in dims]


def _divisor_stays(call: Call, new: Resized) -> Mapping[str, Any]:
    """A mean over fewer entries is multiplied back to what dividing by the dense number of entries gives."""
    dims = call.dims(call.arguments.get("dim"))
    before, after = (prod(shape[d] for d in dims) for shape in (call.operands[0].shape, new.operands[0]))
    return {TIMES: after / before} if before != after else {}


@rule(aten.mean.dim, aten.mean.default, resize=_divisor_stays)
def mean(call: Call) -> Line:
    """The sum over the dense number of entries: a removed unit adds nothing, as a zero would. Residual streams stay unless allowed."""
    names, out, over = _reduced(call)
    left = " ".join(f"{n}!" if n in over else n for n in names)
    return line(f"{left} -> {' '.join(out)}", why="a mean over it", code="averaged")


@rule(aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim)
def length(call: Call) -> Line:
    """A p-norm: entries of zero add nothing to it, if p is above zero."""
    names, out, over = _reduced(call)
    power = call.arguments.get("ord", call.arguments.get("p", 2))
    if power is None or (isinstance(power, (int, float)) and power > 0):
        return line(f"{' '.join(names)} -> {' '.join(out)}")
    return line(f"{' '.join(n + '!' if n in over else n for n in names)} -> {' '.join(out)}", why="a norm over it", drop=True)


@rule(aten.sum.dim_IntList, aten.sum.default)
def total(call: Call) -> Line:
    """The reduced axes are contracted: a removed unit adds nothing, as a zero would."""
    names, out, _ = _reduced(call)
    return line(f"{' '.join(names)} -> {' '.join(out)}")


@rule(
    aten.var.correction,
    aten.var.dim,
    aten.std.correction,
    aten.std.dim,
    aten.var_mean.correction,
    aten.amax.default,
    aten.amin.default,
    aten.max.default,
    aten.min.default,
    aten.max.dim,
    aten.min.dim,
    aten.median.dim,
    aten.prod.dim_int,
    aten.prod.default,
    aten.logsumexp.default,
    aten.argmax.default,
    aten.argmin.default,
    aten.any.default,
    aten.any.dim,
    aten.all.default,
    aten.all.dim,
    aten.count_nonzero.dim_IntList,
)
def statistic(call: Call) -> Line:
    """All entries count, also how many there are."""
    names, out, over = _reduced(call)
    left = " ".join(f"{n}!" if n in over else n for n in names)
    name = call.op.overloadpacket.__name__
    if name.startswith(("var", "std")) and is_constant(call):
        return line(f"{' '.join(names)} -> " + ", ".join([" ".join(out)] * len(call.results)), drop=True, frozen=over)
    return line(
        f"{left} -> " + ", ".join([" ".join(out)] * len(call.results)),
        why=f"a {name.replace('_', ' ')} over it",
        drop=True,
        code="normalised" if name.startswith(("var", "std")) else "",
    )


@rule(aten.topk.default)
def best(call: Call) -> Line:
    """The best of a dim, and where they are: free if all that reads the places looks them up along that dim."""
    dim = call.dim(call["dim"])
    names = [f"n{i}" for i in range(len(call.operands[0].shape))]
    left = " ".join(n + ("!" if i == dim else "") for i, n in enumerate(names))
    right = " ".join("r!" if i == dim else n for i, n in enumerate(names))
    count, chosen = call["k"], f"n{dim}"
    if not names or not call["largest"] or not isinstance(count, int):
        return line(f"{left} -> {right}, {right}", why="sorted along it", drop=True)
    return line(
        f"{left} -> {right}, {right}",
        why="sorted along it",
        drop=True,
        roles={} if is_left(call.node, 1) else {chosen: "expert"},
        chosen=[] if _of_a_softmax(call, dim) else [chosen],  # there they are out already
        least={chosen: count},
        tells={1: (POSITIONS, chosen)},
    )


def _of_a_softmax(call: Call, dim: int) -> bool:
    node = call.operands[0].node
    while node.target in CASTS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    along = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return node.target in (aten.softmax.int, aten._softmax.default) and isinstance(along, int) and call.dim(along) == dim


@rule(
    aten.sort.default,
    aten.sort.stable,
    aten.argsort.default,
    aten.argsort.stable,
    aten.cummax.default,
    aten.cummin.default,
)
def ordered(call: Call) -> Line:
    """Entries along a dim are compared; the result's dim is one of ranks."""
    dim = call.dim(call["dim"])
    names = [f"n{i}" for i in range(len(call.operands[0].shape))]
    left = " ".join(n + ("!" if i == dim else "") for i, n in enumerate(names))
    right = " ".join("r!" if i == dim else n for i, n in enumerate(names))
    return line(f"{left} -> " + ", ".join([right] * len(call.results)), why="sorted along it", drop=True)
