"""In OpenVINO's own flow: prune the exported program, convert it, quantise it with NNCF. Needs `pip install openvino nncf`.

python examples/openvino_flow.py
"""

from __future__ import annotations

import torch
from classifier import images, model

from optin_fx.toolchains import PruneExported


def main() -> dict[str, float]:
    """How far OpenVINO's float and INT8 models are from the pruned program, as a share of its largest output."""
    import nncf
    import openvino as ov

    x = images()
    pruned = PruneExported(budget="flops <= 50%")(torch.export.export(model(), (x,)))
    converted = ov.convert_model(pruned, input=[("input", list(x.shape))])
    quantised = nncf.quantize(converted, nncf.Dataset([images(seed=seed).numpy() for seed in range(1, 17)]))
    expected = pruned.module()(x).detach()
    gaps = {}
    for name, network in (("float", converted), ("int8", quantised)):
        compiled = ov.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = torch.from_numpy(compiled(x.numpy())[0])
        gaps[name] = ((found - expected).abs().max() / expected.abs().max()).item()
    return gaps


if __name__ == "__main__":
    print(main())
