"""Which decisions matter: `python tools/ablation.py [task …]`, then `--write` for docs/results/ablation.md.

Cells are kept as those of `bench_quality.py` are, and shared with them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import peers  # noqa: F401  registers uniform width
from bench_quality import run
from quality import ablation_page
from quality.cells import Store
from quality.methods import available
from quality.sweeps import BUDGET, SWEEPS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "ablation.md"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"which ones; without any, {', '.join(BUDGET)}")
    parser.add_argument("--sweeps", default="*", help="titles or shell patterns, separated by ';'")
    parser.add_argument("--seeds", default="0", help="seeds of the calibration draw, separated by commas")
    parser.add_argument("--write", action="store_true", help="compute nothing; write docs/results/ablation.md from what is there")
    options = parser.parse_args(arguments)
    if options.write:
        print(ablation_page.write(Store.default(), PAGE))
        return 0
    for sweep in SWEEPS:
        if any(fnmatch(sweep.title, pattern.strip()) for pattern in options.sweeps.split(";")):
            methods, missing = available(sweep.methods)
            for name, why in missing.items():
                print(f"{sweep.title}: {name} left out: {why}", file=sys.stderr)
            for name in options.tasks or BUDGET:
                run(name, methods, [BUDGET[name]], [int(s) for s in options.seeds.split(",")])
    return 0


if __name__ == "__main__":
    sys.exit(main())
