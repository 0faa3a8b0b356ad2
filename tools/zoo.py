"""Run the zoo and write its table: `python tools/zoo.py --real --write docs/zoo.md`.

For every architecture: nodes, prunable groups by kind, the share of parameters and of FLOPs that is prunable, what is pinned
and why, the time of the analysis, and the oracle's error over random plans. `--onnx` exports the dense and a pruned program, at test
sizes, and compares both with ONNX Runtime.

Each model runs in a process of its own, and what was found is kept in `--cache`, one JSON file for each model, so that a run that is
broken off goes on where it stopped. `--again` forgets what the cache holds for the models that are named.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from zoo_page import PLANS, page, row

import optin_fx as ofx
from optin_fx.files import write_whole
from optin_fx.testing import zoo
from optin_fx.testing.survey import survey

TIME = 900
"""Seconds that one model may take."""


def main(
    names: Annotated[list[str] | None, typer.Argument(help="names or shell patterns; all without")] = None,
    family: Annotated[str | None, typer.Option(help=f"one of {', '.join(zoo.FAMILIES)}")] = None,
    real: Annotated[bool, typer.Option("--real", help="widths of the published models (slow, memory)")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="in place of the survey: export to ONNX, dense and pruned, and compare")] = False,
    plans: Annotated[int, typer.Option(help="random plans per model")] = PLANS,
    cache: Annotated[Path, typer.Option(help="folder of results")] = Path("build/zoo"),
    again: Annotated[bool, typer.Option("--again", help="run the named models again")] = False,
    write: Annotated[Path | None, typer.Option(help="Markdown file for the table of all that the cache holds")] = None,
) -> None:
    """Survey the zoo; exit code 1 if a model fails or a plan is not exact."""
    entries = zoo.select(*(names or ()), family=family)
    sizes = "real" if real else "small"
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for library in ("timm", "torchvision", "transformers", "onnxruntime"):
        importlib.import_module(library)  # once, before the processes part
    folder = cache / ("onnx" if onnx else f"{sizes}-{plans}")
    folder.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for entry in entries:
        path = folder / f"{entry.name}.json"
        if again or not path.is_file():
            path.unlink(missing_ok=True)
            run(path, partial(export, entry) if onnx else partial(look_at, entry, real=real, plans=plans))
        facts = json.loads(path.read_text())
        wrong += not good(facts)
        print(f"{'' if good(facts) else 'WRONG '}{row(entry, facts)}", flush=True)
    if write is not None:
        write.write_text(page(cache, real=real, plans=plans))
    raise typer.Exit(int(wrong > 0))


def run(path: Path, find: Callable[[], dict[str, Any]]) -> None:
    """Find something out in a process of its own, so that memory is given back; a failure is a finding, too."""

    def child() -> None:
        try:
            facts = find()
        except Exception as error:  # noqa: BLE001  one model's failure is a row of the table
            facts = {"failed": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]}
        write_whole(path, json.dumps(facts))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(TIME)
    if process.is_alive():
        process.kill()
        process.join()
        write_whole(path, json.dumps({"failed": f"took longer than {TIME} s"}))
    elif not path.is_file():
        write_whole(path, json.dumps({"failed": f"the process ended with {process.exitcode}"}))


def good(facts: dict[str, Any]) -> bool:
    """Nothing failed, and every comparison is within the tolerance."""
    return "failed" not in facts and max(facts.get("errors", ()), default=0.0) <= 1e-4


def look_at(entry: zoo.Entry, *, real: bool, plans: int) -> dict[str, Any]:
    """Build, trace and survey one entry."""
    return survey(entry.program(small=not real), plans=plans).facts()


def export(entry: zoo.Entry) -> dict[str, Any]:
    """Export the dense and a pruned program at test sizes; largest relative difference of ONNX Runtime's outputs from the program's."""
    program = entry.program(small=True)
    plan = ofx.random_plan(program, seed=1)
    found: dict[str, Any] = {}
    for name, which in (("dense", program), ("pruned", ofx.rewrite(program, plan))):
        engine = ofx.lower(which, "onnxruntime:cpu")
        assert engine.closeness is not None
        found[name] = engine.closeness.max_rel
    return found


if __name__ == "__main__":
    typer.run(main)
