"""Results as a Markdown table and a plot: mean and spread over calibration seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo_table import table

from .figures import Figures

PERCENT = {"accuracy": 2, "agreement": 1, "f1": 1, "exact": 1}
"""Decimals of the metrics that are printed in percent; all others have four, as they are."""


@dataclass(frozen=True)
class Line:
    """One method on one task: its figures by budget."""

    name: str
    peer: bool
    figures: Mapping[float, Figures]

    def mean(self, budget: float, metric: str) -> float | None:
        """None where there are no figures."""
        found = self.figures.get(budget)
        return None if found is None else found.means.get(metric)


def shown(figures: Figures | None, metric: str) -> str:
    """`84.73 ± 0.12`: mean, and half the range over seeds; one seed has no spread; none is a dash, and so is a metric that was not kept."""
    if figures is None or metric not in figures.means:
        return "–"
    factor, decimals = (100, PERCENT[metric]) if metric in PERCENT else (1, 4)
    text = f"{factor * figures.means[metric]:.{decimals}f}"
    return text if figures.seeds == 1 else f"{text} ± {factor * figures.spreads[metric]:.{decimals}f}"


def task_table(lines: Sequence[Line], budgets: Sequence[float], metric: str, *, lower: bool = False) -> str:
    """Methods down, budgets across; the best mean of a column is bold, the least where `lower` is better."""
    choose = min if lower else max
    best = {b: choose((v for line in lines if (v := line.mean(b, metric)) is not None), default=None) for b in budgets}
    rows = []
    for line in lines:
        texts = []
        for budget in budgets:
            text, value = shown(line.figures.get(budget), metric), line.mean(budget, metric)
            texts.append(f"**{text}**" if value is not None and value == best[budget] else text)
        rows.append([f"_{line.name}_" if line.peer else line.name, *texts])
    return table(["", *(f"{budget:g} %" for budget in budgets)], rows)


def behind(lines: Sequence[Line], own: str, budgets: Sequence[float], metric: str) -> list[str]:
    """Sentences for each budget at which a peer's mean is above our line's by more than the spread of both."""
    ours = next((line for line in lines if line.name == own), None)
    found = []
    for budget in budgets if ours is not None else ():
        here = ours.figures.get(budget) if ours is not None else None
        for line in lines:
            there = line.figures.get(budget)
            if not line.peer or here is None or there is None:
                continue
            if there.means[metric] > here.means[metric] + here.spreads[metric] + there.spreads[metric]:
                found.append(f"at {budget:g} %, {line.name} has {shown(there, metric)}, {own} {shown(here, metric)}")
    return found


def plot(tasks: Mapping[str, tuple[str, Sequence[Line]]], names: Sequence[str], path: Path) -> Path:
    """One panel for each task: metric against FLOPs, a curve for each of the named methods; needs matplotlib."""
    from matplotlib.figure import Figure

    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.8 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (task, (metric, lines)) in zip(panels, tasks.items(), strict=False):
        for number, name in enumerate(names):
            line = next((one for one in lines if one.name == name), None)
            if line is None or not line.figures:
                continue
            budgets = sorted(line.figures)
            values = [line.figures[b] for b in budgets]
            panel.errorbar(
                budgets, [v.means[metric] for v in values], yerr=[v.spreads[metric] for v in values], label=name, color=f"C{number}",
                marker="s" if line.peer else "o", linestyle="--" if line.peer else "-", markersize=4, capsize=2,
            )  # fmt: skip
        panel.set(title=task, xlabel="FLOPs, % of dense", ylabel=metric)
        panel.invert_xaxis()
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    handles = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
