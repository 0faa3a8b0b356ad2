"""A `Report` as text, rich table, Markdown and HTML. One function makes the rows; each form lays them out."""

from __future__ import annotations

import html
import io
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from optin_fx.report import Report

# cost field -> (column title, text of a value)
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "flops": ("FLOPs", lambda value: _scaled(value, 1000, ("", "k", "M", "G", "T", "P"))),
    "macs": ("MACs", lambda value: _scaled(value, 1000, ("", "k", "M", "G", "T", "P"))),
    "params": ("params", lambda value: _scaled(value, 1000, ("", "k", "M", "G", "T"))),
    "bytes": ("bytes", lambda value: _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))),
}


@dataclass(frozen=True)
class Grid:
    """One table: its title, column titles, and rows of cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(report: Report) -> tuple[Grid, Grid]:
    """Latency per batch size and candidate; then what does not depend on the batch size, per candidate."""
    return _latency_grid(report), _candidate_grid(report)


def _latency_grid(report: Report) -> Grid:
    efficiency = any(report.efficiency(name) is not None for name in report.candidates)
    several = report.lengths != (None,)
    columns = ["candidate", "batch", *["length"] * several, "median ms", "p90 ms", "p99 ms", "spread", "rows/s", "speed-up [95 % CI]"]
    rows = []
    for batch, length in itertools.product(report.batches, report.lengths):
        for name in report.candidates:
            item = report.latency(name, batch, length)
            row = [name, str(batch), *[str(length)] * several, f"{item.median_ms:.3g}", f"{item.p90_ms:.3g}", f"{item.p99_ms:.3g}"]
            row += [f"{item.spread:.0%}", f"{item.rows_per_s:.4g}"]
            row += ["1 (baseline)" if name == report.baseline else str(report.ratio(name, batch, length))]
            value = report.efficiency(name, batch)
            rows.append((*row, *(["" if value is None else f"{value:.2f}"] if efficiency else [])))
    title = f"Latency of one call, {report.target}, {report.protocol['precision']}, {report.protocol['threads']} threads"
    return Grid(title, (*columns, *["speed-up / FLOPs ratio"] * efficiency), tuple(rows))


def _candidate_grid(report: Report) -> Grid:
    costs = [field for field in COSTS if any(field in row for row in report.costs.values())]
    metrics = list(dict.fromkeys(name for row in report.metrics.values() for name in row))
    peaks = any(facts.peak_bytes is not None for facts in report.engines.values())
    referenced = any(item.against == "reference" for item in report.agreements)
    columns = ["candidate", *(COSTS[field][0] for field in costs), *metrics, *["peak memory"] * peaks]
    columns += ["build s", "first run ms", "engine vs its program", *["vs reference"] * referenced]
    rows = []
    for name in report.candidates:
        facts = report.engines[name]
        row = [name, *(_cost(report, name, field) for field in costs)]
        row += [_number(report.metrics.get(name, {}).get(metric)) for metric in metrics]
        row += ["" if facts.peak_bytes is None else COSTS["bytes"][1](facts.peak_bytes)] * peaks
        row += [f"{facts.build_s:.3g}", f"{facts.first_run_ms:.3g}", _gap(report, name, "its program")]
        rows.append((*row, *[_gap(report, name, "reference")] * referenced))
    return Grid("Candidates", tuple(columns), tuple(rows))


def protocol_text(report: Report) -> str:
    """How it was measured, and where."""
    protocol, machine = report.protocol, report.environment
    samples = sorted({len(item.samples_ms) for item in report.latencies})
    shown = f"{samples[0]}" if len(samples) == 1 else f"{samples[0]} to {samples[-1]}"
    several = any(item.calls_per_sample > 1 for item in report.latencies)
    versions = ", ".join(f"{name} {text}" for name, text in machine.get("versions", {}).items())
    options = f" Options: {json.dumps(protocol['options'])}." if protocol.get("options") else ""
    load, cpus = machine.get("load_average"), machine.get("cpus")
    busy = " (other work was running)" if load and cpus and load[0] > cpus / 2 else ""
    return (
        f"Protocol: target {report.target}, {protocol['precision']}, {protocol['threads']} threads; {protocol['timed']}; "
        f"{protocol['order']}; warm-up {protocol['warm_up']}; {shown} samples per candidate"
        f"{' (means over several calls where a call is shorter than 1 ms)' if several else ''}; speed-up = ratio {protocol['ratio']}; "
        f"agreement = largest difference / largest magnitude of an output.{options}\n"
        f"Machine: {machine.get('gpu') or machine.get('cpu')}, {cpus} CPUs ({machine.get('cpu_features')}), load average at the start "
        f"{load[0] if load else 'unknown'}{busy}; {machine.get('system')}, Python {machine.get('python')}, {versions}; "
        f"{machine.get('time')}."
    )


def to_rich(report: Report) -> Group:
    """Rich tables with the protocol below them."""
    drawn = []
    for grid in grids(report):
        part = Table(title=grid.title, title_justify="left")
        for column in grid.columns:
            part.add_column(column, justify="left" if column == "candidate" else "right")
        for row in grid.rows:
            part.add_row(*row)
        drawn.append(part)
    return Group(*drawn, protocol_text(report))


def to_text(report: Report) -> str:
    """Plain text, wide enough for the tables."""
    widths = [sum(max(map(len, column)) + 3 for column in zip(grid.columns, *grid.rows, strict=True)) + 1 for grid in grids(report)]
    stream = io.StringIO()
    Console(file=stream, width=max(100, *widths), color_system=None, force_terminal=False).print(to_rich(report))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def to_markdown(report: Report) -> str:
    """Markdown tables with the protocol below them."""
    lines = []
    for grid in grids(report):
        lines += [f"**{grid.title}**", "", _markdown_row(grid.columns)]
        lines.append(f"|{'|'.join('-' if column == 'candidate' else '-:' for column in grid.columns)}|")
        lines += [*map(_markdown_row, grid.rows), ""]
    return "\n".join([*lines, *(line + "  " for line in protocol_text(report).splitlines())]).rstrip() + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def to_html(report: Report) -> str:
    """One page without anything from outside; the JSON is in it, too."""
    slowest = max(item.median_ms for item in report.latencies)
    tables = "".join(_html_table(grid) for grid in grids(report))
    bars = "".join(
        f"<div>{html.escape(item.candidate)}, batch {item.batch}{'' if item.length is None else f', length {item.length}'}"
        f"<span style='width:{60 * item.median_ms / slowest:.1f}%'></span>{item.median_ms:.3g} ms</div>\n"
        for item in report.latencies
    )
    text = "<br>".join(html.escape(protocol_text(report)).splitlines())
    data = report.to_json().replace("</", "<\\/")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>optin-fx report</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse}td,th{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #ddd}"
        "td:first-child,th:first-child{text-align:left}p{color:#555}"
        ".bars div{display:flex;align-items:center;gap:.5rem}.bars span{background:#4477aa;height:.9rem;display:inline-block}"
        f"</style></head><body><h1>optin-fx report</h1>{tables}<h2>Median</h2><div class='bars'>{bars}</div><h2>Protocol</h2><p>{text}</p>"
        f"<script type='application/json' id='report'>{data}</script></body></html>\n"
    )


def _html_table(grid: Grid) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in grid.columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in grid.rows)
    return f"<h2>{html.escape(grid.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cost(report: Report, name: str, field: str) -> str:
    value, whole = report.costs.get(name, {}).get(field), report.costs.get(report.baseline, {}).get(field)
    if value is None:
        return ""
    share = f" ({value / whole:.0%})" if whole and name != report.baseline else ""
    return COSTS[field][1](value) + share


def _gap(report: Report, name: str, against: str) -> str:
    """The worst over all batch sizes."""
    found = [item for item in report.agreements if (item.candidate, item.against) == (name, against)]
    if not found:
        return ""
    text, unequal = f"{max(item.max_rel for item in found):.1e}", max(item.unequal for item in found)
    return f"{text}, {unequal:.1%} of integers differ" if unequal else text


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= step and index + 1 < len(units):
        value, index = value / step, index + 1
    return f"{value:.4g} {units[index]}".strip()
