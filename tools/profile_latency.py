"""Where the time goes, by operator: the dense program and a smaller one in the engine's own profiler, run in turns.

    python tools/profile_latency.py deit-s:8:70 bert-base efficientnet-b0:1 --targets onnxruntime:cpu aotinductor --write

What did not shrink is what keeps a speed-up below the saved FLOPs: operators whose work does not depend on the widths that were cut.
Profilers slow small operators down; latencies are `bench_latency`'s business.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from latency.cells import DENSE, Candidates
from latency.models import MODELS
from latency.profilers import PROFILERS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "latency-profile.md"
MARK = "<!-- tables -->\n"


def main(arguments: list[str] | None = None) -> None:
    """Profile each model in each engine and print, or write, a table for each."""
    options = parse(arguments)
    torch.set_num_threads(1)
    parts = []
    for name, batch, share in options.models:
        candidates = Candidates.of(MODELS[name].program(), (share,), options.align)
        small = next(label for label in candidates.programs if label != DENSE)
        dense_cost, cost = candidates.costs[DENSE], candidates.costs[small]
        kept = f"Kept: {cost.flops / dense_cost.flops:.0%} of the FLOPs, {cost.params / dense_cost.params:.0%} of the parameters."
        for target in options.targets:
            found = PROFILERS[target](candidates.programs, batch, options.runs)
            parts.append(f"\n### {name}, {target}, batch {batch}\n\n{kept}\n\n{table(found[DENSE], found[small], small)}")
            print(parts[-1], flush=True)
    if options.write:
        PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + "".join(parts))


def table(dense: dict[str, float], small: dict[str, float], label: str) -> str:
    """Rows by operator, the slowest first; milliseconds per run."""
    rest = [0.0, 0.0]
    total, left = sum(dense.values()), sum(small.values())
    lines = [f"| operator | dense ms | {label} ms | left | share of the dense time |", "| - | -: | -: | -: | -: |"]
    for operator in sorted({*dense, *small}, key=lambda name: -dense.get(name, 0.0)):
        before, after = dense.get(operator, 0.0), small.get(operator, 0.0)
        if before < 0.01 * total:
            rest = [rest[0] + before, rest[1] + after]
        else:
            lines.append(f"| {operator} | {before:.2f} | {after:.2f} | {after / before:.0%} | {before / total:.1%} |")
    lines.append(f"| others | {rest[0]:.2f} | {rest[1]:.2f} | {rest[1] / max(rest[0], 1e-9):.0%} | {rest[0] / total:.1%} |")
    lines.append(f"| **all** | {total:.2f} | {left:.2f} | {left / total:.0%} | |")
    return "\n".join(lines) + "\n"


def case(text: str) -> tuple[str, int, int]:
    """`deit-s:8:70` -> `("deit-s", 8, 70)`: batch 8 and 50 % of the FLOPs unless told otherwise."""
    name, *numbers = text.split(":")
    if name not in MODELS or len(numbers) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL[:BATCH[:PERCENT]] with a model of {', '.join(sorted(MODELS))}")
    batch, share = (*map(int, numbers), *(8, 50)[len(numbers) :])
    return name, batch, share


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=case, metavar="MODEL[:BATCH[:PERCENT]]", help=", ".join(sorted(MODELS)))
    parser.add_argument("--targets", nargs="+", choices=sorted(PROFILERS), default=["onnxruntime:cpu"])
    parser.add_argument("--align", type=int, default=16)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}, below its text")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
