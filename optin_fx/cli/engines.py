"""Commands that build engines and run them: measure, lower."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import optin_fx as ofx
from optin_fx.cli import options
from optin_fx.cli.output import plain, show, writable_file
from optin_fx.models import Sizes, read_model


def measure(
    model: options.Model,
    small: Annotated[str, typer.Argument(metavar="SMALLER", help="the smaller model, in the same forms")],
    target: options.Target = "onnxruntime:cpu",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="also write the report to this .md, .html or .json file")] = None,
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
    report = ofx.measure(read_model(model, sizes), read_model(small, sizes), target=target)
    if out is not None:
        out.write_text(f"{report}\n")
    show(report, plain(report), as_json=as_json)


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
