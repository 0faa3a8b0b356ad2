"""How much of a task's quality each method keeps: `python tools/bench_quality.py [task …] --seeds 3`.

Every (task, method, budget, seed) is computed once and kept as one JSON file in the cache, so an interrupted run goes on where
it was, and a later one adds what is missing. `--write` makes docs/results/quality.md and its plot of everything that is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import peers  # noqa: F401  registers the peers' passes
from quality import quality_page
from quality.cells import Store
from quality.grid import BUDGETS, SAMPLES
from quality.lines import METHODS
from quality.methods import Method, available
from quality.workbench import Workbench
from tasks import NAMES, task

from optin_fx.errors import OptinError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "quality.md"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"which ones; without any, all of {', '.join(NAMES)}")
    parser.add_argument("--methods", default="*", help="names or shell patterns, separated by ';'")
    parser.add_argument("--budgets", help="percent of the dense FLOPs, separated by commas; without, each task's own")
    parser.add_argument("--seeds", default="0", help="seeds of the calibration draw, separated by commas")
    parser.add_argument("--samples", type=int, help="calibration inputs; without, each task's own number")
    parser.add_argument("--write", action="store_true", help="compute nothing; write docs/results/quality.md from what is there")
    options = parser.parse_args(arguments)
    if options.write:
        print(quality_page.write(Store.default(), PAGE))
        return 0
    methods, missing = available(METHODS)
    for name, why in missing.items():
        print(f"{name:<36}left out: {why}", file=sys.stderr)
    wanted = [m for m in methods if any(fnmatch(m.name, pattern.strip()) for pattern in options.methods.split(";"))]
    for name in options.tasks or NAMES:
        budgets = [float(b) for b in options.budgets.split(",")] if options.budgets else BUDGETS[name]
        run(name, wanted, budgets, [int(s) for s in options.seeds.split(",")], options.samples)
    return 0


def run(name: str, methods: Sequence[Method], budgets: Sequence[float], seeds: Sequence[int], samples: int | None = None) -> None:
    """All cells of one task; a cell that a method refuses is said and skipped."""
    program = None
    for seed in seeds:
        bench = Workbench(task(name), seed, samples or SAMPLES[name], Store.default(), program)
        program = bench.dense
        for method in methods:
            for budget in budgets if method.runs_on(name) else ():
                start = time.perf_counter()
                try:
                    result = bench.run(method, budget)
                except OptinError as error:
                    text = str(error).replace("\n", " ")
                else:
                    text = "  ".join(f"{key} {value:.4f}" for key, value in result.metrics.items())
                print(f"{name:<13} {method.name:<34} {budget:3g} %  seed {seed}  {text}  ({time.perf_counter() - start:.1f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
