"""A pass of ours between passes of others: `PruneGraph` in torch's own pass manager.

python examples/graph_pass.py
"""

from __future__ import annotations

import torch
from classifier import images, model
from torch import fx
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager

from optin_fx.toolchains import PruneGraph


def relu_to_relu6(graph_module: fx.GraphModule) -> PassResult:
    """Somebody else's pass."""
    found = graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    for node in found:
        node.target = torch.ops.aten.relu6.default
    graph_module.recompile()
    return PassResult(graph_module, bool(found))


def main() -> dict[str, int]:
    """Parameters before and after."""
    graph_module = torch.export.export(model(), (images(),)).module()
    result = PassManager(passes=[PruneGraph(budget="flops <= 50%"), relu_to_relu6])(graph_module)
    assert result.graph_module(images()).shape == (4, 10)
    return {"before": parameters(graph_module), "after": parameters(result.graph_module)}


def parameters(module: torch.nn.Module) -> int:
    """How many numbers the module has learnt."""
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    print(main())
