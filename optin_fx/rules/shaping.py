"""Views, permutations, broadcasts and repeats: the same entries under other dims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import gcd, prod
from typing import Any

import torch

from optin_fx.rulebook import Call, Line, Resized, line, rule

aten = torch.ops.aten


def follow(argument: str) -> Any:
    """A resize function for an argument that lists the result's sizes."""

    def resize(call: Call, new: Resized) -> Mapping[str, Any]:
        return sizes_follow(argument, call[argument], call.results[0], new.results[0])

    return resize


def sizes_follow(argument: str, written: Sequence[Any], old: Sequence[int], new: Sequence[int]) -> Mapping[str, Any]:
    """Replace the written sizes of the dims that changed. Computed sizes (SymInt nodes) become `Scaled`."""
    if tuple(old) == tuple(new):
        return {}
    found = [
        value if before == after or value == -1 else Scaled(value, after // gcd(before, after), before // gcd(before, after))
        for value, before, after in zip(written, old, new, strict=True)
    ]
    return {argument: [value.plain() if isinstance(value, Scaled) else value for value in found]}


class Scaled:
    """A written size that is to be multiplied by `times / over`: a number at once, a SymInt node in the graph."""

    def __init__(self, value: Any, times: int, over: int) -> None:
        self.value, self.times, self.over = value, times, over

    def plain(self) -> Any:
        """The number where the size is a number."""
        return self.value * self.times // self.over if isinstance(self.value, int) else self


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


@rule(aten.view.default, aten._unsafe_view.default, resize=follow("size"))
def view(call: Call) -> Line | None:
    """Match runs of input and output dims of equal product; each run is a product of the finer side's dims."""
    return reshaped(call.operands[0].shape, call.results[0])


rule(aten.reshape.default, resize=follow("shape"))(view)


def reshaped(before: Sequence[int], after: Sequence[int]) -> Line | None:
    """The line of a row-major reshape: per run of dims of equal product, split the larger dim by the smaller.

    A run in which that does not work out (`2 3 -> 3 2`) is pinned, and the other dims pass.
    """
    left: list[str] = []
    right: list[str] = []
    sizes: dict[str, int] = {}
    for old, new in _runs(before, after):
        if prod(old) != prod(new):
            return None
        found = _split(old, new, len(sizes))
        if found is None:
            left += [f"u{len(left)}_{k}!" if n != 1 else "1" for k, n in enumerate(old)]
            right += [f"w{len(right)}_{k}!" if n != 1 else "1" for k, n in enumerate(new)]
            continue
        own_left, own_right, own_sizes = found
        left, right, sizes = left + own_left, right + own_right, sizes | own_sizes
    text = f"{' '.join(left)} -> {' '.join(right)}"
    return line(text, sizes=sizes, why="its entries are dealt out anew", drop="!" in text)


def _runs(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Shortest stretches of both sides, from the left, that have equal products."""
    i = j = 0
    while i < len(before) or j < len(after):
        m, n = i, j
        a = b = 1
        while True:
            if a <= b and i < len(before):
                a, i = a * before[i], i + 1
            elif j < len(after):
                b, j = b * after[j], j + 1
            elif i < len(before):
                a, i = a * before[i], i + 1
            if a == b != 1 or (i == len(before) and j == len(after)):
                break
        yield before[m:i], after[n:j]


def _split(before: Sequence[int], after: Sequence[int], first: int) -> tuple[list[str], list[str], dict[str, int]] | None:
    """Terms of both sides of a run and the sizes of their factors, numbered from `first`; None where a dim does not divide."""
    left: list[list[str]] = [[] for _ in before]
    right: list[list[str]] = [[] for _ in after]
    sizes: dict[str, int] = {}
    i = j = 0
    a, b = (before[0] if before else 1), (after[0] if after else 1)
    while i < len(before) and j < len(after):
        # extents of one hold nothing; step over them
        if a == 1:
            i, a = i + 1, before[i + 1] if i + 1 < len(before) else 1
            continue
        if b == 1:
            j, b = j + 1, after[j + 1] if j + 1 < len(after) else 1
            continue
        step = min(a, b)
        if step == 0 or a % step or b % step:
            return None
        name = f"f{first + len(sizes)}"
        sizes[name] = step
        left[i].append(name)
        right[j].append(name)
        a, b = a // step, b // step

    def terms(side: list[list[str]]) -> list[str]:
        return ["1" if not names else names[0] if len(names) == 1 else f"({' '.join(names)})" for names in side]

    return terms(left), terms(right), sizes


@rule(aten.reshape_as.default, aten.view_as.default)
def view_as(call: Call) -> Line | None:
    """The second operand gives the sizes, so its dims are those of the result."""
    found = reshaped(call.operands[0].shape, call.results[0])
    return None if found is None else replace(found, operands=(*found.operands, *found.results))


@rule(aten.flatten.using_ints, aten.ravel.default)
def flatten(call: Call) -> Line | None:
    """Neighbouring dims become their product."""
    return reshaped(call.operands[0].shape, call.results[0])


def _unflatten_follows(call: Call, new: Resized) -> Mapping[str, Any]:
    at = call.dim(call["dim"])
    n = len(call["sizes"])
    return sizes_follow("sizes", call["sizes"], call.results[0][at : at + n], new.results[0][at : at + n])


@rule(aten.unflatten.int, resize=_unflatten_follows)
def unflatten(call: Call) -> Line | None:
    """One dim becomes a product."""
    return reshaped(call.operands[0].shape, call.results[0])


@rule(aten.permute.default)
def permute(call: Call) -> str:
    """Dims in another order."""
    names = _names("n", len(call.operands[0].shape))
    return f"{' '.join(names)} -> {' '.join(names[d] for d in call.dims(call['dims']))}"


@rule(aten.transpose.int, aten.transpose_.default, aten.swapaxes.default, aten.t.default, aten.numpy_T.default, aten.mT.default)
def transpose(call: Call) -> str:
    """Two dims swapped."""
    names = _names("n", len(call.operands[0].shape))
    order = list(range(len(names)))
    if "dim0" in call.arguments or "axis0" in call.arguments:
        a, b = (call.dim(call[k]) for k in (("dim0", "dim1") if "dim0" in call.arguments else ("axis0", "axis1")))
        order[a], order[b] = order[b], order[a]
    elif call.op is aten.mT.default:
        order[-1], order[-2] = order[-2], order[-1]
    else:
        order.reverse()
    return f"{' '.join(names)} -> {' '.join(names[d] for d in order)}"


@rule(aten.movedim.int, aten.movedim.intlist)
def movedim(call: Call) -> str:
    """Some dims moved to other places."""
    rank = len(call.operands[0].shape)
    source, target = call.dims(call["source"]), call.dims(call["destination"])
    order: list[int] = [-1] * rank
    for s, t in zip(source, target, strict=True):
        order[t] = s
    rest = iter(d for d in range(rank) if d not in source)
    order = [next(rest) if d < 0 else d for d in order]
    names = _names("n", rank)
    return f"{' '.join(names)} -> {' '.join(names[d] for d in order)}"


@rule(aten.unsqueeze.default, aten.unsqueeze_.default)
def unsqueeze(call: Call) -> str:
    """A new dim of one."""
    names = _names("n", len(call.operands[0].shape))
    out = list(names)
    out.insert(call.dim(call["dim"], len(names) + 1), "1")
    return f"{' '.join(names)} -> {' '.join(out)}"


def _squeeze_follows(call: Call, new: Resized) -> Mapping[str, Any]:
    """A dim that has shrunk to one would now be squeezed, too; so the dims to squeeze are written out."""
    shape = call.operands[0].shape
    if all(n == 1 or after != 1 for n, after in zip(shape, new.operands[0], strict=True)):
        return {}
    asked = call.dims(call.arguments.get("dim")) if shape else ()
    op = aten.squeeze_.dims if call.op._schema.is_mutable else aten.squeeze.dims
    return {"op": op, "self": call["self"], "dim": [i for i in asked if shape[i] == 1]}


@rule(
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze_.default,
    aten.squeeze_.dim,
    aten.squeeze_.dims,
    resize=_squeeze_follows,
)
def squeeze(call: Call) -> str:
    """Dims of one removed."""
    shape = call.operands[0].shape
    asked = call.dims(call.arguments.get("dim")) if shape else ()
    names = _names("n", len(shape))
    left = ["1" if i in asked and n == 1 else names[i] for i, n in enumerate(shape)]
    return f"{' '.join(left)} -> {' '.join(n for n in left if n != '1')}"


@rule(aten.expand.default, resize=follow("size"))
def expand(call: Call) -> str:
    """Dims of one broadcast to a new extent; whatever that extent later meets decides what it is."""
    shape, out = call.operands[0].shape, call.results[0]
    lead = len(out) - len(shape)
    left: list[str] = []
    right = [f"m{i}" for i in range(lead)]
    for i, n in enumerate(shape):
        grows = n == 1 and out[lead + i] != 1
        left.append("1" if grows else f"n{i}")
        right.append(f"m{lead + i}" if grows else f"n{i}")
    return f"{' '.join(left)} -> {' '.join(right)}"


@rule(aten.expand_as.default, aten.broadcast_to.default, resize=lambda call, new: _broadcast_follows(call, new))
def expand_as(call: Call) -> str:
    """Broadcast to the second operand's dims, or to written ones."""
    if call.op is aten.broadcast_to.default:
        return expand(call)
    return "..., ... -> ..."


def _broadcast_follows(call: Call, new: Resized) -> Mapping[str, Any]:
    return sizes_follow("size", call["size"], call.results[0], new.results[0]) if "size" in call.arguments else {}


def _repeats_follow(call: Call, new: Resized) -> Mapping[str, Any]:
    argument = "repeats" if "repeats" in call.arguments else "dims"
    missing = len(call.results[0]) - len(call[argument])  # tile: counts are for the last dims
    written = list(call[argument])
    # a computed count (a SymInt node) belongs to a pinned extent, and stays
    changed = [new.factors.get(f"r{i}", value) if isinstance(value, int) else value for i, value in enumerate(written, missing)]
    return {argument: changed} if changed != written else {}


@rule(aten.repeat.default, aten.tile.default, resize=_repeats_follow)
def repeat(call: Call) -> Line | None:
    """The whole dim again and again: the repeat count is the outer factor."""
    shape, out = call.operands[0].shape, call.results[0]
    lead = len(out) - len(shape)
    if lead < 0 or 0 in shape:
        return None
    left = [f"n{i}" if n != 1 else "1" for i, n in enumerate(shape)]
    right, sizes = [], {}
    for i, n in enumerate(out):
        own = shape[i - lead] if i >= lead else 1
        if n == own:
            right.append(left[i - lead] if i >= lead else "1")
            continue
        sizes[f"r{i}"] = n // own
        right.append(f"r{i}" if own == 1 else f"(r{i} n{i - lead})")
    return line(f"{' '.join(left)} -> {' '.join(right)}", sizes=sizes)


@rule(aten.repeat_interleave.self_int, resize=lambda call, new: {"repeats": new.factors["r"]} if "r" in new.factors else {})
def repeat_interleave(call: Call) -> Line | None:
    """Each entry again and again: the repeat count is the inner factor."""
    if call["dim"] is None:
        return None
    dim, shape = call.dim(call["dim"]), call.operands[0].shape
    names = _names("n", len(shape))
    out = list(names)
    times = call.results[0][dim] // shape[dim]
    if times == 1:
        return line(f"{' '.join(names)} -> {' '.join(out)}")
    out[dim] = f"({names[dim]} r)"
    return line(f"{' '.join(names)} -> {' '.join(out)}", sizes={"r": times})


@rule(aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default)
def shuffles(call: Call) -> Line | None:
    """Channels to positions and back; and ShuffleNet's transposition of (groups, width)."""
    if call.op is aten.channel_shuffle.default:
        groups = call["groups"]
        return line(
            "b (g! c) ... -> b (c g!) ...", sizes={"g": groups, "c": call.operands[0].shape[1] // groups}, why="a shuffle's group count"
        )
    if len(call.operands[0].shape) != 4:
        return None
    up = call.op is aten.pixel_shuffle.default
    r = call["upscale_factor" if up else "downscale_factor"]
    fine, coarse = "b c (y! r!) (x! s!)", "b (c r! s!) y! x!"
    channels, height, width = (call.results[0] if up else call.operands[0].shape)[1:]
    sizes = {"r": r, "s": r, "c": channels, "y": height // r, "x": width // r}
    return line(f"{coarse} -> {fine}" if up else f"{fine} -> {coarse}", sizes=sizes, why="a pixel position")
