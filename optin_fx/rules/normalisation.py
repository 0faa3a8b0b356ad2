"""Normalisations. Removing an entry of a normalised axis changes its statistics, so such axes keep their extent."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from optin_fx.rulebook import TIMES, Call, Line, Resized, is_constant, line, rule
from optin_fx.rules.reduction import CASTS

aten = torch.ops.aten

WHY = "normalised together"


def _shape_follows(call: Call, new: Resized) -> Mapping[str, Any]:
    n = len(call["normalized_shape"])
    return {"normalized_shape": list(new.operands[0][-n:])} if new.operands[0][-n:] != call.operands[0].shape[-n:] else {}


def _mean_square_stays(call: Call, new: Resized) -> Mapping[str, Any]:
    """`x / sqrt(sum(x^2) / n + eps)` with the dense n, by an op that divides by the m that are left: eps n/m, then times sqrt(n/m)."""
    changes = dict(_shape_follows(call, new))
    if changes:
        n = len(call["normalized_shape"])
        ratio = prod(call.operands[0].shape[-n:]) / prod(new.operands[0][-n:])
        eps = call["eps"]
        if eps is None:
            eps = torch.finfo(call.operands[0].node.meta["val"].dtype).eps
        changes |= {"eps": eps * ratio, TIMES: ratio**0.5}
    return changes


@rule(aten.rms_norm.default, resize=_mean_square_stays)
def rms_norm(call: Call) -> Line:
    """As a mean of squares (see `rules.reduction.mean`): exact with the dense divisor, on residual streams only if allowed."""
    n = len(call["normalized_shape"])
    dims = " ".join(f"c{i}!" for i in range(n))
    text = f"... {dims}{f', {dims}' * (len(call.operands) - 1)} -> ... {dims}"
    return line(text, why=f"{WHY} (rms_norm)", code="averaged", summed=[f"c{i}" for i in range(n)])


@rule(aten.layer_norm.default, aten.native_layer_norm.default, resize=_shape_follows)
def layer_norm(call: Call) -> Line:
    """Statistics over the last dims; weight and bias have those dims."""
    n = len(call["normalized_shape"])
    dims = " ".join(f"c{i}!" for i in range(n))
    results = [f"... {dims}"] + ["... " + " ".join(["1"] * n)] * (len(call.results) - 1)
    operands = ", ".join([f"... {dims}"] + [dims] * (len(call.operands) - 1))
    return line(f"{operands} -> {', '.join(results)}", why=f"{WHY} ({call.op.overloadpacket.__name__})", code="normalised")


@rule(aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
def batch_norm(call: Call) -> Line:
    """Per channel (dim 1), with stored statistics in eval and its own in training: exact either way. Of weights, see `optin_fx.frozen`."""
    affine = ", c" * (len(call.operands) - 1)
    if call.op is aten._native_batch_norm_legit_no_training.default:  # the statistics that it hands back are empty
        return line(f"b c ...{affine} -> b c ..., m!, v!", why="statistics of a batch")
    if not call.arguments.get("training"):
        return line(f"b c ...{affine} -> b c ...")
    places = _places(call)
    if call["running_mean"] is None and is_constant(call):  # a weight that is standardised, filter by filter
        free = places.replace("!", "")
        return line(f"b! c {free}{affine} -> b c {free}", why=f"{WHY} (batch_norm)", frozen=free.split())
    return line(f"b! c {places}{affine} -> b c {places}", why=f"{WHY} (batch_norm)")


@rule(aten.instance_norm.default)
def instance_norm(call: Call) -> Line:
    """Per sample and channel, over positions."""
    places = _places(call)
    return line(f"b c {places}" + ", c" * (len(call.operands) - 1) + f" -> b c {places}", why=f"{WHY} (instance_norm)")


def _places(call: Call) -> str:
    """The dims after the channels, whose entries share statistics."""
    return " ".join(f"x{i}!" for i in range(len(call.operands[0].shape) - 2))


def _groups_follow(call: Call, new: Resized) -> Mapping[str, Any]:
    return {"num_groups": new.factors["g"]}


@rule(aten.group_norm.default, resize=_groups_follow)
def group_norm(call: Call) -> Line:
    """Whole groups may go (their number is reduced); channels inside one share their statistics."""
    groups = call["num_groups"]
    affine = ", (g c!)" * (len(call.operands) - 1)
    sizes = {"g": groups, "c": call.operands[0].shape[1] // groups}
    places = _places(call)
    text = f"b (g c!) {places}{affine} -> b (g c!) {places}"
    return line(text, sizes=sizes, why=f"{WHY} (group_norm)", roles={"g": "norm-group"}, code="normalised")


@rule(
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    aten.cumprod.default,
    aten.logcumsumexp.default,
)
def along_dim(call: Call) -> Line:
    """Entries along one dim see each other, all others pass. A router's softmax, of which the best are taken, is one among those left."""
    dim = call.dim(call["dim"])
    names = [f"n{i}" for i in range(len(call.operands[0].shape))]
    left = " ".join(n + ("!" if i == dim else "") for i, n in enumerate(names))
    if _is_routing(call, dim):
        return line(f"{' '.join(names)} -> {' '.join(names)}", chosen=[f"n{dim}"], roles={f"n{dim}": "expert"})
    return line(f"{left} -> {' '.join(names)}", why=f"a {call.op.overloadpacket.__name__.strip('_')} over it")


