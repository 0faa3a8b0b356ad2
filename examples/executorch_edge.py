"""In front of ExecuTorch: prune the exported program, then `to_edge` as ever. Needs `pip install executorch`.

python examples/executorch_edge.py
"""

from __future__ import annotations

import torch
from classifier import images, model

from optin_fx.toolchains import PruneExported


def main() -> dict[str, float]:
    """Bytes of both `.pte` programs, and how far the pruned one is from its exported program when ExecuTorch runs it."""
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

    x = images(1)
    dense = torch.export.export(model(), (x,))
    pruned = PruneExported(budget="flops <= 50%")(dense)
    files = {name: to_edge(exported).to_executorch().buffer for name, exported in (("dense", dense), ("pruned", pruned))}
    method = Runtime.get().load_program(files["pruned"]).load_method("forward")
    gap = (method.execute([x])[0] - pruned.module()(x)).abs().max().item()
    return {"dense bytes": len(files["dense"]), "pruned bytes": len(files["pruned"]), "gap": gap}


if __name__ == "__main__":
    print(main())
