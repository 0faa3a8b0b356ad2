"""How well the trajectory sketch agrees with the exact criterion, by probes and by samples, on three trained models.

    python tools/study_sketch.py [--write] [--tasks mnist-vit reviews photos] [--units 24] [--samples 32] [--seeds 2]

The reference is the exact criterion (`trajectory{depth=mean}`) on the first samples of each task's calibration data, for units drawn
evenly from all groups; the sketch scores every unit. Spearman's rank correlation and the agreement on the better half are over these.
`--write` writes docs/results/sketch.md and its picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from tasks import task

import optin_fx as ofx
from optin_fx.candidates import Candidates, parts_of
from optin_fx.comparison import kind_of, spearman, top_agreement
from optin_fx.data import batches_of, rows
from optin_fx.passes import ScoreTrajectory, ScoreTrajectorySketch

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURE = ROOT / "docs/results/sketch.md", ROOT / "docs/results/sketch.png"
PROBES, SAMPLES = (1, 4, 16), (8, 32, 128)
INSIDE_HEADS = ("qk-dim", "v-dim", "head-dim", "rotary-pair")

Unit = tuple[str, int]


@dataclass(frozen=True)
class Row:
    """Agreement of one setting with the reference, over seeds."""

    task: str
    probes: int
    samples: int
    spearman: tuple[float, ...]
    top: tuple[float, ...]
    by_kind: dict[str, float]


def drawn_units(program: ofx.Program, count: int) -> list[Unit]:
    """About `count` units of each kind, evenly from its groups; those that `search` prunes by default."""
    kinds: dict[str, list[Unit]] = {}
    for g in ofx.group(program).free:
        if g.kind not in INSIDE_HEADS:
            order = torch.randperm(g.extent, generator=torch.Generator().manual_seed(0)).tolist()
            kinds.setdefault(g.kind, []).extend((g.name, unit) for unit in order)
    found: list[Unit] = []
    for units in kinds.values():
        groups = list(dict.fromkeys(name for name, _ in units))
        each = max(1, round(count / len(groups)))
        for name in groups if len(groups) <= count else groups[:: -(-len(groups) // count)]:
            found += [unit for unit in units if unit[0] == name][:each]
    return found


def exact_scores(program: ofx.Program, data: Sequence[ofx.Batch], units: Sequence[Unit]) -> torch.Tensor:
    """The exact loss of some units, mean over samples."""
    step = ScoreTrajectory(depth="mean")
    sums = torch.zeros(len(units), dtype=torch.float64)
    for part in parts_of(program, data, 1):
        candidates = Candidates(step, program, part, "full")
        for i, (name, unit) in enumerate(units):
            sums[i] += candidates.losses(name, [unit])[0]
    return sums / sum(map(rows, data))


def settings(samples: int) -> Iterator[tuple[int, int]]:
    """(probes, samples) of the study."""
    yield from ((probes, samples) for probes in PROBES)
    yield from ((1, other) for other in SAMPLES if other != samples)


def study(name: str, count: int, samples: int, seeds: int) -> list[Row]:
    """All rows of a task."""
    one = task(name)
    args, kwargs = one.example()
    program = ofx.trace(one.model(), args, kwargs)
    data = batches_of(program, one.calibration(max(*SAMPLES, samples), batch=16), needed_for="the study")
    units = drawn_units(program, count)
    reference = exact_scores(program, data[: samples // 16], units)
    found = []
    for probes, used in settings(samples):
        rank, top, kinds = [], [], {}
        for seed in range(seeds):
            scores = ofx.score(program, ScoreTrajectorySketch(probes=probes, seed=seed, samples=used), data=data)
            estimate = torch.stack([scores[g][u] for g, u in units])
            rank.append(spearman(estimate, reference) or 0.0)
            top.append(top_agreement(reference, estimate, 0.5))
            kinds = {k: spearman(*(v[[kind_of(g) == k for g, _ in units]] for v in (estimate, reference))) or 0.0 for k in kinds_of(units)}
        found.append(Row(name, probes, used, tuple(rank), tuple(top), kinds))
        print(line(found[-1]), flush=True)
    return found


def kinds_of(units: Sequence[Unit]) -> list[str]:
    return list(dict.fromkeys(kind_of(name) for name, _ in units))


def line(row: Row) -> str:
    spread = f" ± {stdev(row.spearman):.3f}" if len(row.spearman) > 1 else ""
    kinds = ", ".join(f"{kind} {value:.3f}" for kind, value in row.by_kind.items())
    return f"| {row.task} | {row.probes} | {row.samples} | {mean(row.spearman):.3f}{spread} | {mean(row.top):.1%} | {kinds} |"


def page(found: Sequence[Row], options: argparse.Namespace) -> str:
    """The page."""
    command = f"python tools/study_sketch.py --write --tasks {' '.join(options.tasks)} --units {options.units} --samples {options.samples}"
    text = (
        f"Made by `{command} --seeds {options.seeds}`. The reference is the exact criterion, `trajectory{{depth=mean}}`, on "
        f"{options.samples} samples, for about {options.units} units of each kind, drawn from all groups. Mean and standard deviation over "
        f"{options.seeds} seeds of the sketch; per kind for the last seed. With more samples than the reference has, the sketch sees data "
        "that the reference does not."
    )
    head = ["| task | probes | samples | Spearman | same better half | by kind |", "|---|--:|--:|--:|--:|---|"]
    best = min((row for row in found if row.probes == 1 and row.samples == options.samples), key=lambda row: mean(row.spearman))
    worst = f"{mean(best.spearman):.3f} ({best.task})"
    default = f"The default is one probe: at {options.samples} samples its lowest mean correlation here is {worst}."
    more = "Probes and samples both average the same noise; a sample costs a forward pass too, but brings data, so samples come first."
    return "\n".join(["# Sketch against exact", "", text, "", *head, *map(line, found), "", default, more, "", "![](sketch.png)"]) + "\n"


def draw(found: Sequence[Row], samples: int) -> None:
    """Spearman by probes at fixed samples, and by samples at one probe."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    for name in dict.fromkeys(row.task for row in found):
        by_probes = [row for row in found if row.task == name and row.samples == samples]
        by_samples = sorted((row for row in found if row.task == name and row.probes == 1), key=lambda row: row.samples)
        left.plot([row.probes for row in by_probes], [mean(row.spearman) for row in by_probes], marker="o", label=name)
        right.plot([row.samples for row in by_samples], [mean(row.spearman) for row in by_samples], marker="o", label=name)
    left.set(xscale="log", xlabel=f"probes, {samples} samples", ylabel="Spearman with exact")
    right.set(xscale="log", xlabel="samples, 1 probe")
    left.legend(frameon=False)
    figure.savefig(PICTURE, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--tasks", nargs="+", default=["mnist-vit", "reviews", "photos"])
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--samples", type=int, default=32, help="of the reference, a multiple of 16")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Row] = []
    for name in options.tasks:
        found += study(name, options.units, options.samples, options.seeds)
        if options.write:  # after each task, so that a long study shows what it has
            PAGE.parent.mkdir(parents=True, exist_ok=True)
            PAGE.write_text(page(found, options))
            draw(found, options.samples)


if __name__ == "__main__":
    main()
