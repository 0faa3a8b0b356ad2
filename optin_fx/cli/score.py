"""The command `score`: how important each unit is; and what to do with scores that are there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import optin_fx as ofx
from optin_fx import ranks
from optin_fx.cli import options
from optin_fx.cli.data import read_data
from optin_fx.cli.output import say, show, writable_file
from optin_fx.cli.sizes import DEFAULT, with_sizes
from optin_fx.execution import execution
from optin_fx.files import remove_if_empty
from optin_fx.models import Sizes, read_model
from optin_fx.recipe import DEFAULT_SCORE
from optin_fx.scores import Scores


@with_sizes
def score(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="model.pt2, package.module:factory, timm:NAME or hf:NAME_OR_FOLDER")
    ] = None,
    score: options.Score = DEFAULT_SCORE,
    data: options.Data = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write the scores to this .safetensors file")] = None,
    annotate: Annotated[
        Path | None, typer.Option("--annotate", help="write the model with its scores noted on the graph to this .pt2 file")
    ] = None,
    rows: options.Rows = 8,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="samples to use; fewer in the data are refused [default: all, at most 256 of a long tensor]"),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="where to run, e.g. cuda [default: cuda if there is one]")] = None,
    memory_limit: options.MemoryLimit = None,
    offload: Annotated[bool, typer.Option("--offload", help="keep the weights on disk, and read each when its node runs")] = False,
    partial: Annotated[
        Path | None, typer.Option("--partial", metavar="FOLDER", help="where partial results are kept [default: beside --out]")
    ] = None,
    progress: Annotated[bool | None, typer.Option("--progress/--no-progress", help="show a bar [default: on a terminal]")] = None,
    show_layers: Annotated[
        bool, typer.Option("--show-layers", help="list the layers that the trajectory criteria compare, and stop")
    ] = False,
    print_: Annotated[
        Path | None, typer.Option("--print", metavar="FILE", help="print scores from a .safetensors or an annotated .pt2, and stop")
    ] = None,
    compare: Annotated[tuple[str, str], typer.Option("--compare", metavar="A B", help="compare two files of scores, and stop")] = ("", ""),
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="with --compare: also draw them against each other")] = None,
    as_json: options.Json = False,
    sizes: Sizes = DEFAULT,
) -> None:
    """Score every unit of every group; a higher score means: keep. Interrupted, the same command goes on where it was.

    Several processes share the work: torchrun --nproc-per-node 4 -m optin_fx score ...
    """
    if all(compare):
        show_comparison(Path(compare[0]), Path(compare[1]), plot, as_json=as_json)
        return
    if print_ is not None:
        show_saved(print_, as_json=as_json)
        return
    if model is None:
        raise typer.BadParameter("give a MODEL, or --compare A B, or --print FILE")
    for path in (out, annotate):
        if path is not None:
            writable_file(path)
    if show_layers:
        list_layers(read_model(model, sizes), as_json=as_json)
        return
    with ranks.joined():
        program = read_model(model, sizes)
        batches = read_data(data, program, rows=rows, samples=samples or 256)
        wanted: dict[str, Any] = {} if samples is None else {"samples": samples}
        shown = sys.stderr.isatty() if progress is None else progress
        folder = partial or (out.with_name(out.name + ".partial") if out is not None else None)
        with execution(device=device or own_device(), memory_limit=memory_limit, progress=shown, partial=folder, offload=offload):
            scores = ofx.score(program, score, data=batches, **wanted)
        if ranks.rank() != 0:
            return
        if out is not None:
            scores.save(out)
            if partial is None and folder is not None:
                remove_if_empty(folder)
        if annotate is not None:
            program.save(annotate)
        show(scores, scores.values, as_json=as_json)


def own_device() -> str | None:
    """This process's GPU, if there are any."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else None


def list_layers(program: ofx.Program, *, as_json: bool) -> None:
    """The layers, where they end, and how many groups lie before each."""
    from optin_fx.layers import later_layers, layers_of

    layers = layers_of(program)
    reach = {layer.name: sum(later_layers(program, [layer]).get(g.name, 0) for g in ofx.group(program).free) for layer in layers}
    nodes = {n.name: n for n in program.graph_module.graph.nodes}
    facts = [
        {
            "layer": layer.name,
            "node": layer.node,
            "shape": [str(d) for d in nodes[layer.node].meta["val"].shape],
            "features": layer.feature,
            "groups_before": reach[layer.name],
        }
        for layer in layers
    ]
    lines = [f"{'layer':<28} {'ends at':<20} {'shape (features in brackets)':<32} groups before it"]
    for layer in layers:
        dims = [f"[{d}]" if i == layer.feature else str(d) for i, d in enumerate(nodes[layer.node].meta["val"].shape)]
        lines.append(f"{layer.name:<28} %{layer.node:<19} {' x '.join(dims):<32} {reach[layer.name]}")
    show("\n".join(lines) if facts else "no layers: only the outputs are compared", facts, as_json=as_json)


def show_saved(path: Path, *, as_json: bool) -> None:
    """Scores from a file of scores, or from the nodes of an annotated program."""
    if path.suffix != ".pt2":
        scores = Scores.load(path)
        show(scores, scores.values, as_json=as_json)
        return
    from optin_fx.annotation import listing, notes_on

    program = ofx.load(path)
    show(listing(program), notes_on(program), as_json=as_json)


def show_comparison(first: Path, second: Path, plot_to: Path | None, *, as_json: bool) -> None:
    """Two files of scores beside each other."""
    from optin_fx.comparison import compare, plot

    if plot_to is not None:
        writable_file(plot_to)
    a, b = Scores.load(first), Scores.load(second)
    found = compare(a, b)
    if plot_to is not None:
        plot(a, b, plot_to)
    show(found, found, as_json=as_json)
    if plot_to is not None and not as_json:
        say(f"wrote {plot_to}")
