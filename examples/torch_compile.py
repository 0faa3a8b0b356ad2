"""Pruned when it is first called: a backend around a backend of `torch.compile`.

python examples/torch_compile.py
"""

from __future__ import annotations

import json

import torch
from classifier import images, model

from optin_fx import Plan
from optin_fx.toolchains import PruneAndCompile


def main(inner: str = "inductor") -> dict[str, float]:
    """Difference from the dense model, and between two processes that share a plan."""
    net, x = model(), images()
    backend = PruneAndCompile(budget="flops <= 50%", inner=inner)
    compiled = torch.compile(net, backend=backend)
    with torch.no_grad():
        pruned = compiled(x)

    # the plan can be kept: the next process prunes in the same way, without scoring
    (plan,) = backend.plans.values()
    again = Plan.from_json(json.dumps(json.loads(plan.to_json())))
    torch.compiler.reset()
    with torch.no_grad():
        repeated = torch.compile(net, backend=PruneAndCompile(plan=again, inner=inner))(x)
        dense = net(x)
    return {"from dense": (pruned - dense).abs().max().item(), "between both": (pruned - repeated).abs().max().item()}


if __name__ == "__main__":
    print(main())
