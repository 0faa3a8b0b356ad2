"""A `Report` as a picture: latency by batch size, and how much of the saved FLOPs became saved time."""

from __future__ import annotations

import itertools
from pathlib import Path

from optin_fx.files import saving
from optin_fx.report import Report


def plot(report: Report, path: Path) -> Path:
    """Draw to `path`; needs matplotlib."""
    from matplotlib.figure import Figure

    efficient = [name for name in report.candidates if report.efficiency(name) is not None]
    figure = Figure(figsize=(11 if efficient else 6, 4.6), layout="constrained")
    axes = figure.subplots(1, 2 if efficient else 1, squeeze=False)[0]
    for name, length in itertools.product(report.candidates, report.lengths):
        items = [report.latency(name, batch, length) for batch in report.batches]
        medians = [item.median_ms for item in items]
        upper = [item.p90_ms - item.median_ms for item in items]
        label = name if length is None else f"{name}, length {length}"
        axes[0].errorbar(report.batches, medians, yerr=[[0.0] * len(upper), upper], marker="o", capsize=3, label=label)
    axes[0].set(xlabel="batch (rows per call)", ylabel="ms per call (median; bar up to p90)", title=f"latency, {report.target}")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    if efficient:
        for name in efficient:
            axes[1].plot(report.batches, [report.efficiency(name, batch) for batch in report.batches], marker="o", label=name)
        axes[1].axhline(1.0, color="grey", linewidth=1)
        axes[1].set(xlabel="batch (rows per call)", ylabel="speed-up / FLOPs ratio", title="saved FLOPs that became saved time")
        axes[1].set_ylim(bottom=0)
        axes[1].legend()
    machine = report.environment
    figure.text(
        0.01, -0.02, f"{machine.get('gpu') or machine.get('cpu')}, {report.protocol['threads']} threads, {report.protocol['precision']}; "
        f"interleaved, median of {len(report.latencies[0].samples_ms)} samples", fontsize=8, va="top",
    )  # fmt: skip
    with saving("the plot", path):
        figure.savefig(path, bbox_inches="tight", dpi=120)
    return path
