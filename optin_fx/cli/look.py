"""Commands that look and change nothing: group, cost, passes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import optin_fx as ofx
from optin_fx.cli import options
from optin_fx.cli.output import show
from optin_fx.cli.sizes import DEFAULT, with_sizes
from optin_fx.models import Sizes, read_model


@with_sizes
def group(
    model: options.Model,
    as_json: options.Json = False,
    sizes: Sizes = DEFAULT,
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="NAME", help="only groups of this name, module or parameter: tied to what, or why pinned"),
    ] = None,
    allow: options.Allow = None,
) -> None:
    """List what can shrink: each group of coupled units, its members, and why others are pinned."""
    groups = ofx.group(read_model(model, sizes), allow=allow or ())
    if explain is None:
        show(groups, [group_facts(one) for one in groups], as_json=as_json)
    else:
        show(groups.explain(explain), [group_facts(one) for one in groups.about(explain)], as_json=as_json)


def group_facts(one: Any) -> dict[str, Any]:
    """A group as JSON says it."""
    return {
        "name": one.name,
        "kind": one.kind,
        "extent": one.extent,
        "pinned": one.pinned and str(one.pinned),
        "members": [[name, dim] for name, dim in one.members],
        **({"allowed": one.allowed} if one.allowed else {}),
    }


@with_sizes
def cost(
    model: options.Model,
    as_json: options.Json = False,
    sizes: Sizes = DEFAULT,
) -> None:
    """Count FLOPs (1 MAC = 2 FLOPs), parameters and bytes, at the size of the example inputs."""
    found = ofx.cost(read_model(model, sizes))
    facts = {"flops": int(found.flops), "macs": int(found.macs), "params": int(found.params), "bytes": int(found.bytes)}
    units = {
        "flops": "floating-point operations, 2 per MAC",
        "macs": "multiply-accumulates",
        "params": "parameters",
        "bytes": "bytes of weights",
    }
    show("\n".join(f"{count:>18,}  {units[name]}" for name, count in facts.items()), facts, as_json=as_json)


def passes(as_json: options.Json = False) -> None:
    """List the passes: the names that --score and pipelines take."""
    from optin_fx.pipeline import registered_passes

    found = {name: _first_sentence(cls.__doc__) for name, cls in sorted(registered_passes().items())}
    width = max((len(name) for name in found), default=0)
    show("\n".join(f"{name:<{width}}  {text}" for name, text in found.items()), found, as_json=as_json)


def _first_sentence(text: str | None) -> str:
    line = " ".join((text or "").strip().split("\n\n")[0].split())
    return line.split(". ")[0].rstrip(".")