def _is_routing(call: Call, dim: int) -> bool:
    """Whether the best entries along the dim are what is read of a softmax."""
    if call.op not in (aten.softmax.int, aten._softmax.default):
        return False
    pending = list(call.node.users)
    while pending:
        user = pending.pop()
        if user.target in CASTS:
            pending += user.users
        elif user.target is aten.topk.default:
            along = user.args[2] if len(user.args) > 2 else user.kwargs.get("dim", -1)
            return isinstance(along, int) and call.dim(along) == dim
    return False


@rule(aten.cumsum.default)
def running_sum(call: Call) -> Line:
    """What comes before an entry adds to it: a removed one adds nothing."""
    dim = call.dim(call["dim"])
    names = " ".join(f"n{i}" for i in range(len(call.operands[0].shape)))
    return line(f"{names} -> {names}", summed=[f"n{dim}"] if names else [])


@rule(aten.diff.default)
def differences(call: Call) -> Line:
    """Neighbours along one dim, with what is put before and after them."""
    dim = call.dim(call["dim"])
    names = [f"n{i}" for i in range(len(call.operands[0].shape))]
    sides = [" ".join(f"x{k}!" if i == dim else n for i, n in enumerate(names)) for k in range(len(call.operands) + 1)]
    return line(f"{', '.join(sides[:-1])} -> {sides[-1]}", why="differences of neighbours along it", drop=True)


@rule(aten.glu.default)
def gated(call: Call) -> Line:
    """The first half of a dim times the sigmoid of the second."""
    dim = call.dim(call["dim"])
    names = [f"n{i}" for i in range(len(call.operands[0].shape))]
    left, right = list(names), list(names)
    left[dim], right[dim] = "(a + a)", "a"
    return line(f"{' '.join(left)} -> {' '.join(right)}", sizes={"a": call.results[0][dim]})


@rule(aten._weight_norm.default)
def weight_norm(call: Call) -> Line:
    """A direction, normalised over all dims but one, times a gain along that one. Of weights, see `optin_fx.frozen`."""
    dim = call.dim(call["dim"])
    names = [f"n{i}" for i in range(len(call.operands[0].shape))]
    v = " ".join(n if i == dim else f"{n}!" for i, n in enumerate(names))
    g = " ".join(n if i == dim else "1" for i, n in enumerate(names))
    if is_constant(call):
        return line(f"{v}, {g} -> {' '.join(names)}".replace("!", ""), frozen=[n for i, n in enumerate(names) if i != dim])
    return line(f"{v}, {g} -> {' '.join(names)}", why=f"{WHY} (weight_norm)", code="normalised")


@rule(aten.fft_fftn.default, aten.fft_fft.default, aten.fft_ifftn.default, aten.fft_ifft.default)
def fourier(call: Call) -> Line:
    """Every frequency sees every entry along the transformed dims."""
    dims = call.dims(call.arguments.get("dim"))
    names = [f"n{i}" for i in range(len(call.operands[0].shape))]
    left = " ".join(f"{n}!" if i in dims else n for i, n in enumerate(names))
    right = " ".join(f"f{i}!" if i in dims else n for i, n in enumerate(names))
    return line(f"{left} -> {right}", why="a Fourier transform over it", drop=True)
