"""How much of the saved FLOPs becomes saved time: models x budgets x engines x batch sizes, in one table.

    python tools/bench_latency.py                                         # everything: about 40 minutes on one quiet core
    python tools/bench_latency.py --models deit-s resnet50 --targets onnxruntime:cpu --batches 8 --threads 2
    python tools/bench_latency.py --table-only                            # the table of the cells that are there

Every cell (model, engine, batch) measures the dense program and the smaller ones interleaved in one process with the same settings,
and is kept as one JSON file with every sample; what is there already is not measured again (`--again` does). Widths are chosen
by weight magnitude in multiples of `--align`, with random weights, for only shapes matter to a latency. The table and the picture go
to docs/results. A row with a wide interval, or a high load, was measured on a busy machine and should be taken again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from latency.cells import Candidates, Cell, measure
from latency.models import MODELS
from latency.table import markdown, plot, rows_of

TARGETS = ("onnxruntime:cpu", "openvino:cpu", "aotinductor")
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
TITLE = "# Latency: how much of the saved FLOPs becomes saved time\n\nMade by `python tools/bench_latency.py`.\n\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure the cells that are missing, then write the table; returns the exit status."""
    options = parse(arguments)
    options.cells.mkdir(parents=True, exist_ok=True)
    cells = [
        Cell(model, target, batch, tuple(options.shares), options.align, options.threads)
        for model in options.models
        for target in options.targets
        for batch in options.batches
    ]
    if not options.table_only:
        for model in options.models:
            measure_model([cell for cell in cells if cell.model == model], options)
    done = [(cell, report) for cell in cells if (report := cell.read(options.cells)) is not None]
    if not done:
        print("no cell is measured yet")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    counted = f"{len(done)} of {len(cells)} cells are measured.\n\n"
    (options.out / "latency.md").write_text(
        TITLE + counted + f"{markdown(done)}\n![saved time]({plot(done, options.out / 'latency.svg').name})\n"
    )
    print(f"{len(done)} of {len(cells)} cells in {options.out / 'latency.md'}")
    return 0


def measure_model(cells: list[Cell], options: argparse.Namespace) -> None:
    """Measure the cells of one model that are not there; its programs are made once."""
    missing = [cell for cell in cells if options.again or cell.read(options.cells) is None]
    if not missing:
        return
    candidates = Candidates.of(MODELS[missing[0].model].program(), missing[0].shares, missing[0].align)
    for cell in missing:
        report = measure(cell, candidates, options.seconds)
        cell.write(options.cells, report)
        print("\n".join(" | ".join(row) for row in rows_of(cell, report)), flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--shares", nargs="+", type=int, default=[70, 50], help="percent of the FLOPs to keep")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--align", type=int, default=16, help="widths are multiples of this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="at most, for each cell, after the tenth round")
    parser.add_argument("--again", action="store_true", help="measure also the cells that are there")
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    parser.add_argument("--cells", type=Path, default=Path("bench-out/latency"), help="folder of the cells' JSON files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table and the picture")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
