"""Scaled dot-product attention. Its implicit scale is that of the dense width, so it is written out when that width shrinks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from optin_fx.rulebook import Call, Line, Resized, line, rule

aten = torch.ops.aten


def _freeze_scale(call: Call, new: Resized) -> Mapping[str, Any]:
    width = call.operands[0].shape[-1]
    changes: dict[str, Any] = {}
    if call["scale"] is None and new.operands[0][-1] != width:
        changes["scale"] = 1.0 / math.sqrt(width)
    return changes


@rule(aten.scaled_dot_product_attention.default, resize=_freeze_scale)
def attention(call: Call) -> Line | None:
    """`softmax(q k^T scale + mask) v`; with `enable_gqa`, each key-value head serves g query heads."""
    query, key = call.operands[0].shape, call.operands[1].shape
    value = call.operands[2].shape
    rank = len(query)
    if not len(key) == len(value) == rank or rank < 3:
        return None
    lead = [f"n{i}" for i in range(rank - 3)]
    grouped = bool(call["enable_gqa"]) and query[-3] != key[-3]
    sizes = {"h": key[-3], "g": query[-3] // key[-3]} if grouped else {}
    widest = [max(extents) for extents in zip(query[:-2], key[:-2], value[:-2], strict=True)]

    def own(shape: tuple[int, ...], heads: str, dims: str) -> str:
        names = [name if extent == most else "1" for name, extent, most in zip([*lead, heads], shape, widest, strict=False)]
        return " ".join([*names[:-1], heads if grouped else names[-1], dims])

    heads = "(h g)" if grouped else "h"
    parts = [own(query, heads, "q d"), own(key, "h", "k! d"), own(value, "h", "k! e")]
    if len(call.operands) > 3:
        mask = call.operands[3].shape
        names = [*lead, heads, "q", "k!"][-len(mask) :]
        full = [*widest, query[-2], key[-2]][-len(mask) :]
        parts.append(" ".join("1" if m != f else n for n, m, f in zip(names, mask, full, strict=True)))
    text = ", ".join(parts) + " -> " + " ".join([*lead, heads, "q e"])
    counted = " ".join([*lead, "h", *(["g"] if grouped else []), "q k"])
    roles = {"d": "qk-dim", "e": "v-dim"}
    roles |= {"h": "kv-group", "g": "query-head"} if grouped else {"h": "head"}
    return line(text, sizes=sizes, why="a softmax over keys", macs=(f"{counted} d", f"{counted} e"), roles=roles)
