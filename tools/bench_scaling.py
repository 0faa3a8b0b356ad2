"""How scoring time grows with calibration data and shrinks with processes, on MiniLM and movie reviews.

    python tools/bench_scaling.py [--write] [--samples 64 128 256 512] [--processes 1 2] [--rounds 3]

Every process has one thread and its share of the batches, as under `torchrun`. Processes of one count are started together and score all
amounts of data in turn, which is repeated in rounds, counts of processes in turn, too; times are from a barrier to the last process's
end, medians over rounds with their range. `--write` writes docs/results/scores-scaling.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from tasks import task

import optin_fx as ofx
from optin_fx.choices import apart
from optin_fx.passes import ScoreTrajectorySketch

TARGET = Path(__file__).resolve().parent.parent / "docs/results/scores-scaling.md"
BATCH = 16

Times = dict[tuple[int, int], list[float]]
"""By (processes, samples), seconds of every round."""


def score_in_turn(rank: int, processes: int, samples: Sequence[int], folder: str) -> None:
    """One process's share; the first one writes times and the largest amount's scores to the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    one = task("reviews")
    args, kwargs = one.example()
    program = ofx.trace(one.model(), args, kwargs, one.dynamic_shapes())
    data = one.calibration(max(samples), batch=BATCH)
    ofx.score(program, ScoreTrajectorySketch(), data[:processes])  # to warm up
    times = []
    for count in samples:
        dist.barrier()
        start = time.perf_counter()
        scores = ofx.score(program, ScoreTrajectorySketch(), data[: count // BATCH])
        dist.barrier()
        times.append(time.perf_counter() - start)
    if rank == 0:
        torch.save((times, dict(scores.values)), Path(folder) / "found.pt")
    dist.destroy_process_group()


def measure(samples: Sequence[int], processes: Sequence[int], rounds: int) -> tuple[Times, float]:
    """Times, and the largest difference of scores between counts of processes, as a share of a group's largest score."""
    times: Times = {}
    worst = 0.0
    for _ in range(rounds):
        first: dict[str, torch.Tensor] = {}
        for count in processes:
            with tempfile.TemporaryDirectory() as folder:
                torch.multiprocessing.spawn(score_in_turn, (count, tuple(samples), folder), nprocs=count)
                seconds, scores = torch.load(Path(folder) / "found.pt")
            for amount, value in zip(samples, seconds, strict=True):
                times.setdefault((count, amount), []).append(value)
            first = first or scores
            worst = max(worst, *(apart(scores[name], first[name])[1] for name in first))
        print({key: [round(v, 2) for v in values] for key, values in times.items()}, flush=True)
    return times, worst


def page(times: Times, worst: float, options: argparse.Namespace) -> str:
    """The page."""
    amounts, counts = options.samples, options.processes
    middle = {key: median(values) for key, values in times.items()}
    growth = middle[counts[0], amounts[-1]] / middle[counts[0], amounts[0]]
    asked = f"--samples {' '.join(map(str, amounts))} --processes {' '.join(map(str, counts))} --rounds {options.rounds}"
    made = (
        f"Made by `python tools/bench_scaling.py --write {asked}`. `trajectory-sketch` on MiniLM and movie-review snippets, batches of "
        f"{BATCH}; processes of one thread on one machine with {os.cpu_count()} cores. Seconds: medians of rounds in turn, and range."
    )
    found = (
        f"{amounts[-1] / amounts[0]:g} times the data took {growth:.2f} times as long. The scores of {counts[-1]} processes differ from "
        f"those of {counts[0]} by at most {worst:.0e} of the largest in their group."
    )
    table = ["| samples | " + " | ".join(f"processes: {n}" for n in counts) + " | faster |", "|--:|" + "--:|" * (len(counts) + 1)]
    for amount in amounts:
        cells = [f"{middle[n, amount]:.2f} ({min(times[n, amount]):.2f}-{max(times[n, amount]):.2f})" for n in counts]
        table.append(f"| {amount} | {' | '.join(cells)} | {middle[counts[0], amount] / middle[counts[-1], amount]:.2f}x |")
    return "\n".join(["# Scoring: more data, more processes", "", made, "", *table, "", found, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {TARGET.name}")
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 128, 256, 512], help=f"multiples of {BATCH}")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    text = page(*measure(options.samples, options.processes, options.rounds), options)
    print(text)
    if options.write:
        TARGET.write_text(text)


if __name__ == "__main__":
    main()
