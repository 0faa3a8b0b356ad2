"""How much of the saved FLOPs becomes saved time: models x budgets x engines x batch sizes, in one table.

    python tools/bench_latency.py --out bench-out
    python tools/bench_latency.py --models timm:resnet50 --targets onnxruntime:cpu openvino:cpu --shares 50 --batches 1 8

Every cell compares with the dense model on the same engine with the same settings, interleaved in one process. Widths are chosen
by weight magnitude, for only the shapes matter here, with random weights. Each measurement's report is written as JSON; a row whose
interval is wide was measured on a busy machine and should be taken again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import optin_fx as ofx
from optin_fx.models import Sizes, read_model
from optin_fx.timing import Repeats

MODELS = ("timm:deit_small_patch16_224", "timm:resnet50", "timm:efficientnet_b0", "timm:swin_tiny_patch4_window7_224")
TARGETS = ("onnxruntime:cpu", "openvino:cpu", "aotinductor")
HEAD = ("model", "target", "FLOPs kept", "batch", "dense ms", "smaller ms", "speed-up [95 % CI]", "speed-up / FLOPs ratio", "agreement")


def main(arguments: list[str] | None = None) -> int:
    """Run the grid; returns the exit status."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    report = None
    for spec in options.models:
        dense = read_model(spec, Sizes(weights="random", length=options.length))
        programs = {"dense": dense} | {f"{share} %": smaller(dense, share) for share in options.shares}
        costs = {name: ofx.cost(program) for name, program in programs.items()}
        for target in options.targets:
            report = ofx.measure(
                programs, target=target, batches=options.batches, threads=options.threads, costs=costs,
                repeats=Repeats(seconds=options.seconds),
            )  # fmt: skip
            file = options.out / f"{spec}-{report.target}.json".replace(":", "_").replace("/", "_")
            file.write_text(report.to_json())
            rows += table_rows(spec, report)
            print("\n".join(" | ".join(row) for row in rows[-len(report.ratios) :]), flush=True)
    text = "\n".join(["| " + " | ".join(row) + " |" for row in (HEAD, tuple("-" * len(HEAD)), *rows)])
    protocol = report.protocol_text() if report else ""
    (options.out / "latency.md").write_text(f"{text}\n\n{protocol}\n")
    print(f"\n{text}\n\n{protocol}\n\nwrote {options.out}/latency.md and one JSON per measurement")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="timm:NAME, hf:NAME, model.pt2 or package.module:factory")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--shares", nargs="+", type=int, default=[70, 50], help="percent of the FLOPs to keep")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--length", type=int, default=128, help="tokens, for hf: models")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each batch size")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    return parser.parse_args(arguments)


def smaller(dense: ofx.Program, share: int) -> ofx.Program:
    """The program at `share` percent of its FLOPs, widths chosen by magnitude."""
    plan = ofx.search(dense, ofx.score(dense, "magnitude"), budget=f"flops <= {share}%")
    return ofx.rewrite(dense, plan)


def table_rows(spec: str, report: ofx.Report) -> list[tuple[str, ...]]:
    """One row per ratio."""
    rows = []
    flops = {name: cost["flops"] for name, cost in report.costs.items()}
    for ratio in report.ratios:
        before, after = (report.latency(name, ratio.batch) for name in (ratio.baseline, ratio.candidate))
        efficiency = report.efficiency(ratio.candidate, ratio.batch)
        gap = max(item.max_rel for item in report.agreements if (item.candidate, item.batch) == (ratio.candidate, ratio.batch))
        rows.append(
            (
                spec, report.target, f"{flops[ratio.candidate] / flops[ratio.baseline]:.1%}", str(ratio.batch), f"{before.median_ms:.4g}",
                f"{after.median_ms:.4g}", str(ratio), f"{efficiency:.2f}", f"{gap:.0e}",
            )
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main())
