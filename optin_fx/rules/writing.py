"""Writes to computed places: the dims that are indexed keep their extent, all others pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from optin_fx.rulebook import COUNTS, POSITIONS, Call, Line, Resized, line, rule

aten = torch.ops.aten

WHY = "written to by position"


@rule(aten.index_put.default, aten.index_put_.default)
def index_put(call: Call) -> Line | None:
    """Leading dims are indexed by integer tensors that broadcast to the leading dims of the values."""
    shape = call.operands[0].shape
    given = list(call["indices"])
    count = len(given)
    indices, values = call.operands[1:-1], call.operands[-1]
    if any(item is None for item in given) or len(indices) != count:
        return None
    if any(getattr(o.node.meta.get("val"), "dtype", None) in (torch.bool, torch.uint8) for o in indices):
        return None
    names = [f"n{i}" for i in range(len(shape))]
    rank = max(len(o.shape) for o in indices)
    places = [f"j{k}!" for k in range(rank)]
    extents = [max((o.shape[k - rank] for o in indices if len(o.shape) >= rank - k), default=1) for k in range(rank)]
    target = [*zip(places, extents, strict=True), *zip(names[count:], shape[count:], strict=True)]

    def dims(operand: tuple[int, ...], of: list[tuple[str, int]]) -> str:
        own = of[len(of) - len(operand) :]
        return " ".join("1" if n == 1 and extent != 1 else name for (name, extent), n in zip(own, operand, strict=True))

    parts = [" ".join(f"{n}!" if i < count else n for i, n in enumerate(names))]
    parts += [dims(o.shape, target[:rank]) for o in indices]
    parts.append(dims(values.shape, target))
    return line(f"{', '.join(parts)} -> {' '.join(names)}", why=WHY, drop=True)


@rule(
    aten.scatter.src,
    aten.scatter_.src,
    aten.scatter.value,
    aten.scatter_.value,
    aten.scatter_add.default,
    aten.scatter_add_.default,
)
def scatter(call: Call) -> Line:
    """Along one dim by position; every other dim is the index's and the source's own where the extents agree."""
    shape, dim = call.operands[0].shape, call.dim(call["dim"])
    sides: list[list[str]] = [[] for _ in call.operands]
    for i in range(len(shape)):
        agree = i != dim and all(o.shape[i] == shape[i] for o in call.operands)
        for k, side in enumerate(sides):
            side.append(f"n{i}" if agree else f"m{i}_{k}!")
    texts = [" ".join(side) for side in sides]
    return line(f"{', '.join(texts)} -> {texts[0]}", why=WHY, drop=True, told={1: (POSITIONS, f"m{dim}_0")})


def _bins_follow(call: Call, new: Resized) -> Mapping[str, Any]:
    return {"bins": new.factors["h"], "max": new.factors["h"] - 1} if call.op is aten.histc.default else {}


@rule(aten.histc.default, aten.bincount.default, resize=_bins_follow)
def counted(call: Call) -> Line:
    """How many entries fall into each bin. With one bin for each position along an axis, the bins are that axis."""
    operands = [" ".join(f"n{k}_{i}!" for i in range(len(o.shape))) for k, o in enumerate(call.operands)]
    about: dict[str, Any] = {}
    if call.op is aten.histc.default and (call["min"], call["max"]) == (0, call["bins"] - 1):
        about = {"told": {0: (POSITIONS, "h")}, "tells": {0: (COUNTS, "h")}}
    return line(f"{', '.join(operands)} -> h!", why="its entries are counted", drop=True, **about)
