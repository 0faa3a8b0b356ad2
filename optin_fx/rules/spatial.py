"""Pooling, resizing and sampling: leading dims pass, positions are semantics."""

from __future__ import annotations

import torch

from optin_fx.rulebook import Call, Line, line, rule

aten = torch.ops.aten

_OVER = {
    1: ["max_pool1d.default", "avg_pool1d.default", "adaptive_avg_pool1d.default", "adaptive_max_pool1d.default",
        "upsample_linear1d.vec", "upsample_nearest1d.vec", "max_pool1d_with_indices.default"],
    2: ["max_pool2d.default", "avg_pool2d.default", "adaptive_avg_pool2d.default", "adaptive_max_pool2d.default",
        "max_pool2d_with_indices.default", "upsample_bilinear2d.vec", "upsample_nearest2d.vec", "upsample_bicubic2d.vec",
        "_upsample_bilinear2d_aa.vec", "_upsample_bicubic2d_aa.vec", "upsample_nearest2d.default", "upsample_bilinear2d.default",
        "reflection_pad2d.default", "replication_pad2d.default", "lp_pool2d.default"],
    3: ["max_pool3d.default", "avg_pool3d.default", "adaptive_avg_pool3d.default", "adaptive_max_pool3d.default",
        "upsample_trilinear3d.vec", "upsample_nearest3d.vec"],
}  # fmt: skip


def _overloads(names: list[str]) -> list[torch._ops.OpOverload]:
    found = []
    for name in names:
        packet, overload = name.split(".")
        if hasattr(aten, packet) and overload in getattr(aten, packet).overloads():
            found.append(getattr(getattr(aten, packet), overload))
    return found


def _window(n: int) -> Line:
    before, after = (" ".join(f"{c}{i}!" for i in range(n)) for c in "xy")
    result = f"... {after}"
    return line(f"... {before} -> {result}, {result}", why="a spatial extent", drop=True)


for _n, _ops in _OVER.items():
    for _op in _overloads(_ops):
        rule(_op, mapping=_window(_n))


@rule(aten.grid_sampler.default, aten.grid_sampler_2d.default)
def sampled(call: Call) -> Line:
    """Positions given as values; channels pass."""
    return line("b c x! y!, b u! v! 2 -> b c u! v!", why="a spatial extent", drop=True)


@rule(aten.unfold.default)
def windows(call: Call) -> Line:
    """Windows along one dim become a new last dim."""
    dim = call.dim(call["dimension"])
    names = [f"n{i}" for i in range(len(call.operands[0].shape))]
    left = " ".join("x!" if i == dim else n for i, n in enumerate(names))
    right = " ".join("y!" if i == dim else n for i, n in enumerate(names))
    return line(f"{left} -> {right} k!", why="a spatial extent", drop=True)


@rule(aten.im2col.default)
def patches(call: Call) -> Line:
    """`F.unfold`: a channel becomes a block of kernel positions."""
    kernel, width = call["kernel_size"], call.operands[0].shape[-3]
    batch = "b " if len(call.operands[0].shape) == 4 else ""
    sizes = {"c": width, "k": kernel[0] * kernel[1]}
    return line(f"{batch}c x! y! -> {batch}(c k!) l!", sizes=sizes, why="a spatial extent", drop=True)


@rule(aten.col2im.default)
def image(call: Call) -> Line:
    """`F.fold`: overlapping patches are added up per channel."""
    kernel, width = call["kernel_size"], call.results[0][-3]
    batch = "b " if len(call.operands[0].shape) == 3 else ""
    sizes = {"c": width, "k": kernel[0] * kernel[1]}
    return line(f"{batch}(c k!) l! -> {batch}c x! y!", sizes=sizes, why="a spatial extent", drop=True)
