"""Half of the FLOPs, then 8 bits: prune, quantise with PT2E, run in ONNX Runtime. Needs `pip install 'optin-fx[quantise]'`.

python examples/quantise_after_pruning.py
"""

from __future__ import annotations

from classifier import images, model

import optin_fx as ofx
from optin_fx.lowering.closeness import closeness
from optin_fx.toolchains import quantise


def main() -> dict[str, float]:
    """Bytes of weights of the three ONNX models, and how far INT8 in ONNX Runtime is from the pruned program."""
    dense = ofx.trace(model(), (images(),))
    data = [images(16, seed) for seed in range(4)]
    pruned = ofx.prune(dense, data=data, budget="flops <= 50%", align=8).program
    quantised = quantise(pruned, data)
    # a rounding that falls the other way changes the last of 8 bits
    engines = {name: ofx.lower(program, "onnxruntime:cpu", tolerance=0.02) for name, program in
               (("dense", dense), ("pruned", pruned), ("int8", quantised))}  # fmt: skip
    x = images(32, seed=9)
    gaps = {
        "int8 from its program": closeness([engines["int8"](x)], [quantised(x)]).max_rel,
        "int8 from pruned": closeness([engines["int8"](x)], [pruned(x)]).max_rel,
    }
    return {f"{name} bytes": engine.info()["weight_bytes"] for name, engine in engines.items()} | gaps


if __name__ == "__main__":
    print(main())
