"""`GraphModule` in, `PassResult` out: a pass for torch's and other people's pass managers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassResult

from optin_fx.errors import TraceError
from optin_fx.program import trace
from optin_fx.toolchains.step import PruneStep


@dataclass(frozen=True)
class PruneGraph(PruneStep):
    """A pass over graph modules that hold their weights, as the `module()` of an exported program and `make_fx` do.

        PassManager(passes=[PruneGraph(budget="flops <= 50%", inputs=(x,)), ...])(graph_module)

    The graph module is traced to ATen ops for it; what comes back is called as it was.

    Attributes:
        inputs: example inputs. By default made from the shapes and dtypes that tracing left at the placeholders.
    """

    inputs: Sequence[Any] | None = None

    def __call__(self, graph_module: fx.GraphModule) -> PassResult:
        """The smaller graph module, and whether anything shrank.

        Raises:
            TraceError: there are no example inputs, or torch.export refuses the module.
            OptinError: see `PruneStep.smaller`.
        """
        inputs = tuple(self.inputs) if self.inputs is not None else example_inputs(graph_module)
        small, plan = self.smaller(trace(graph_module, inputs))
        module = small.module()
        assert isinstance(module, fx.GraphModule)
        return PassResult(module, bool(plan.kept))


def example_inputs(graph_module: fx.GraphModule) -> tuple[torch.Tensor, ...]:
    """Ones of the shapes and dtypes that the placeholders carry; a symbolic size counts as the one that it was traced with."""
    found = []
    for node in graph_module.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val", node.meta.get("example_value"))
        if not isinstance(value, torch.Tensor):
            raise TraceError(
                f"the graph does not say what its input {node.target} is",
                so="it cannot be traced",
                fix="give PruneGraph example inputs: PruneGraph(inputs=(...))",
            )
        shape = [int(size.node.hint) if isinstance(size, torch.SymInt) else size for size in value.shape]
        found.append(torch.ones(shape, dtype=value.dtype))
    return tuple(found)
