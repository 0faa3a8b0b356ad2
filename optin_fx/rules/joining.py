"""Concatenations and their inverses: sums of axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optin_fx.dims import SYMBOLIC
from optin_fx.rulebook import Call, Line, Resized, line, rule

aten = torch.ops.aten


def _names(call: Call, operand: int = 0) -> list[str]:
    return [f"n{i}" for i in range(len(call.operands[operand].shape))]


def _dims(names: Sequence[str], dim: int, term: str) -> str:
    return " ".join(term if i == dim else n for i, n in enumerate(names))


@rule(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(call: Call) -> Line | None:
    """`b x, b y -> b (x + y)`; empty one-dimensional operands, which torch ignores, are ignored."""
    rank = len(call.results[0])
    dim = call.dim(call["dim"], rank)
    operands, terms, sizes = [], [], {}
    names = [f"n{i}" for i in range(rank)]
    for k, operand in enumerate(call.operands):
        if operand.shape == (0,) and rank != 1:
            operands.append("_")
            continue
        operands.append(_dims(names, dim, f"t{k}"))
        terms.append(f"t{k}")
        sizes[f"t{k}"] = operand.shape[dim]
    out = terms[0] if len(terms) == 1 else f"({' + '.join(terms)})"
    return line(f"{', '.join(operands)} -> {_dims(names, dim, out)}", sizes=sizes)


@rule(aten.stack.default)
def stack(call: Call) -> Line:
    """A new dim, one entry per operand."""
    rank = len(call.results[0])
    dim = call.dim(call["dim"], rank)
    names = [f"n{i}" for i in range(rank - 1)]
    out = [*names[:dim], "s!", *names[dim:]]
    return line(", ".join([" ".join(names)] * len(call.operands)) + f" -> {' '.join(out)}", why="a stack of separate tensors")


@rule(aten.unbind.int)
def unbind(call: Call) -> Line:
    """One result per entry of a dim."""
    names = _names(call)
    dim = call.dim(call["dim"])
    rest = " ".join(n for i, n in enumerate(names) if i != dim)
    left = _dims(names, dim, "s!")
    return line(f"{left} -> " + ", ".join([rest] * len(call.results)), why="taken apart entry by entry", drop=True)


@rule(aten.select.int, aten.select_copy.int)
def select(call: Call) -> Line:
    """One entry of a dim."""
    names = _names(call)
    dim = call.dim(call["dim"])
    rest = " ".join(n for i, n in enumerate(names) if i != dim)
    return line(f"{_dims(names, dim, 's!')} -> {rest}", why="one entry is taken by its position", drop=True)


def _split_follows(call: Call, new: Resized) -> Mapping[str, Any]:
    """Parts may become uneven, so every split is rewritten to one with written sizes."""
    dim = call.dim(call["dim"])
    before, after = [s[dim] for s in call.results], [s[dim] for s in new.results]
    if before == after:
        return {}
    return {"op": aten.split_with_sizes.default, "self": call["self"], "split_sizes": after, "dim": dim}


@rule(
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
    aten.unsafe_chunk.default,
    aten.unsafe_split.Tensor,
    resize=_split_follows,
)
def split(call: Call) -> Line:
    """`b (x + y) -> b x, b y`."""
    names, dim = _names(call), call.dim(call["dim"])
    terms = [f"t{k}" for k in range(len(call.results))]
    whole = terms[0] if len(terms) == 1 else f"({' + '.join(terms)})"
    sizes = {t: s[dim] for t, s in zip(terms, call.results, strict=True)}
    return line(f"{_dims(names, dim, whole)} -> {', '.join(_dims(names, dim, t) for t in terms)}", sizes=sizes)


def _window_follows(call: Call, new: Resized) -> Mapping[str, Any]:
    dim = call.dim(call["dim"])
    length = new.results[0][dim]
    unchanged = call.operands[0].shape[dim] == new.operands[0][dim]
    if unchanged or length >= SYMBOLIC or call.arguments.get("step", 1) != 1:  # a step goes on to the end, wherever that is
        return {}
    start = new.factors.get("a", 0)
    return {"start": start, "length": length} if "length" in call.arguments else {"start": start, "end": start + length}


@rule(aten.slice.Tensor, aten.narrow.default, resize=_window_follows)
def slice_(call: Call) -> Line | None:
    """`(before + taken + after) -> taken`, with a step `(taken step) -> taken`; a computed start pins the dim."""
    names, dim = _names(call), call.dim(call["dim"])
    size, taken = call.operands[0].shape[dim], call.results[0][dim]
    start, step = call["start"] or 0, call.arguments.get("step", 1)
    if size == taken:
        return line(f"{' '.join(names)} -> {' '.join(names)}")
    if not isinstance(start, int) or not isinstance(step, int) or max(size, taken) >= SYMBOLIC:
        return line(f"{_dims(names, dim, 'k!')} -> {_dims(names, dim, 'w!')}", why="a slice by computed positions", drop=True)
    if step != 1:
        if size != taken * step or not 0 <= start < step:
            return line(f"{_dims(names, dim, 'k!')} -> {_dims(names, dim, 'w!')}", why="a slice in uneven steps", drop=True)
        whole = _dims(names, dim, "(m step!)")
        return line(f"{whole} -> {_dims(names, dim, 'm')}", sizes={"m": taken, "step": step}, why="every so many entries", drop=True)
    start = max(start + size, 0) if start < 0 else min(start, size)
    sizes = {"a": start, "m": taken, "z": size - start - taken}
    parts = [p for p in ("a", "m", "z") if sizes[p]]
    whole = parts[0] if len(parts) == 1 else f"({' + '.join(parts)})"
    if not taken:  # what a rotary embedding of the whole head leaves over
        return line(f"{_dims(names, dim, 'k')} -> {_dims(names, dim, 'none')}", sizes={"none": 0}, drop=True)
    return line(f"{_dims(names, dim, whole)} -> {_dims(names, dim, 'm')}", sizes={p: sizes[p] for p in parts}, drop=True)


@rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(call: Call) -> Line | None:
    """Constant padding puts a fixed extent beside the axis. Other modes, and cropping, look at positions."""
    widths = list(call["pad"])
    names = _names(call)
    left, right = list(names), list(names)
    sizes: dict[str, int] = {}
    constant = call.arguments.get("mode", "constant") == "constant"
    for k in range(len(widths) // 2):
        before, after = widths[2 * k], widths[2 * k + 1]
        i = len(names) - 1 - k
        if before == 0 and after == 0:
            continue
        if (
            not constant
            or not isinstance(before, int)
            or not isinstance(after, int)
            or min(before, after) < 0
            or call.results[0][i] >= SYMBOLIC
        ):
            left[i], right[i] = f"n{i}!", f"w{i}!"
            continue
        terms = [f"p{i}!"] * (before > 0) + [f"n{i}"] + [f"q{i}!"] * (after > 0)
        sizes |= {f"p{i}": before} if before else {}
        sizes |= {f"q{i}": after} if after else {}
        right[i] = f"({' + '.join(terms)})"
    value = call.arguments.get("value")
    if any(r.startswith("(") for r in right) and value not in (None, 0, 0.0) and not isinstance(value, (int, float)):
        return None
    return line(f"{' '.join(left)} -> {' '.join(right)}", sizes=sizes, why="padding", drop=True)
