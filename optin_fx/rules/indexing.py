"""Look-ups by position: the indexed axis keeps its extent, because the positions come as values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from optin_fx.rulebook import POSITIONS, Call, Line, Resized, line, rule

aten = torch.ops.aten

WHY = "looked up by position"


@rule(aten.embedding.default)
def embedding(call: Call) -> Line:
    """A table of rows; the vocabulary is semantics, the width is not."""
    return line("v! d, ... -> ... d", why="a vocabulary", drop=True, roles={"d": "residual"}, told={1: (POSITIONS, "v")})


@rule(aten.embedding_bag.default, aten.embedding_bag.padding_idx)
def embedding_bag(call: Call) -> Line | None:
    """Sums or means of rows; with `max`, the places of the maxima are a result, which has the table's width too."""
    if call["mode"] == 2:
        return None
    rest = [" ".join(f"p{k}_{i}!" for i in range(len(o.shape))) for k, o in enumerate(call.operands[1:])]
    more = [" ".join(f"q{k}_{i}!" for i in range(len(s))) for k, s in enumerate(call.results[1:])]
    return line(f"{', '.join(['v! d', *rest])} -> {', '.join(['b! d', *more])}", why="a vocabulary", drop=True, roles={"d": "residual"})


@rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(call: Call) -> Line | None:
    """Integer index tensors broadcast against each other and replace the dims that they index."""
    source = call.operands[0].shape
    given = list(call["indices"])
    at = [i for i, item in enumerate(given) if item is not None]
    tensors = call.operands[1:]
    if any(getattr(o.node.meta.get("val"), "dtype", None) in (torch.bool, torch.uint8) for o in tensors):
        return None
    rank = max((len(o.shape) for o in tensors), default=0)
    names = [f"n{i}" for i in range(len(source))]
    left = " ".join(f"{n}!" if i in at else n for i, n in enumerate(names))
    new = [f"j{k}" for k in range(rank)]
    extents = call.results[0]
    adjacent = at == list(range(at[0], at[0] + len(at))) if at else True
    kept = [n for i, n in enumerate(names) if i not in at]
    place = at[0] if adjacent and at else 0
    out = kept[:place] + new + kept[place:]
    parts = []
    for o in tensors:
        own = new[rank - len(o.shape) :]
        parts.append(" ".join("1" if size == 1 and extents[place + new.index(n)] != 1 else n for n, size in zip(own, o.shape, strict=True)))
    told = {1 + k: (POSITIONS, names[i]) for k, i in enumerate(at)}
    return line(", ".join([left, *parts]) + f" -> {' '.join(out)}", why=WHY, drop=True, told=told)


@rule(aten.index_select.default)
def index_select(call: Call) -> Line:
    """Entries of one dim, by a list of positions."""
    dim = call.dim(call["dim"])
    names = [f"n{i}" for i in range(len(call.operands[0].shape))]
    left = " ".join(f"{n}!" if i == dim else n for i, n in enumerate(names))
    right = " ".join("j" if i == dim else n for i, n in enumerate(names))
    return line(f"{left}, j -> {right}", why=WHY, drop=True, told={1: (POSITIONS, names[dim])})


@rule(aten.gather.default, aten.take_along_dim.default)
def gather(call: Call) -> Line | None:
    """Along one dim by position; every other dim is the index's own where their extents agree. `take_along_dim` broadcasts them."""
    if call["dim"] is None:
        return None
    dim = call.dim(call["dim"])
    source, where = call.operands[0].shape, call.operands[1].shape
    if len(source) != len(where):
        return None
    left: list[str] = []
    idx: list[str] = []
    out: list[str] = []
    for i, (a, b) in enumerate(zip(source, where, strict=True)):
        name = f"n{i}"
        if i == dim:
            terms = ("k!", "j!", "j!")
        elif a == b:
            terms = (name, name, name)
        elif call.op is aten.gather.default:
            terms = (f"m{i}!", f"{name}!", f"{name}!")
        else:
            terms = (name if a != 1 else "1", name if b != 1 else "1", name)
        for side, term in zip((left, idx, out), terms, strict=True):
            side.append(term)
    return line(f"{' '.join(left)}, {' '.join(idx)} -> {' '.join(out)}", why=WHY, drop=True, told={1: (POSITIONS, "k")})


@rule(aten.flip.default, aten.roll.default)
def moved(call: Call) -> Line:
    """Entries change places along some dims."""
    dims = call.dims(call["dims"])
    names = [f"n{i}" for i in range(len(call.operands[0].shape))]
    left = " ".join(n + ("!" if i in dims else "") for i, n in enumerate(names))
    return line(f"{left} -> {' '.join(names)}", why=f"its entries change places ({call.op.overloadpacket.__name__})")


@rule(aten.triu.default, aten.tril.default)
def triangle(call: Call) -> Line:
    """The last two dims are compared by position."""
    return line("... p! q! -> ... p! q!", why="compared by position")


def _classes_follow(call: Call, new: Resized) -> Mapping[str, Any]:
    return {"num_classes": new.factors["c"]}


@rule(aten.one_hot.default, resize=_classes_follow)
def one_hot(call: Call) -> Line:
    """A new dim of classes: an axis, if the numbers are positions along one."""
    return line("... -> ... c!", why="a number of classes", told={0: (POSITIONS, "c")})


@rule(aten.meshgrid.indexing, aten.meshgrid.default)
def meshgrid(call: Call) -> Line:
    """One dim per operand, each result over all."""
    n = len(call.operands)
    names = [f"n{i}" for i in range(n)]
    out = list(names)
    if call.arguments.get("indexing") == "xy" and n > 1:
        out[0], out[1] = out[1], out[0]
    return line(", ".join(names) + " -> " + ", ".join([" ".join(out)] * n))
