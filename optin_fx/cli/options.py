"""The options that several commands share, each with its unit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from optin_fx.errors import BudgetError

Model: TypeAlias = Annotated[str, typer.Argument(metavar="MODEL", help="model.pt2, package.module:factory, timm:NAME or hf:NAME_OR_FOLDER")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout, for machines")]
Batch: TypeAlias = Annotated[
    int, typer.Option("--batch", min=1, help="rows of the example inputs of timm: and hf: models; costs count all")
]
Length: TypeAlias = Annotated[int, typer.Option("--length", min=1, help="tokens of the example text of hf: models")]
Image: TypeAlias = Annotated[
    int | None, typer.Option("--image", min=1, metavar="PIXELS", help="side of the square example image [default: what the model says]")
]
Weights: TypeAlias = Annotated[
    str, typer.Option("--weights", metavar="pretrained|random|FILE", help="weights of timm: and hf: models; FILE is a state dict")
]
MemoryLimit: TypeAlias = Annotated[
    str | None, typer.Option("--memory-limit", metavar="BYTES", help="what activations may take, e.g. '4 GB'")
]
Score: TypeAlias = Annotated[
    str, typer.Option("--score", metavar="NAME", help="what tells important units; `optin-fx passes` lists the names")
]
Data: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SOURCE",
        help="calibration inputs, no labels: package.module:factory, a .pt, .safetensors or .npz file, or 'random' (noise, a last resort)",
    ),
]
Rows: TypeAlias = Annotated[int, typer.Option("--rows", min=1, help="samples per calibration batch, if --data is one long tensor or noise")]
Samples: TypeAlias = Annotated[int, typer.Option("--samples", min=1, help="most samples used, if --data is one long tensor or noise")]
Budget: TypeAlias = Annotated[
    str, typer.Option("--budget", metavar="TEXT", help="what may stay, e.g. 'flops <= 50%', 'params(encoder) <= 3M'")
]
Target: TypeAlias = Annotated[str, typer.Option("--target", metavar="NAME", help="engine, e.g. onnxruntime:cpu or eager:cpu")]
Rearrange: TypeAlias = Annotated[
    bool, typer.Option("--rearrange/--no-rearrange", help="exchange units by what they lose together; needs --score fisher")
]
Narrow: TypeAlias = Annotated[bool, typer.Option("--narrow/--no-narrow", help="compute no rows that nothing reads")]
Compensate: TypeAlias = Annotated[
    str | None, typer.Option("--compensate", metavar="NAME", help="how what stays makes up for what went: reconstruct, tune or none")
]
Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="where to write; made if need be")]
Freeze: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--freeze", metavar="PATTERN", help="leave whole what this names (a group, module or parameter; * and ? allowed); repeat it"
    ),
]
Width: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--width", metavar="PATTERN=LEAST:MOST", help="units that groups named so may end with; either side may be empty; repeat it"
    ),
]
Kinds: TypeAlias = Annotated[
    str,
    typer.Option("--kinds", metavar="A,B", help="prune these kinds of units only, e.g. head,neuron [default: all but dims inside heads]"),
]
Align: TypeAlias = Annotated[int, typer.Option("--align", min=0, help="widths are multiples of this; 0: of 8 for a latency, else free")]

Allow: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", metavar="CODE", help="also free widths under norms: normalised (inexact) or averaged (RMSNorm streams); repeat it"
    ),
]


def steering(freeze: list[str] | None, width: list[str] | None, kinds: str, align: int) -> dict[str, Any]:
    """The options of a search that say what the user wants left or reached.

    Raises:
        BudgetError: a width cannot be read.
    """
    return {
        "freeze": tuple(freeze or ()),
        "widths": tuple(map(_width, width or ())),
        "kinds": tuple(filter(None, kinds.split(","))),
        "align": align,
    }


def _width(text: str) -> tuple[str, int | None, int | None]:
    match = re.fullmatch(r"(.+)=(\d*):(\d*)", text.strip())
    if match is None:
        raise BudgetError(f"cannot read the width {text!r}", fix="write PATTERN=LEAST:MOST, as in '*.mlp.*=64:256' or 'layer1=:32'")
    pattern, least, most = match.groups()
    return pattern, int(least) if least else None, int(most) if most else None
