"""The whole way on a real model: `make demo`, or `python tools/demo.py --out demo-out`.

all-MiniLM-L6-v2, with its published weights, is pruned without labels to 70 % and to 50 % of its FLOPs, and, to compare, to 50 % by
magnitude and at random. Each result is lowered to ONNX Runtime, timed in one interleaved run with the dense model, and judged by what
became of the embeddings of sentences that were not calibrated on. Takes about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# before torch starts its threads: on a busy machine, threads that spin while they wait take the time of those that work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import demo_encoder
from demo_table import put_into_readme, table
from sentences import Sentences, sentences
from tasks import metrics
from torch import Tensor

import optin_fx as ofx
from optin_fx.cli.output import writable_folder
from optin_fx.errors import OptinError
from optin_fx.lowering import Engine
from optin_fx.recipe import DEFAULT_SCORE
from optin_fx.report import Report
from optin_fx.timing import Repeats

ROWS = 8  # of the inputs at whose size FLOPs are counted and latency is measured
TARGET = "onnxruntime:cpu"
MAIN = "50 %"


@dataclass(frozen=True)
class Variant:
    """One way to make the model smaller. All tokens' features count in a sentence encoder, so no layer is cut far below the others."""

    name: str
    score: str
    budget: str
    compensate: bool


VARIANTS = (
    Variant(MAIN, DEFAULT_SCORE, "flops <= 50%", True),
    Variant("70 %", DEFAULT_SCORE, "flops <= 70%", True),
    Variant("50 %, by magnitude, compensated", "magnitude", "flops <= 50%", True),
    Variant("50 %, by magnitude", "magnitude", "flops <= 50%", False),
    Variant("50 %, at random", "random", "flops <= 50%", False),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the results")
    parser.add_argument("--calibration", type=int, default=512, metavar="N", help="sentences to calibrate on")
    parser.add_argument("--held-out", type=int, default=300, metavar="N", help="sentences to judge by")
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="time for measuring latency")
    parser.add_argument("--write-readme", action="store_true", help="put the table into README.md")
    options = parser.parse_args(arguments)
    try:
        demo(options)
    except OptinError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def demo(options: argparse.Namespace) -> None:
    out = writable_folder(options.out)
    step = Steps()

    step("load the model and the sentences")
    encoder, tokens = demo_encoder.load()
    texts = sentences(options.calibration, options.held_out)
    batches = tokens.batches(texts.calibration, rows=16)

    step("trace")
    example = demo_encoder.example(ROWS)
    program = ofx.trace(encoder, example, dynamic_shapes=demo_encoder.dynamic_shapes())

    smaller: dict[str, Smaller] = {}
    scores: dict[str, ofx.Scores] = {}
    for variant in VARIANTS:
        step(f"prune: {variant.name}")
        smaller[variant.name] = prune(program, variant, batches, scores)

    step(f"lower to {TARGET}")
    programs = {"dense": program} | {name: one.program for name, one in smaller.items()}
    engines = {name: ofx.lower(one, TARGET) for name, one in programs.items()}
    engines[MAIN].save(out / "model.onnx")
    smaller[MAIN].program.save(out / "pruned.pt2")
    (out / "plan.json").write_text(smaller[MAIN].plan.to_json())

    step("judge by sentences that were not calibrated on")
    embeddings = {name: demo_encoder.embed(engine, tokens, texts.held_out) for name, engine in engines.items()}
    quality = {name: kept_meaning(found, embeddings["dense"]) for name, found in embeddings.items()}

    step("time them, interleaved")
    costs = {name: ofx.cost(one) for name, one in programs.items()}
    report = ofx.measure(programs, target=TARGET, costs=costs, metrics=quality, repeats=Repeats(seconds=options.seconds))
    step.end()

    sizes = file_sizes(engines)
    summary = table(HEAD, [row(name, report, costs, quality, sizes) for name in programs])
    notes = protocol(texts, report)
    (out / "report.md").write_text(f"# all-MiniLM-L6-v2, pruned\n\n{summary}\n\n{notes}\n\n{report.to_markdown()}\n")
    (out / "report.html").write_text(report.to_html())
    if options.write_readme:
        put_into_readme(f"{summary}\n\n{notes}\n\nMade by `python tools/demo.py --write-readme`.")
    print(f"\n{summary}\n\n{notes}\n\n{what_next(out)}")


