"""Convolutions of any rank, plain, grouped, depthwise and transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from optin_fx.rulebook import Call, Line, Resized, line, rule

aten = torch.ops.aten

_PLAIN = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_PADDED = (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)


def _spatial(call: Call) -> tuple[str, str, str, str]:
    """Batch (if any), and the spatial names of input, kernel and output. Their extents are semantics, so pinned."""
    n = len(call.operands[1].shape) - 2
    batch = "b " if len(call.operands[0].shape) == n + 2 else ""
    x, k, y = (" ".join(f"{letter}{i}!" for i in range(n)) for letter in "xky")
    return batch, x, k, y


def _groups_follow(call: Call, new: Resized) -> Mapping[str, Any]:
    # a computed number of groups (a batch folded into the channels) follows by itself
    return {"groups": new.factors["g"]} if "g" in new.factors and isinstance(call["groups"], int) else {}


@rule(*_PLAIN, *_PADDED, resize=_groups_follow)
def convolution(call: Call) -> Line:
    """`groups` splits channels into g blocks; a group of one input channel is a depthwise chain."""
    batch, x, k, y = _spatial(call)
    weight = call.operands[1].shape
    groups = call.operands[0].shape[1 if batch else 0] // weight[1]
    why, bias = "a spatial extent", len(call.operands) > 2
    free = f"{batch}{y} {k}".replace("!", "")
    if groups == 1:
        text = f"{batch}i {x}, o i {k}{', o' if bias else ''} -> {batch}o {y}"
        return line(text, why=why, macs=f"{free} o i", roles={"o": "filter"})
    if weight[1] == 1 and weight[0] == groups:
        text = f"{batch}g {x}, g 1 {k}{', g' if bias else ''} -> {batch}g {y}"
        return line(text, why=why, macs=f"{free} g")
    sizes = {"g": groups, "o": weight[0] // groups, "i": weight[1]}
    if weight[1] == 1:
        text = f"{batch}g {x}, (g o) 1 {k}{', (g o)' if bias else ''} -> {batch}(g o) {y}"
        return line(text, why=why, sizes=sizes, macs=f"{free} g o", roles={"o": "filter"})
    text = f"{batch}(g i) {x}, (g o) i {k}{', (g o)' if bias else ''} -> {batch}(g o) {y}"
    return line(text, why=why, sizes=sizes, macs=f"{free} g o i", roles={"g": "conv-group", "o": "group-width", "i": "group-width"})


@rule(*_TRANSPOSED, resize=_groups_follow)
def transposed(call: Call) -> Line:
    """Transposed convolution: the weight is [in, out / groups, ...], every input position meets the whole kernel."""
    batch, x, k, y = _spatial(call)
    weight = call.operands[1].shape
    groups = call.results[0][1 if batch else 0] // weight[1]
    why, bias = "a spatial extent", len(call.operands) > 2
    free = f"{batch}{x} {k}".replace("!", "")
    if groups == 1:
        return line(f"{batch}i {x}, i o {k}{', o' if bias else ''} -> {batch}o {y}", why=why, macs=f"{free} o i", roles={"o": "filter"})
    sizes = {"g": groups, "o": weight[1], "i": weight[0] // groups}
    if weight[1] == 1 and weight[0] == groups:
        return line(f"{batch}g {x}, g 1 {k}{', g' if bias else ''} -> {batch}g {y}", why=why, macs=f"{free} g")
    text = f"{batch}(g i) {x}, (g i) o {k}{', (g o)' if bias else ''} -> {batch}(g o) {y}"
    return line(text, why=why, sizes=sizes, macs=f"{free} g o i", roles={"g": "conv-group", "o": "group-width", "i": "group-width"})
