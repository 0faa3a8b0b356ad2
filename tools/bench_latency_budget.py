"""Does a latency budget end where it says? Closed loops on an engine, each from an empty cache, then one more measurement of the result.

    python tools/bench_latency_budget.py                                   # MiniLM and ResNet-50, three times each
    python tools/bench_latency_budget.py --models deit-s --budget "latency <= 70% @ openvino:cpu" --times 1

Widths are chosen by weight magnitude with random weights, for only shapes matter to a latency. The last column is a measurement that the
search did not see. The table goes to docs/results.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from latency.models import MODELS

import optin_fx as ofx
from optin_fx.timing import Repeats

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
WITHIN = 0.03
JUDGED = "within 3 %"
HEAD = ("model", "run", "rounds", "share by the loop", "FLOPs kept", "measured again [95 % CI]", JUDGED, "seconds", "load")


def main() -> None:
    """Run the loops, print and write the table."""
    options = parse()
    rows, protocol = [], ""
    for name in options.models:
        dense = MODELS[name].program()
        for run in range(1, options.times + 1):
            row, protocol = one_loop(dense, options.budget, options.align)
            rows.append((name, str(run), *row))
            print(" | ".join(rows[-1]), flush=True)
    met = sum(row[HEAD.index(JUDGED)] == "yes" for row in rows)
    table = "\n".join("| " + " | ".join(row) + " |" for row in (HEAD, ("-",) * len(HEAD), *rows))
    title = (
        f"# Latency budgets: where the closed loop ends\n\nMade by `python tools/bench_latency_budget.py`.\n\nBudget: `{options.budget}`."
    )
    options.out.mkdir(parents=True, exist_ok=True)
    text = f"{title}\n\n{table}\n\n{JUDGED}: {met} of {len(rows)}.\n\n{protocol}\n"
    (options.out / "latency-budget.md").write_text(text)


def one_loop(dense: ofx.Program, budget: str, align: int) -> tuple[tuple[str, ...], str]:
    """A closed loop from an empty cache and a measurement of what it gave: a row of the table, and the protocol."""
    load = f"{os.getloadavg()[0]:.2f}"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OPTIN_FX_CACHE"] = folder
        began = time.perf_counter()
        result = ofx.prune(dense, score="magnitude", budget=budget, compensate=False, align=align)
        seconds = time.perf_counter() - began
    target = budget.rsplit("@", 1)[1].strip()
    report = ofx.measure({"dense": dense, "small": result.program}, target=target, repeats=Repeats(seconds=60.0))
    ratio, rounds = report.ratio("small"), result.plan.provenance["latency"]
    share, low, high = 1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low
    row = (
        str(len(result.plan.provenance["rounds"])), f"{rounds[-1]['measured']:.1%}",
        f"{result.report.after.flops / result.report.before.flops:.1%}", f"{share:.1%} [{low:.1%}, {high:.1%}]",
        "yes" if abs(share - rounds[-1]["limit"]) <= WITHIN else "no", f"{seconds:.0f}", load,
    )  # fmt: skip
    return row, report.protocol_text()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["minilm", "resnet50"])
    parser.add_argument("--budget", default="latency <= 60% @ onnxruntime:cpu")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--align", type=int, default=16, help="widths are multiples of this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
