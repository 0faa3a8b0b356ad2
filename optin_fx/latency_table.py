"""Measured latency as a function of the groups' widths: the part of the model that a group touches, timed in the target."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optin_fx.costs import cost_model
from optin_fx.digests import digest
from optin_fx.environment import environment
from optin_fx.errors import OptinError
from optin_fx.files import cache_folder, write_whole
from optin_fx.groups import Group, group
from optin_fx.latency import measure
from optin_fx.lowering import parse_target
from optin_fx.polynomial import Polynomial
from optin_fx.program import Program
from optin_fx.regions import Region, node_values, region_of
from optin_fx.space import ALIGNED
from optin_fx.timing import Repeats

FITS = ("linear", "steps", "kwon")
FASTEST = 5
"""Percentile of the calls that a curve is made of: other load on the machine only ever adds, and adds most to what takes long."""
QUICK = Repeats(least=15, most=40, precision=0.03, seconds=3.0)


@dataclass(frozen=True)
class Curve:
    """Seconds of a group's part over its width.

    Attributes:
        widths: ascending, the last is the dense extent. seconds: of the fastest calls, see `FASTEST`.
        spread: interquartile range over median.
        note: empty, or why it was not measured.
    """

    widths: tuple[int, ...]
    seconds: tuple[float, ...]
    spread: tuple[float, ...]
    note: str = ""

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Curve:
        """Read what `asdict` gave, after a way through JSON."""
        return cls(tuple(facts["widths"]), tuple(facts["seconds"]), tuple(facts["spread"]), str(facts["note"]))

    def at(self, width: float, fit: str) -> float:
        """Seconds at any width: between two measured ones on a line ("linear"), those of the next wider one ("steps"), or
        Kwon et al.'s fit ("kwon"): a constant up to a width, a line from there on. Nothing takes no time."""
        if width <= 0:
            return 0.0
        if fit == "steps":
            return self.seconds[min(int(np.searchsorted(self.widths, width)), len(self.widths) - 1)]
        if fit == "kwon":
            corner, level, slope = _corner(self.widths, self.seconds)
            return level + slope * max(width - corner, 0.0)
        return float(np.interp(width, self.widths, self.seconds))


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of a whole program as a sum over its groups; a `costs.Measure`.

    Attributes:
        target: canonical target text.
        dense: measured seconds of the whole dense program.
        curves: by group name.
        fit: see `Curve.at`.
        factor: what the parts' savings are multiplied with: at first by MACs, then corrected by measurements of whole programs.
    """

    target: str
    dense: float
    curves: Mapping[str, Curve]
    fit: str = "linear"
    factor: float = 1.0

    separable = True

    def __call__(self, extents: Mapping[str, float]) -> float:
        """Seconds at some extents."""
        return self.dense - self.factor * sum(self._saving(name, extents[name]) for name in self.curves)

    def derivative(self, name: str, extents: Mapping[str, float]) -> float:
        """What the next unit costs; over a stretch wide enough to see a slope."""
        if name not in self.curves:
            return 0.0
        stretch = max(1.0, 0.05 * self.curves[name].widths[-1])
        width = extents[name]
        rise = self._saving(name, max(width - stretch, 1.0)) - self._saving(name, width + stretch)
        return max(self.factor * rise / (2 * stretch), 0.0)

    def corrected(self, extents: Mapping[str, float], share: float) -> LatencyTable:
        """The table that gives a measured share of the dense latency at some extents."""
        saving = 1 - self(extents) / self.dense
        ratio = float(np.clip((1 - share) / max(saving, 1e-9), 0.4, 2.5))
        return replace(self, factor=self.factor * ratio)

    def to_json(self) -> str:
        """The table as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """Read what `to_json` wrote."""
        facts = json.loads(text)
        curves = {name: Curve.from_facts(curve) for name, curve in facts["curves"].items()}
        return cls(facts["target"], facts["dense"], curves, facts["fit"], facts["factor"])

    def __str__(self) -> str:
        lines = [f"{self.target}: dense {1e3 * self.dense:.2f} ms, {len(self.curves)} groups, fit {self.fit}, factor {self.factor:.2f}"]
        for name, c in self.curves.items():
            cells = "  ".join(f"{w}: {1e3 * s:.3f} ms ±{100 * p:.0f}%" for w, s, p in zip(c.widths, c.seconds, c.spread, strict=True))
            lines.append(f"  {name}  {cells}{'  ' + c.note if c.note else ''}")
        return "\n".join(lines)

    def _saving(self, name: str, width: float) -> float:
        curve = self.curves[name]
        return curve.at(curve.widths[-1], self.fit) - curve.at(min(width, curve.widths[-1]), self.fit)


