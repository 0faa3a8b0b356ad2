"""How far two scores of one program agree: rank correlation per kind of unit and overall, and on what would be kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from optin_fx.errors import MissingExtra, ScoreError
from optin_fx.scores import Scores

SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Agreement:
    """Of two scores over some units.

    Attributes:
        units: how many. groups: of how many groups.
        spearman: rank correlation, -1 to 1; None where one of the scores is constant.
        top: by share, of the units that the first score would keep at that share, how many the second one would.
    """

    units: int
    groups: int
    spearman: float | None
    top: dict[float, float]


@dataclass(frozen=True)
class Comparison:
    """Two scores beside each other.

    Attributes:
        first, second: methods.
        overall: over all units as they are ranked together.
        by_kind: over all units of a kind together.
        within: means over groups of the agreement inside each.
    """

    first: str
    second: str
    overall: Agreement
    by_kind: dict[str, Agreement]
    within: Agreement

    def __str__(self) -> str:
        head = f"{'':<16}{'groups':>8}{'units':>9}{'Spearman':>10}" + "".join(f"{f'top {s:.0%}':>10}" for s in SHARES)
        rows = [("all together", self.overall), *self.by_kind.items(), ("within a group", self.within)]
        return "\n".join([f"a: {self.first}", f"b: {self.second}", head, *(_row(name, found) for name, found in rows)])


def compare(first: Scores, second: Scores) -> Comparison:
    """Compare two scores of the same program.

    Raises:
        ScoreError: they are of different programs, or have no group in common.
    """
    if first.fingerprint != second.fingerprint:
        raise ScoreError(
            "the scores belong to different models",
            at=f"a: {first.fingerprint}, b: {second.fingerprint}",
            fix="score the same traced program twice",
        )
    names = [name for name in first if name in second.values]
    if not names:
        raise ScoreError("the scores have no group in common", fix="score the same groups")
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(kind_of(name), []).append(name)
    each = [_agreement(first, second, [name]) for name in names]
    defined = [a.spearman for a in each if a.spearman is not None]
    top = {share: sum(a.top[share] for a in each) / len(each) for share in SHARES}
    within = Agreement(sum(a.units for a in each), len(each), sum(defined) / len(defined) if defined else None, top)
    by_kind = {kind: _agreement(first, second, own) for kind, own in kinds.items()}
    return Comparison(first.method, second.method, _agreement(first, second, names), by_kind, within)


def plot(first: Scores, second: Scores, path: str | Path) -> Path:
    """Draw both scores of every unit against each other, by kind, on logarithmic axes.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingExtra("matplotlib", "plot", needed_for="a plot of scores") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 5), layout="constrained")
    names = [name for name in first if name in second.values]
    for kind in dict.fromkeys(map(kind_of, names)):
        own = [name for name in names if kind_of(name) == kind]
        axes.scatter(_pooled(first, own).clamp_min(1e-30), _pooled(second, own).clamp_min(1e-30), s=4, alpha=0.5, label=kind)
    axes.set(xscale="log", yscale="log", xlabel=first.method, ylabel=second.method)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return Path(path)


def kind_of(name: str) -> str:
    """The kind of unit in a group's name: `head` for `encoder.layer.0.attention:head#2`."""
    return name.rpartition(":")[2].partition("#")[0]


def spearman(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """Rank correlation with ties; None where one side is constant."""
    from scipy.stats import spearmanr

    if len(a) < 2 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return None
    return float(spearmanr(a.numpy(), b.numpy()).statistic)


def top_agreement(a: torch.Tensor, b: torch.Tensor, share: float) -> float:
    """Of the `share` of units that `a` ranks highest, how many `b` has among its own."""
    count = max(1, round(share * len(a)))
    left, right = (set(torch.argsort(v, descending=True, stable=True)[:count].tolist()) for v in (a, b))
    return len(left & right) / count


def _agreement(first: Scores, second: Scores, names: list[str]) -> Agreement:
    a, b = _pooled(first, names), _pooled(second, names)
    return Agreement(len(a), len(names), spearman(a, b), {share: top_agreement(a, b, share) for share in SHARES})


def _pooled(scores: Scores, names: Iterable[str]) -> torch.Tensor:
    return torch.cat([scores[name] for name in names])


def _row(name: str, found: Agreement) -> str:
    rank = "-" if found.spearman is None else f"{found.spearman:.3f}"
    return f"{name:<16}{found.groups:>8}{found.units:>9}{rank:>10}" + "".join(f"{found.top[s]:>10.1%}" for s in SHARES)
