"""Measure how the latency of a model depends on the width of each of its groups, in a target, and print or save the table.

python tools/build_latency_table.py timm:resnet50 --target onnxruntime:cpu --batch 1 --weights random --out table.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from optin_fx.groups import group
from optin_fx.latency_table import FITS, Curve, build
from optin_fx.models import Sizes, read_model
from optin_fx.space import INSIDE_HEADS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as for the command optin-fx")
    parser.add_argument("--target", default="onnxruntime:cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--image", type=int)
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--points", type=int, default=5, help="widths per group")
    parser.add_argument("--align", type=int, default=8, help="widths are multiples of this")
    parser.add_argument("--fit", choices=FITS, default="linear")
    parser.add_argument("--inside-heads", action="store_true", help="also the dims inside heads")
    parser.add_argument("--out", type=Path, help="write the table to this .json file")
    given = parser.parse_args()
    program = read_model(given.model, Sizes(given.batch, given.length, given.image, given.weights))
    names = [g.name for g in group(program).free if given.inside_heads or g.kind not in INSIDE_HEADS]

    def told(name: str, curve: Curve, cached: bool) -> None:
        print(f"{name}: {len(curve.widths)} widths{', cached' if cached else ''}", file=sys.stderr, flush=True)

    table = build(program, given.target, names, points=given.points, align=given.align, fit=given.fit, on_group=told)
    print(table)
    if given.out:
        given.out.write_text(table.to_json())


if __name__ == "__main__":
    main()
