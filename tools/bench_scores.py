"""What ranking every unit of BERT-base costs: the exact trajectory criterion and its sketch, against the naive loop.

    python tools/bench_scores.py [--write] [--layers 12] [--rows 32] [--length 64]

BERT-base's shape with random weights (speed does not depend on them), 12 x 3,072 neurons and 12 x 12 heads. The naive loop runs the whole
model once for every unit, with the dense features at hand. Exact runs are measured on a sample of units, at the first, middle and last
layers, and extrapolated over the layers between. Times are processor times of one thread, so that other work on the machine does not
show. `--write` writes docs/results/scores-cost.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import optin_fx as ofx
from optin_fx.candidates import Candidates, Part
from optin_fx.interpreter import Runner
from optin_fx.passes import ScoreTrajectory, ScoreTrajectorySketch

ROOT = Path(__file__).resolve().parent.parent
TARGET, GOAL, PASSES = ROOT / "docs/results/scores-cost.md", 8.0, 60
PRECISIONS = ("full", "bf16")
WHERE = """Where the time goes: a change passes half of the layers in the mean, and each costs it the multiplications of a forward pass.
Forward passes use what torch multiplies with, MKL, which on processors of other makers is half as fast as oneDNN, with which changes are
multiplied; on Intel's the two are alike, and the factors above smaller."""


def bert(layers: int, rows: int, length: int) -> ofx.Program:
    """BERT-base for classification, random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers)).eval()
    ids = torch.randint(1000, 30_000, (rows, length))
    return ofx.trace(model, kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def seconds(ways: Mapping[str, Callable[[], object]], rounds: int = 4) -> dict[str, float]:
    """Processor time of each way, the least of some rounds in turn, after one to warm up."""
    for run in ways.values():
        run()
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.process_time()
            run()
            found[name] = min(found[name], time.process_time() - start)
    return found


@dataclass(frozen=True)
class Costs:
    """Seconds of processor time: of one forward pass, of a naive unit, of all units by each way; and passes of the sketch."""

    forward: float
    naive: float
    exact: Mapping[str, float]
    sketch: float
    units: int


def naive_unit(program: ofx.Program, candidates: Candidates, group: ofx.Group, rows: int) -> Callable[[], None]:
    """The whole model for one unit, and the loss."""
    gate = torch.ones(rows, group.extent)
    gate[:, 0] = 0.0

    def run() -> None:
        runner = Runner(program, gates={group.name: gate}, taps=tuple(candidates.taps))
        with torch.no_grad():
            outputs = runner(candidates.part.batch)
            moved = {node: runner.tapped[node] - candidates.dense.tapped[node] for node in candidates.taps}
            candidates.reference.loss(moved, {0: outputs[0] - candidates.reference.outputs[0]}, 1.0)

    return run


def one_unit(candidates: Candidates, group: ofx.Group) -> Callable[[], object]:
    """The exact criterion for one unit."""
    return lambda: candidates.losses(group.name, [group.extent // 3])


def measure(layers: int, rows: int, length: int) -> Costs:
    """Time everything, in turn: one forward pass, a naive unit, and units of some layers by each precision."""
    program = bert(layers, rows, length)
    batch = ofx.Batch((), program.kwargs)
    groups = {kind: [g for g in ofx.group(program).free if g.kind == kind and g.extent in (12, 3072)] for kind in ("neuron", "head")}
    assert [len(found) for found in groups.values()] == [layers, layers], groups
    candidates = {p: Candidates(ScoreTrajectory(precision=p), program, Part(0, batch, 1), p) for p in PRECISIONS}
    runner, places = Runner(program), sorted({0, layers // 2, layers - 1})

    def forward() -> None:
        with torch.no_grad():
            runner(batch)

    ways: dict[str, Callable[[], object]] = {"forward": forward}
    ways["naive"] = naive_unit(program, candidates["full"], groups["neuron"][0], rows)
    ways |= {f"{p} {kind} {i}": one_unit(c, groups[kind][i]) for p, c in candidates.items() for kind in groups for i in places}
    found = seconds(ways)
    print("\n".join(f"  {name}: {1e3 * spent:.0f} ms" for name, spent in found.items()), flush=True)
    exact = {p: sum(over_layers(found, f"{p} {kind}", places, own) for kind, own in groups.items()) for p in PRECISIONS}
    del candidates, ways
    sketch = seconds({"sketch": lambda: ScoreTrajectorySketch().score(program, [batch])}, rounds=1)["sketch"]
    return Costs(found["forward"], found["naive"], exact, sketch, sum(g.extent for own in groups.values() for g in own))


def over_layers(found: Mapping[str, float], name: str, places: list[int], groups: list[ofx.Group]) -> float:
    """All units of a kind: measured at some layers, linear in between."""
    return float(np.interp(range(len(groups)), places, [found[f"{name} {i}"] for i in places]).sum()) * groups[0].extent


def report(costs: Costs, layers: int, rows: int, length: int) -> str:
    """The page."""
    kept = costs.naive * costs.units
    naive = kept + costs.forward * costs.units
    setting = (
        f"Made by `python tools/bench_scores.py --write`. BERT-base's shape, {layers} layers, width 768, random weights, one batch of "
        f"{rows} x {length} tokens: {costs.units:,} units. Processor time of one thread, torch {torch.__version__}. The naive loops and "
        "the exact criterion are measured on a sample of units, in turn, and extrapolated; the sketch is measured whole."
    )

    def row(what: str, spent: float, digits: int = 0) -> str:
        against = f"{naive / spent:,.1f}x" if spent > 1e3 else f"{naive / spent:,.0f}x"
        return f"| {what} | {spent:,.{digits}f} | {spent / costs.forward:,.{digits}f} | {against} |"

    names = {"full": "`trajectory`, exact", "bf16": "`trajectory{precision=bf16}`"}
    lines = [
        "# What scores cost",
        "",
        setting,
        "",
        "| way | seconds | forward passes | against the naive reference |",
        "|---|--:|--:|--:|",
        f"| one forward pass | {costs.forward:.2f} | 1 | |",
        row("naive reference, as in the tests: the dense model and the gated one for every unit", naive),
        row("naive loop that keeps the dense features: the gated model for every unit", kept),
        *(row(names[p], spent) for p, spent in costs.exact.items()),
        row("`trajectory-sketch`, 1 probe: 3 passes", costs.sketch, 1),
        "",
        f"Goal: exact at least {GOAL:.0f} times faster than the naive reference: "
        + ", ".join(f"{p} {naive / s:.1f}x {'met' if naive / s >= GOAL else 'NOT met'}" for p, s in costs.exact.items())
        + "; against the loop that keeps the dense features it is "
        + ", ".join(f"{p} {kept / s:.1f}x" for p, s in costs.exact.items())
        + f". Sketch in at most {PASSES} forward and backward passes: {(PASSES - 1) // 2} probes on this batch, for all units at once.",
        "",
        WHERE,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {TARGET.relative_to(ROOT)}")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = report(measure(options.layers, options.rows, options.length), options.layers, options.rows, options.length)
    print(text)
    if options.write:
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        TARGET.write_text(text)


if __name__ == "__main__":
    main()
