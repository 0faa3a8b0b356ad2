"""In front of Torch-TensorRT: prune the exported program, then `torch_tensorrt.dynamo.compile`.

Needs a GPU and `pip install torch-tensorrt`.

python examples/torch_tensorrt_flow.py
"""

from __future__ import annotations

import torch
from classifier import images, model

from optin_fx.toolchains import PruneExported


def main() -> dict[str, float]:
    """How far the engine is from the pruned program, as a share of its largest output."""
    import torch_tensorrt

    x = images().cuda()
    pruned = PruneExported(budget="flops <= 50%", search_options={"align": 8})(torch.export.export(model().cuda(), (x,)))
    compiled = torch_tensorrt.dynamo.compile(pruned, inputs=[x])
    expected = pruned.module()(x).detach()
    return {"gap": ((compiled(x) - expected).abs().max() / expected.abs().max()).item()}


if __name__ == "__main__":
    print(main())
