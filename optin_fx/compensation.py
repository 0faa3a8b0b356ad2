"""How consumers of pruned groups are refitted: the options, the choice of level and ridge on held-out rows, and its report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from optin_fx.moments import Moments, Refit, offset_only, ridge, scales

LEVELS = ("none", "bias", "scale", "affine")
TARGETS = ("own", "dense", "residual")
MODES = ("sequential", "parallel")
LAYERS = ("all", "consumers")
ROW_WEIGHTS = ("uniform", "gradient")
LARGEST_SCALE = 10.0
"""Scales of units beyond this, or below its negative, are refused for the layer (Kwon et al. stop their whole loop there)."""


@dataclass(frozen=True)
class Compensation:
    """What a refit may change and what it aims at; see `RewriteReconstruct`.

    Attributes:
        level: "affine" (weights and bias), "scale" (one number per unit, and a bias), "bias", or "none".
        target: what the consumer is to give: "residual": what its residual stream needs to be the dense one, earlier errors
            included; "dense": the dense program's output; "own": its own output before its units were removed, so that earlier
            errors are not made up for.
        layers: "all": also layers of which no unit went but which read what pruning has changed (the projections of queries behind a
            pruned branch, a classifier), for a part of the change can be told from the changed input; "consumers": those alone that
            read a pruned axis. With `target="own"` or `mode="parallel"` other layers have nothing to make up for, and are left alone.
        mode: "sequential" reads inputs that carry what earlier refits left over; "parallel" reads the dense program's.
        rows_by: "gradient" weighs the rows (tokens, pixels) of each sample by the squared gradient of the program's output there, so
            that what error is left lies where the output does not see it; "uniform" weighs all alike.
        floor: share of its sample's mean weight that every row has at least, with `rows_by="gradient"`.
        norms: re-estimate the statistics of every BatchNorm behind the first refit: its mean and variance move by what the input's
            moved from the dense program's on the calibration data.
        logits: at level "affine", also refit inner products over pruned dims (`q k^T`), to what they are in the dense program
            (`optin_fx.logits`).
        ratios: candidate ridges, as shares of the mean input variance.
        held_out: share of the batches (of a single one that cannot be cut, of its rows) on which ridge and level are chosen.
        rows: at most so many rows per batch enter a refit.
    """

    level: str = "affine"
    target: str = "residual"
    layers: str = "all"
    mode: str = "sequential"
    rows_by: str = "uniform"
    floor: float = 0.1
    norms: bool = False
    logits: bool = True
    ratios: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    held_out: float = 0.25
    rows: int = 4096

    def __post_init__(self) -> None:
        checked = {"level": LEVELS, "target": TARGETS, "layers": LAYERS, "mode": MODES, "rows_by": ROW_WEIGHTS}
        for name, allowed in checked.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}; not {getattr(self, name)!r}")

    @property
    def reaches_further(self) -> bool:
        """Whether layers are refitted of which no unit went."""
        return self.layers == "all" and self.target != "own" and self.mode == "sequential"

    def is_held_out(self, index: int, count: int) -> bool:
        """True for the batches, of several, that choose the ridge."""
        period = max(2, round(1 / max(self.held_out, 1e-6)))
        return index % period == min(period, count) - 1


@dataclass(frozen=True)
class Refitted:
    """What became of one consumer.

    Attributes:
        node, weight: the contraction and the name of the weight that was solved for: its own, or that of the projection before it.
        level: the refit that was best on held-out rows, of `LEVELS`.
        ratio: ridge as a share of the mean input variance.
        before, after: held-out error as a share of the output's variance, without and with the refit.
        note: why it was left alone, if it was.
    """

    node: str
    weight: str
    level: str
    ratio: float = 0.0
    before: float = float("nan")
    after: float = float("nan")
    note: str = ""

    def __str__(self) -> str:
        if self.level == "none" and self.note:
            return f"{self.weight}: left alone, {self.note}"
        errors = f"held-out error {self.before:.4f} -> {self.after:.4f} of the output's variance"
        return f"{self.weight}: {self.level}, {errors} (ridge {self.ratio:g})" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Solution:
    """A refit of one block of a consumer, and how it was found.

    Attributes:
        refit: new weight and bias; None to leave the block as it is.
        level, ratio: see `Refitted`. before, after, variance: held-out errors and the output's variance, not divided.
        note: what was refused on the way.
    """

    refit: Refit | None
    level: str
    ratio: float
    before: float
    after: float
    variance: float
    note: str = ""


def solve(fit: Moments, held: Moments, prior: Refit, units: torch.Tensor, options: Compensation) -> Solution:
    """The level and ridge of least error on held-out rows, solved for again on all rows. Doing nothing is a candidate.

    Args:
        units: for every input column the unit that it belongs to, for the level "scale".
    """
    if fit.count < 2 or held.count <= 0:
        before = held.residual(prior.weight, prior.bias)
        return Solution(None, "none", 0.0, before, before, held.variance, "too few rows")
    before, shifted = held.residuals(prior.weight, [prior.bias, offset_only(fit, prior.weight).bias])
    best, note = ("none", 0.0, before), ""
    if options.level != "none" and shifted < before:
        best = ("bias", 0.0, shifted)
    for level, ratio in _candidates(options):
        found = _refit(level, ratio, fit, prior, units)
        if level == "scale" and float(_largest_scale(found, prior, units)) > LARGEST_SCALE:
            note = f"scales beyond {LARGEST_SCALE:g} refused"
            continue
        error = held.residual(found.weight, found.bias)
        if error < best[2]:
            best = (level, ratio, error)
    level, ratio, after = best
    refit = None if level == "none" else _refit(level, ratio, fit + held, prior, units)
    return Solution(refit, level, ratio, before, after, held.variance, note)


def _candidates(options: Compensation) -> Iterator[tuple[str, float]]:
    if options.level in ("scale", "affine"):
        yield from ((options.level, ratio) for ratio in options.ratios)


def _refit(level: str, ratio: float, moments: Moments, prior: Refit, units: torch.Tensor) -> Refit:
    if level == "bias":
        return offset_only(moments, prior.weight)
    return scales(moments, prior.weight, units, ratio) if level == "scale" else ridge(moments, prior.weight, ratio)


def _largest_scale(found: Refit, prior: Refit, units: torch.Tensor) -> torch.Tensor:
    old = prior.weight.square().sum(0)
    ratio = (found.weight * prior.weight).sum(0) / old.clamp_min(1e-30)
    return torch.where(old > 0, ratio.abs(), 0.0).max()
