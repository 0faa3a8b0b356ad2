"""How unevenly single samples speak in a score: `python tools/study_samples.py [task …] [--samples 256] [--seeds 0,1]`.

Printed is the share of all squared gate gradients, summed over units, that the loudest hundredth and tenth of the samples have
(`fisher{keep_samples=True}`: with labels where the task has them, else with labels drawn from the model).
"""

from __future__ import annotations

import argparse

import torch
from quality.cells import Store
from quality.workbench import Workbench
from tasks import NAMES, task

import optin_fx as ofx


def main() -> None:
    """Print a line for each task and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"which ones; without any, all of {', '.join(NAMES)}")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seeds", default="0", help="seeds of the calibration draw, separated by commas")
    options = parser.parse_args()
    for name in options.tasks or NAMES:
        for seed in map(int, options.seeds.split(",")):
            bench = Workbench(task(name), seed, options.samples, Store.default())
            scores = ofx.score(bench.dense, "fisher", data=bench.batches, keep_samples=True, seed=seed)
            found = totals(scores)
            hundredth, tenth = share_of_loudest(found, 0.01), share_of_loudest(found, 0.1)
            print(f"{name:<13} seed {seed}: of {len(found)} rows, 1 % have {hundredth:.0%} and 10 % have {tenth:.0%}", flush=True)


def totals(scores: ofx.Scores) -> torch.Tensor:
    """Squared gate gradients of every row (a sample, or a draw of its label), summed over all units, `[rows]` float64."""
    each = [own.double().square().sum(1) for name, own in scores.extra.items() if name.startswith("gradients/")]
    return torch.stack(each).sum(0)


def share_of_loudest(found: torch.Tensor, share: float) -> float:
    """What the largest `share` of some totals (one at least) have of their sum."""
    loudest = found.topk(max(1, int(share * len(found)))).values
    return float(loudest.sum() / found.sum())


if __name__ == "__main__":
    main()
