"""Commands that look and change nothing: group, score, cost, passes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import optin_fx as ofx
from optin_fx.cli import options
from optin_fx.cli.data import read_data
from optin_fx.cli.output import show, writable_file
from optin_fx.models import Sizes, read_model


def group(
    model: options.Model,
    as_json: options.Json = False,
    batch: options.Batch = 1,
    length: options.Length = 128,
    image: options.Image = None,
    weights: options.Weights = "pretrained",
) -> None:
    """List what can shrink: each group of coupled units, its members, and why others are pinned."""
    groups = ofx.group(read_model(model, Sizes(batch, length, image, weights)))
    show(groups, [group_facts(one) for one in groups], as_json=as_json)


def group_facts(one: Any) -> dict[str, Any]:
    """A group as JSON says it."""
    return {
        "name": one.name,
        "kind": one.kind,
        "extent": one.extent,
        "pinned": one.pinned and str(one.pinned),
        "members": [[name, dim] for name, dim in one.members],
    }


def score(
    model: options.Model,
    score: options.Score = "trajectory-sketch",
    data: options.Data = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write the scores to this .safetensors file")] = None,
    rows: options.Rows = 8,
    samples: options.Samples = 256,
    as_json: options.Json = False,
    batch: options.Batch = 1,
    length: options.Length = 128,
    image: options.Image = None,
    weights: options.Weights = "pretrained",
) -> None:
    """Score every unit of every group; a higher score means: keep."""
    if out is not None:
        writable_file(out)
    program = read_model(model, Sizes(batch, length, image, weights))
    scores = ofx.score(program, score, data=read_data(data, program, rows=rows, samples=samples))
    named = {one.name: scores[one.name] for one in ofx.group(program) if not one.pinned}
    if out is not None:
        from safetensors.torch import save_file

        save_file({name: values.detach().cpu().contiguous() for name, values in named.items()}, out)
    show(_score_table(named), named, as_json=as_json)


def _score_table(named: dict[str, Any]) -> str:
    width = max((len(name) for name in named), default=5)
    lines = [f"{'group':<{width}}  {'units':>6}  {'least':>10}  {'median':>10}  {'most':>10}"]
    for name, values in named.items():
        least, median, most = (f"{float(value):>10.3g}" for value in (values.min(), values.median(), values.max()))
        lines.append(f"{name:<{width}}  {values.numel():>6}  {least}  {median}  {most}")
    return "\n".join(lines)


def cost(
    model: options.Model,
    as_json: options.Json = False,
    batch: options.Batch = 1,
    length: options.Length = 128,
    image: options.Image = None,
    weights: options.Weights = "pretrained",
) -> None:
    """Count FLOPs (1 MAC = 2 FLOPs), parameters and bytes, at the size of the example inputs."""
    found = ofx.cost(read_model(model, Sizes(batch, length, image, weights)))
    facts = {"flops": found.flops, "macs": found.macs, "params": found.params, "bytes": found.bytes}
    lines = [
        f"FLOPs   {found.flops:>18,}   (1 MAC = 2 FLOPs)",
        f"MACs    {found.macs:>18,}",
        f"params  {found.params:>18,}",
        f"bytes   {found.bytes:>18,}   of weights",
    ]
    show("\n".join(lines), facts, as_json=as_json)


def passes(as_json: options.Json = False) -> None:
    """List the passes: the names that --score and pipelines take."""
    from optin_fx.pipeline import registered_passes

    found = {name: _first_sentence(cls.__doc__) for name, cls in sorted(registered_passes().items())}
    width = max((len(name) for name in found), default=0)
    show("\n".join(f"{name:<{width}}  {text}" for name, text in found.items()), found, as_json=as_json)


def _first_sentence(text: str | None) -> str:
    line = " ".join((text or "").strip().split("\n\n")[0].split())
    return line.split(". ")[0].rstrip(".")
