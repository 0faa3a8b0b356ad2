"""How long a whole run takes, trace to verified smaller program, by stage, and how much memory it adds.

    python tools/bench_run.py minilm bert-base --write

Random weights and random texts, for neither changes the work: 512 calibration texts of 64 tokens, to half of the FLOPs, with everything
at its default. Each model runs in a process of its own; memory is the peak of the process beyond what it held before the run, dense weights
not among it. The goal is three times the weights and one batch, that is, what a forward and backward pass of the dense model on one batch
adds to a process that does nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from latency.models import MINILM, bert, texts

import optin_fx as ofx
from optin_fx.environment import environment
from optin_fx.execution import execution

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "run-time.md"
SHAPES: dict[str, Callable[[], Any]] = {
    "minilm": lambda: bert(**MINILM)[0],
    "bert-base": lambda: bert()[0],
}
TITLE = """# A whole run: time and memory

Made by `python tools/bench_run.py minilm bert-base --memory-limit 128MB --write`, which keeps what another call has written: 512 texts of
64 tokens in batches of 32, to 50 % of the FLOPs.

"""


def main() -> None:
    """Run the models one after the other; print, and write, a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--search", help="of the run; without, its default")
    parser.add_argument("--memory-limit", help="run once more with this limit for what passes keep: 128MB")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    if options.write and (options.samples, options.tokens, options.batch) != (512, 64, 32):
        parser.error("the page is about 512 samples of 64 tokens in batches of 32")
    parts = sections(PAGE.read_text()) if PAGE.exists() else {}
    for name in options.models:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            batch = pool.apply(one_batch, (name, options.tokens, options.batch))
        for limit in (None, options.memory_limit) if options.memory_limit else (None,):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(one, (name, options.samples, options.tokens, options.batch, options.search, batch, limit))
            print(found, flush=True)
            parts |= sections(found)
            if options.write:
                PAGE.write_text(TITLE + "\n".join(parts[title] for title in sorted(parts, key=order)))


def sections(text: str) -> dict[str, str]:
    """The sections of a page by their titles."""
    return {part.split("\n", 1)[0]: f"## {part.strip()}\n" for part in text.split("## ")[1:]}


def order(title: str) -> tuple[int, str]:
    """Small models first, without a limit first."""
    return list(SHAPES).index(title.split(",")[0]), title


def made(name: str) -> tuple[Any, int]:
    """The model and the bytes of its weights."""
    torch.manual_seed(0)
    model = SHAPES[name]().eval()
    return model, sum(p.numel() * p.element_size() for p in model.parameters())


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one_batch(name: str, tokens: int, batch: int) -> int:
    """Bytes that a forward and backward pass of the dense model adds."""
    (model, _), data = made(name), texts(batch, tokens)
    before = peak()
    model(**data).last_hidden_state.square().sum().backward()
    return peak() - before


def one(name: str, samples: int, tokens: int, batch: int, search: str | None, of_batch: int, limit: str | None) -> str:
    """A run and its rows."""
    model, weights = made(name)
    data, example = [texts(batch, tokens) for _ in range(samples // batch)], texts(2, tokens)
    dynamic = {key: {0: torch.export.Dim("batch", max=4096)} for key in example}
    before, began = peak(), time.perf_counter()
    with execution(memory_limit=limit):
        result = ofx.prune(model, (), example, dynamic, data=data, budget="flops <= 50%", search=search)
    seconds = time.perf_counter() - began
    added, goal = peak() - before, 3 * weights + of_batch
    stages = [(label.split("{")[0], spent) for label, spent in result.report.stages]
    rest = seconds - sum(spent for _, spent in stages)
    rows = [*stages, ("trace, group, verify", rest), ("**all**", seconds)]
    table = "\n".join(["| stage | seconds |", "| - | -: |", *(f"| {label} | {spent:.1f} |" for label, spent in rows)])
    facts = (
        f"Weights {weights / 1e6:.0f} MB; forward and backward on one batch {of_batch / 1e6:.0f} MB; the run added {added / 1e6:.0f} MB at "
        f"its peak. Goal: three times the weights and one batch, {goal / 1e6:.0f} MB: {'met' if added <= goal else 'NOT met'}. "
        f"{result.report.agreement}."
    )
    around = environment()
    where = f"{around['cpu']}, {torch.get_num_threads()} threads, load {around['load_average'][0]}; torch {torch.__version__}."
    return f"## {name}{f', memory limit {limit}' if limit else ''}\n\n{table}\n\n{facts}\n\n{where}\n"


if __name__ == "__main__":
    main()
