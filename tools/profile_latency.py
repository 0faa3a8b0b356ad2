"""Where the time goes, by operator: the dense program and a smaller one in ONNX Runtime's own profiler, run in turns.

    python tools/profile_latency.py deit-s bert-base --share 50 --batch 8 --write

What did not shrink is what keeps a speed-up below the saved FLOPs: operators whose work does not depend on the widths that were cut. The
profiler slows small operators down; latencies are `bench_latency`'s business.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from latency.cells import DENSE, Candidates
from latency.models import MODELS
from torch.utils import _pytree as pytree

import optin_fx as ofx
from optin_fx.lowering.onnxruntime import OnnxRuntimeEngine

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "latency-profile.md"
TITLE = (
    "# Latency by operator\n\nMade by `python tools/profile_latency.py MODELS --share 50 --batch 8 --write`: ONNX Runtime's profiler, one "
    "thread, medians over runs in turns, random weights. Operators below 1 % of the dense time are summed up.\n"
)


def main() -> None:
    """Profile each model and print, or write, a table for each."""
    options = parse()
    torch.set_num_threads(1)
    parts = [TITLE]
    for name in options.models:
        parts.append(f"\n## {name}, batch {options.batch}\n\n{table(profiles(name, options), options.share)}")
        print(parts[-1], flush=True)
    if options.write:
        PAGE.write_text("".join(parts))


def profiles(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By program and operator, milliseconds per run."""
    programs = Candidates.of(MODELS[name].program(), (options.share,), options.align).programs
    with tempfile.TemporaryDirectory() as folder:
        sessions = {label: _session(program, Path(folder) / str(i)) for i, (label, program) in enumerate(programs.items())}
        dense = programs[DENSE]
        leaves = pytree.tree_leaves((dense.args, dense.kwargs))
        feeds = [_rows(leaf, options.batch).numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]
        for _ in range(options.runs):
            for session in sessions.values():
                session.run(None, dict(zip((i.name for i in session.get_inputs()), feeds, strict=True)))
        return {label: _by_operator(Path(session.end_profiling()), options.runs) for label, session in sessions.items()}


def _session(program: ofx.Program, prefix: Path) -> Any:
    """A profiling session with the settings that the target `onnxruntime:cpu` has."""
    engine = ofx.lower(program, "onnxruntime:cpu")
    assert isinstance(engine, OnnxRuntimeEngine)
    path, settings = engine.save(prefix.with_suffix(".onnx")), engine.session.settings
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = settings["threads"], 1
    options.enable_profiling, options.profile_file_prefix = True, str(prefix)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=settings["fusions_off"])


def _rows(leaf: torch.Tensor, batch: int) -> torch.Tensor:
    return torch.cat([leaf] * -(-batch // len(leaf)))[:batch]


def _by_operator(trace: Path, runs: int) -> dict[str, float]:
    """Milliseconds per run by operator: of every node the median over runs, so that other work on the machine hardly counts."""
    times: dict[tuple[str, str], list[float]] = {}
    for event in json.loads(trace.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1e3)
    found: Counter[str] = Counter()
    for (operator, _), values in times.items():
        found[operator] += sorted(values)[len(values) // 2] * len(values) / runs
    return dict(found)


def table(found: dict[str, dict[str, float]], share: int) -> str:
    """Rows by operator, the slowest first."""
    small = next(values for label, values in found.items() if label != DENSE)
    dense, rest = found[DENSE], [0.0, 0.0]
    total, left = sum(dense.values()), sum(small.values())
    lines = [f"| operator | dense ms | {share} % ms | left | share of the dense time |", "| - | -: | -: | -: | -: |"]
    for operator in sorted({*dense, *small}, key=lambda name: -dense.get(name, 0.0)):
        before, after = dense.get(operator, 0.0), small.get(operator, 0.0)
        if before < 0.01 * total:
            rest = [rest[0] + before, rest[1] + after]
        else:
            lines.append(f"| {operator} | {before:.2f} | {after:.2f} | {after / before:.0%} | {before / total:.1%} |")
    lines.append(f"| others | {rest[0]:.2f} | {rest[1]:.2f} | {rest[1] / max(rest[0], 1e-9):.0%} | {rest[0] / total:.1%} |")
    lines.append(f"| **all** | {total:.2f} | {left:.2f} | {left / total:.0%} | |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=sorted(MODELS))
    parser.add_argument("--share", type=int, default=50, help="percent of the FLOPs to keep")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--align", type=int, default=16)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
