"""Commands that build engines and run them: measure, lower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import optin_fx as ofx
from optin_fx.cli import options
from optin_fx.cli.output import show, writable_file
from optin_fx.models import Sizes, read_model


def measure(
    model: options.Model,
    small: Annotated[str, typer.Argument(metavar="SMALLER", help="the smaller model, in the same forms")],
    target: options.Target = "onnxruntime:cpu",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="also write the report to this .md, .html or .json file")] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--rows", min=1, help="rows of a call; give it again for more [default: as traced]")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads [default: as many as torch uses]")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="also measure peak memory (bytes), in a process of its own for each")] = False,
    as_json: options.Json = False,
    batch: options.Batch = 1,
    length: options.Length = 128,
    image: options.Image = None,
    weights: options.Weights = "pretrained",
) -> None:
    """Compare two models on one engine: latency (ms, interleaved runs), FLOPs, parameters, bytes, agreement."""
    if out is not None:
        writable_file(out)
    sizes = Sizes(batch, length, image, weights)
    before, after = read_model(model, sizes), read_model(small, sizes)
    costs = {"before": ofx.cost(before), "after": ofx.cost(after)}
    report = ofx.measure(before, after, target=target, batches=batches, threads=threads, costs=costs, memory=memory)
    if out is not None:
        forms = {".html": report.to_html, ".json": report.to_json}
        out.write_text(forms.get(out.suffix, report.to_markdown)())
    show(report, json.loads(report.to_json()), as_json=as_json)


def lower(
    model: options.Model,
    target: options.Target = "onnxruntime:cpu",
    out: options.Out = Path("model.onnx"),
    as_json: options.Json = False,
    batch: options.Batch = 1,
    length: options.Length = 128,
    image: options.Image = None,
    weights: options.Weights = "pretrained",
) -> None:
    """Build an engine for a target and save it."""
    writable_file(out)
    engine = ofx.lower(read_model(model, Sizes(batch, length, image, weights)), target)
    engine.save(out)
    files = sorted(path for path in out.parent.glob(f"{out.name}*") if path.is_file())
    facts = {"target": target, "files": {str(path): path.stat().st_size for path in files}}
    show("\n".join(f"{path}  {path.stat().st_size:,} bytes" for path in files), facts, as_json=as_json)
