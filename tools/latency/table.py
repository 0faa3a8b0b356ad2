"""The latency table as Markdown, and its picture."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import optin_fx as ofx
from latency.cells import DENSE, Cell
from latency.models import MODELS
from optin_fx.report import Ratio

GOAL_BATCH = 8
HEAD = (
    "model", "engine", "batch", "FLOPs kept", "dense ms", "smaller ms", "speed-up [95 % CI]", "speed-up / FLOPs ratio", "goal",
    "off from masked", "load",
)  # fmt: skip
Measured = Sequence[tuple[Cell, ofx.Report]]


def markdown(cells: Measured) -> str:
    """One row per measured ratio; then how often the goal was met, and how it was measured."""
    rows = [row for cell, report in cells for row in rows_of(cell, report)]
    lines = ["| " + " | ".join(row) + " |" for row in (HEAD, ("-",) * 2 + ("-:",) * (len(HEAD) - 2), *rows)]
    return "\n".join([*lines, "", *summary(cells), "", *protocol(cells)]) + "\n"


def rows_of(cell: Cell, report: ofx.Report) -> list[tuple[str, ...]]:
    """The rows of one cell, one for each smaller program."""
    rows = []
    for ratio in report.ratios:
        before, after = report.latency(DENSE, cell.batch), report.latency(ratio.candidate, cell.batch)
        saved = flops_ratio(report, ratio.candidate)
        gap = max(item.max_rel for item in report.agreements if (item.candidate, item.against) == (ratio.candidate, "reference"))
        load = report.environment.get("load_average") or ["?"]
        rows.append((
            cell.model, report.target, str(cell.batch), f"{1 / saved:.1%}", f"{before.median_ms:.4g}", f"{after.median_ms:.4g}", str(ratio),
            f"{ratio.ratio / saved:.2f} [{ratio.low / saved:.2f}, {ratio.high / saved:.2f}]", verdict(cell, report, ratio),
            f"{gap:.0e}", f"{load[0]}",
        ))  # fmt: skip
    return rows


def flops_ratio(report: ofx.Report, candidate: str) -> float:
    """Dense FLOPs / FLOPs of a candidate."""
    return report.costs[DENSE]["flops"] / report.costs[candidate]["flops"]


def verdict(cell: Cell, report: ofx.Report, ratio: Ratio) -> str:
    """Whether the goal of the model is met: by the whole interval, by none of it, or open. The goals are for batch 8."""
    goal, saved = MODELS[cell.model].goal, flops_ratio(report, ratio.candidate)
    if cell.batch != GOAL_BATCH:
        return ""
    return f"{goal:g} {'met' if ratio.low / saved >= goal else 'missed' if ratio.high / saved < goal else 'open'}"


def summary(cells: Measured) -> list[str]:
    """How often the goal was met, per engine."""
    lines = []
    for target in dict.fromkeys(report.target for _, report in cells):
        found = [
            (verdict(cell, report, ratio).split()[-1], ratio.ratio / flops_ratio(report, ratio.candidate))
            for cell, report in cells
            for ratio in report.ratios
            if report.target == target and cell.batch == GOAL_BATCH
        ]
        if found:
            counts = Counter(word for word, _ in found)
            middle = statistics.median(value for _, value in found)
            lines.append(
                f"* {target}, batch {GOAL_BATCH}: goal met in {counts['met']}, open in {counts['open']} (the interval holds it), missed in "
                f"{counts['missed']} of {len(found)} rows; median speed-up / FLOPs ratio {middle:.2f}."
            )
    return lines


def protocol(cells: Measured) -> list[str]:
    """How it was measured: one paragraph for each kind of machine, thread count and target."""
    texts: dict[str, str] = {}
    for cell, report in cells:
        texts.setdefault(f"{report.target} {cell.threads} {report.environment.get('cpu')}", report.protocol_text())
    return [line for text in texts.values() for line in (text, "")]


def plot(cells: Measured, path: Path) -> Path:
    """Bars: speed-up / FLOPs ratio per model and engine, at the largest batch and the smallest share; a line for each goal."""
    from matplotlib.figure import Figure

    batch = max(cell.batch for cell, _ in cells)
    shown = [(cell, report, report.ratios[-1]) for cell, report in cells if cell.batch == batch]
    models, targets = (list(dict.fromkeys(names)) for names in ([c.model for c, *_ in shown], [r.target for _, r, _ in shown]))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots()
    for cell, report, ratio in shown:
        index, saved = targets.index(report.target), flops_ratio(report, ratio.candidate)
        place = models.index(cell.model) + (index - (len(targets) - 1) / 2) * 0.8 / len(targets)
        value = ratio.ratio / saved
        errors = [[value - ratio.low / saved], [ratio.high / saved - value]]
        axes.bar(place, value, 0.8 / len(targets), yerr=errors, capsize=2, color=f"C{index}", label=report.target)
    for index, name in enumerate(models):
        axes.hlines(MODELS[name].goal, index - 0.42, index + 0.42, color="black", linewidth=1)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), loc="lower left")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(models)), models)
    axes.set(
        ylabel="speed-up / FLOPs ratio", title=f"saved FLOPs that became saved time, batch {batch}, {shown[-1][2].candidate} of the FLOPs"
    )
    figure.savefig(path, dpi=120)
    return path