class Smaller(NamedTuple):
    """A smaller program and the plan that made it."""

    program: ofx.Program
    plan: ofx.Plan


def prune(program: ofx.Program, variant: Variant, batches: Sequence[Any], scores: dict[str, ofx.Scores]) -> Smaller:
    """`ofx.prune`; scores that are there already are used again, as another budget costs another search only."""
    if variant.score not in scores:
        result = ofx.prune(program, data=batches, score=variant.score, budget=variant.budget, compensate=variant.compensate)
        scores[variant.score] = result.scores
        return Smaller(result.program, result.plan)
    plan = ofx.search(program, scores[variant.score], variant.budget, "trial" if variant.compensate else "rank", batches)
    return Smaller(ofx.rewrite(program, plan, batches if variant.compensate else None), plan)


HEAD = ("", "GFLOPs", "of dense", "M params", "file MB", "ms", "spread", "faster [95 %]", "cosine", "rank")


def kept_meaning(found: Tensor, dense: Tensor) -> dict[str, float]:
    """Mean cosine of each sentence's embedding with the dense model's; rank agreement of all sentence pairs' similarities."""
    return {
        "cosine": metrics.mean_cosine(found, dense),
        "rank": metrics.spearman(metrics.pair_similarities(found), metrics.pair_similarities(dense)),
    }


def file_sizes(engines: dict[str, Engine]) -> dict[str, int]:
    """Bytes of each engine's files."""
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, engine) in enumerate(engines.items()):
            place = Path(folder) / str(number)
            engine.save(place / "model.onnx")
            sizes[name] = sum(file.stat().st_size for file in place.iterdir())
    return sizes


def row(name: str, report: Report, costs: dict[str, Any], quality: dict[str, dict[str, float]], sizes: dict[str, int]) -> list[str]:
    """A line of the table."""
    latency = report.latency(name)
    return [
        name,
        f"{costs[name].flops / 1e9:.2f}",
        f"{costs[name].flops / costs['dense'].flops:.1%}",
        f"{costs[name].params / 1e6:.2f}",
        f"{sizes[name] / 1e6:.1f}",
        f"{latency.median_ms:.1f}",
        f"{latency.spread:.0%}",
        "1" if name == report.baseline else str(report.ratio(name)),
        f"{quality[name]['cosine']:.4f}",
        f"{quality[name]['rank']:.4f}",
    ]


def protocol(texts: Sentences, report: Report) -> str:
    """How the numbers came about, in a few lines."""
    around, rounds = report.environment, len(report.latencies[0].samples_ms)
    version = around["versions"].get("onnxruntime")
    return (
        f"FLOPs (1 MAC = 2 FLOPs) and latency at batch {ROWS}, {demo_encoder.LONGEST} tokens, float32; {TARGET} {version}, "
        f"{report.protocol['threads']} threads of {around['cpu']}; median of {rounds} rounds, all engines interleaved in random order; "
        "spread is the interquartile range over the median. "
        f"Calibrated on {len(texts.calibration)} unlabelled sentences, judged on {len(texts.held_out)} others: {texts.origin}. "
        "Cosine: of each sentence's embedding with the dense model's, mean. "
        "Rank: Spearman's correlation of the similarities of all sentence pairs, with the dense model's."
    )


def what_next(out: Path) -> str:
    """The lines that load and run the result, and where to go on."""
    return f"""In {out}: pruned.pt2 (a torch program), model.onnx, plan.json, report.md, report.html. To load and run the result:

    import torch, optin_fx as ofx
    encoder = ofx.load("{out}/pruned.pt2")
    embeddings = encoder(torch.randint(1000, 30000, (2, 16)), torch.ones(2, 16, dtype=torch.long))

Next: python -c "import optin_fx as ofx; print(ofx.group(ofx.load('{out}/pruned.pt2')))" lists what is left to prune;
README.md shows the same on a model of yours; `{Path(sys.executable).parent / "optin-fx"} --help` does it from the shell."""


class Steps:
    """Says what is going on, and how long it took."""

    def __init__(self) -> None:
        self.text, self.start = "", time.perf_counter()

    def __call__(self, text: str) -> None:
        self.end()
        self.text, self.start = text, time.perf_counter()
        print(f"{text} ", end="", flush=True)

    def end(self) -> None:
        if self.text:
            print(f"({time.perf_counter() - self.start:.0f} s)", flush=True)
        self.text = ""


if __name__ == "__main__":
    sys.exit(main())
