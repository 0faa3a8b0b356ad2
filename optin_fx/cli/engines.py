"""Commands that build engines and run them: measure, lower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import optin_fx as ofx
from optin_fx.cli import options
from optin_fx.cli.change import read_plan
from optin_fx.cli.output import show, writable_file
from optin_fx.cli.sizes import DEFAULT, with_sizes
from optin_fx.models import Sizes, read_model


@with_sizes
def measure(
    model: options.Model,
    small: Annotated[str, typer.Argument(metavar="SMALLER", help="the smaller model, in the same forms")],
    target: options.Target = "onnxruntime:cpu",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="also write the report to this .md, .html or .json file")] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--rows", min=1, help="rows of a call; give it again for more [default: as traced]")
    ] = None,
    lengths: Annotated[
        list[int] | None, typer.Option("--lengths", min=1, help="size of the other dynamic dim, e.g. tokens; give it again for more")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="plan.json: also compare the smaller model's outputs with the masked dense model's")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="also draw latency by batch size, and speed-up / FLOPs, to this file")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads [default: as many as torch uses]")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="also measure peak memory (bytes), in a process of its own for each")] = False,
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="replay each run as one CUDA graph")] = False,
    as_json: options.Json = False,
    sizes: Sizes = DEFAULT,
) -> None:
    """Compare two models on one engine: latency (ms, interleaved runs), FLOPs, parameters, bytes, agreement."""
    for file in (out, plot):
        if file is not None:
            writable_file(file)
    chosen = read_plan(plan) if plan is not None else None
    before, after = read_model(model, sizes), read_model(small, sizes)
    costs = {"before": ofx.cost(before), "after": ofx.cost(after)}
    masked = ofx.mask(before, chosen) if chosen is not None else None
    report = ofx.measure(
        before, after, target=target, batches=batches, lengths=lengths, threads=threads, costs=costs, memory=memory,
        cuda_graphs=cuda_graphs, reference=masked,
    )  # fmt: skip
    if plot is not None:
        report.plot(plot)
    if out is not None:
        forms = {".html": report.to_html, ".json": report.to_json}
        out.write_text(forms.get(out.suffix, report.to_markdown)())
    show(report, json.loads(report.to_json()), as_json=as_json)


@with_sizes
def lower(
    model: options.Model,
    target: options.Target = "onnxruntime:cpu",
    out: options.Out = Path("model.onnx"),
    as_json: options.Json = False,
    sizes: Sizes = DEFAULT,
) -> None:
    """Build an engine for a target and save it."""
    writable_file(out)
    engine = ofx.lower(read_model(model, sizes), target)
    engine.save(out)
    files = sorted(path for path in out.parent.glob(f"{out.name}*") if path.is_file())
    facts = {"target": target, "files": {str(path): path.stat().st_size for path in files}}
    show("\n".join(f"{path}  {path.stat().st_size:,} bytes" for path in files), facts, as_json=as_json)
