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


def bert(layers: int, rows: int, length: int) -> ofx.Program:
    """BERT-base for classification, random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers)).eval()
    ids = torch.randint(1000, 30_000, (rows, length))
    return ofx.trace(model, kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def seconds(run: Callable[[], object], repeats: int = 2) -> float:
    """Processor time, the least of a few runs after one to warm up."""
    run()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


@dataclass(frozen=True)
class Costs:
    """Seconds of processor time: of one forward pass, of a naive unit, of all units by each way; and passes of the sketch."""

    forward: float
    naive: float
    exact: Mapping[str, float]
    sketch: float
    units: int


def naive_unit(program: ofx.Program, candidates: Candidates, name: str, extent: int, rows: int) -> float:
    """The whole model for one unit, and the loss."""
    gate = torch.ones(rows, extent)
    gate[:, 0] = 0.0

    def run() -> None:
        runner = Runner(program, gates={name: gate}, taps=tuple(candidates.taps))
        with torch.no_grad():
            outputs = runner(candidates.part.batch)
            moved = {node: runner.tapped[node] - candidates.dense.tapped[node] for node in candidates.taps}
            candidates.reference.loss(moved, {0: outputs[0] - candidates.reference.outputs[0]}, 1.0)

    return seconds(run)


def exact_seconds(program: ofx.Program, batch: ofx.Batch, precision: str, places: list[int], layers: int) -> float:
    """All units: measured at some layers, linear in between."""
    candidates = Candidates(ScoreTrajectory(precision=precision), program, Part(0, batch, 1), precision)
    total = 0.0
    for kind in ("neuron", "head"):
        groups = [g for g in ofx.group(program).free if g.kind == kind and g.extent in (12, 3072)]
        at = [seconds(lambda g=groups[i]: candidates.losses(g.name, [g.extent // 3])) for i in places]  # type: ignore[misc]
        total += float(np.interp(range(layers), places, at).sum()) * groups[0].extent
        print(f"  {precision} {kind}: " + ", ".join(f"layer {i} {1e3 * s:.0f} ms" for i, s in zip(places, at, strict=True)), flush=True)
    return total


def measure(layers: int, rows: int, length: int) -> Costs:
    """Time everything."""
    program = bert(layers, rows, length)
    batch = ofx.Batch((), program.kwargs)
    groups = [g for g in ofx.group(program).free if g.kind in ("neuron", "head") and g.extent in (12, 3072)]
    assert len(groups) == 2 * layers, [str(g) for g in groups]
    runner = Runner(program)
    with torch.no_grad():
        forward = seconds(lambda: runner(batch))
    print(f"forward {1e3 * forward:.0f} ms", flush=True)
    candidates = Candidates(ScoreTrajectory(), program, Part(0, batch, 1), "full")
    naive = naive_unit(program, candidates, groups[0].name, groups[0].extent, rows)
    print(f"naive unit {1e3 * naive:.0f} ms", flush=True)
    del candidates
    places = sorted({0, layers // 2, layers - 1})
    exact = {precision: exact_seconds(program, batch, precision, places, layers) for precision in ("full", "bf16")}
    sketch = seconds(lambda: ScoreTrajectorySketch().score(program, [batch]), repeats=1)
    return Costs(forward, naive, exact, sketch, sum(g.extent for g in groups))


def report(costs: Costs, layers: int, rows: int, length: int) -> str:
    """The page."""
    naive = costs.naive * costs.units
    twice = naive + costs.forward * costs.units
    setting = (
        f"Made by `python tools/bench_scores.py --write`. BERT-base's shape, {layers} layers, width 768, random weights, one batch of "
        f"{rows} x {length} tokens: {costs.units:,} units. Processor time of one thread, torch {torch.__version__}. The naive loop and the "
        "exact criterion are measured on a sample of units and extrapolated; the sketch is measured whole."
    )
    lines = [
        "# What scores cost",
        "",
        setting,
        "",
        "| way | seconds | forward passes | against the naive loop |",
        "|---|--:|--:|--:|",
        f"| one forward pass | {costs.forward:.2f} | 1 | |",
        f"| naive loop: the whole model for every unit, dense features kept | {naive:,.0f} | {naive / costs.forward:,.0f} | 1x |",
        f"| the tests' reference, which keeps nothing | {twice:,.0f} | {twice / costs.forward:,.0f} | {naive / twice:.1f}x |",
    ]
    names = {"full": "`trajectory`, exact", "bf16": "`trajectory{precision=bf16}`"}
    lines += [f"| {names[p]} | {s:,.0f} | {s / costs.forward:,.0f} | {naive / s:.1f}x |" for p, s in costs.exact.items()]
    sketch = costs.sketch
    lines += [
        f"| `trajectory-sketch`, 1 probe: 3 passes | {sketch:.1f} | {sketch / costs.forward:.1f} | {naive / sketch:,.0f}x |",
        "",
        f"Goals: exact at least {GOAL:.0f} times faster than the naive loop: "
        + ", ".join(f"{p} {naive / s:.1f}x {'met' if naive / s >= GOAL else 'NOT met'}" for p, s in costs.exact.items())
        + "; than the tests' reference, which keeps nothing: "
        + ", ".join(f"{p} {twice / s:.1f}x {'met' if twice / s >= GOAL else 'NOT met'}" for p, s in costs.exact.items())
        + f". Sketch in at most {PASSES} forward and backward passes: {(PASSES - 1) // 2} probes on this batch, for all units at once.",
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