def build(
    program: Program,
    target: str,
    names: Iterable[str] | None = None,
    *,
    points: int = 5,
    align: int = ALIGNED,
    fit: str = "linear",
    cache: Path | None = None,
    repeats: Repeats = QUICK,
    on_group: Callable[[str, Curve, bool], None] | None = None,
) -> LatencyTable:
    """Measure a program's groups in a target, each alone in the part of the program that it touches, at the example inputs' sizes.

    Groups of the same structure are measured once. Curves are cached on disk, keyed by hardware, the target's text (name, device,
    precision) and versions, torch's threads, the part's structure and sizes (the batch among them), and the widths.

    Args:
        names: groups to measure; all prunable ones by default.
        points: widths per group, evenly spaced, in multiples of `align` where the extent is at least four times that.
        fit: see `Curve.at`.
        cache: folder; `$OPTIN_FX_CACHE/latency`, else `~/.cache/optin-fx/latency`.
        on_group: called with (name, curve, True if it came from the cache).

    Raises:
        LoweringError: the target cannot build, or cannot run here.
    """
    if fit not in FITS:
        raise ValueError(f"fit is one of {', '.join(FITS)}; not {fit!r}")
    folder = cache or cache_folder() / "latency"
    parsed, values = parse_target(target), node_values(program)
    groups = {g.name: g for g in group(program).free}
    machine = environment()
    around = [machine[name] for name in ("cpu", "cpus", "cpu_features", "gpu", "cuda_driver", "versions")]
    known: dict[str, Curve] = {}
    curves: dict[str, Curve] = {}
    for name in groups if names is None else names:
        widths = _widths(groups[name], points, align)
        try:
            region = region_of(program, name, values)
        except OptinError as error:  # cut out, the part is no program that can be traced or shrunk: the group is taken to save nothing
            curves[name] = Curve((widths[-1],), (0.0,), (0.0,), f"not measured: {str(error).splitlines()[0]}")
            continue
        key = digest([around, torch.get_num_threads(), parsed.text, region.signature, list(widths)])
        path, cached = folder / f"{key}.json", True
        if key not in known:
            if path.is_file():
                known[key] = Curve.from_facts(json.loads(path.read_text()))
            else:
                known[key], cached = _measured(region, parsed.text, widths, repeats), False
                write_whole(path, json.dumps(asdict(known[key])))
        curves[name] = known[key]
        if on_group:
            on_group(name, curves[name], cached)
    dense = measure(program, target=target, repeats=repeats).latencies[0]
    seconds = float(np.percentile(dense.samples_ms, FASTEST)) / 1e3
    return LatencyTable(parsed.text, seconds, curves, fit, _first_factor(program, curves, seconds))


def _first_factor(program: Program, curves: Mapping[str, Curve], dense: float) -> float:
    """Brings the parts' sum to their share of the whole, by MACs: parts and whole were not timed in the same minutes."""
    model = cost_model(program)
    extents = model.extents()
    measured = {name: curve.seconds[-1] for name, curve in curves.items() if curve.seconds[-1] > 0}
    macs = sum(Polynomial({names: v for names, v in model.macs.monomials.items() if name in names})(extents) for name in measured)
    total = sum(measured.values())
    return dense * macs / (model.macs(extents) * total) if total and macs else 1.0


def _widths(group: Group, points: int, align: int) -> tuple[int, ...]:
    extent = group.extent
    step = align if extent >= 4 * align else 1
    found = {max(step, round(extent * i / points / step) * step) for i in range(1, points)}
    return tuple(sorted({w for w in found if group.least <= w < extent} | {extent}))


def _measured(region: Region, target: str, widths: Sequence[int], repeats: Repeats) -> Curve:
    """Seconds at each width, all widths interleaved."""
    report = measure({str(width): region.at(width) for width in widths}, target=target, repeats=repeats)
    rows = [report.latency(str(width)) for width in widths]
    seconds = [float(np.percentile(row.samples_ms, FASTEST)) / 1e3 for row in rows]
    return Curve(tuple(widths), tuple(seconds), tuple(round(row.spread, 4) for row in rows))


def _corner(widths: Sequence[int], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Kwon et al. (2022, section 3.2): the constant up to T and the rising line after it with the least squared error."""
    x, y = np.asarray(widths, float), np.asarray(seconds)
    best = (np.inf, x[0], y[0], 0.0)
    for i in range(len(x)):
        level = float(y[: i + 1].mean())
        rise = x[i:] - x[i]
        slope = max(float((rise * (y[i:] - level)).sum() / max((rise * rise).sum(), 1e-30)), 0.0)
        error = float(((y[: i + 1] - level) ** 2).sum() + ((y[i:] - level - slope * rise) ** 2).sum())
        if error < best[0]:
            best = (error, x[i], level, slope)
    return best[1], best[2], best[3]
