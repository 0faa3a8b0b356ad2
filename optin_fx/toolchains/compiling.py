"""A backend for `torch.compile` that prunes what Dynamo captured, then hands it to another backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.registry import lookup_backend
from torch._guards import tracing

from optin_fx.lowering.eager import flat_module
from optin_fx.plan import Plan
from optin_fx.program import Program, trace
from optin_fx.toolchains.captured import Kind, kinds, number_of, over_data_alone, refuse_training
from optin_fx.toolchains.step import PruneStep

Run = Callable[..., Any]


@dataclass(frozen=True)
class PruneAndCompile(PruneStep):
    """`torch.compile(model, backend=PruneAndCompile(budget="flops <= 50%"))`: pruned at the first call, then compiled by `inner`.

    Each graph that Dynamo captures is pruned by itself; a model without graph breaks is one graph. Weights are read when a graph is
    compiled: later changes are not seen, and gradients are refused. For every new size of the inputs the smaller graph is compiled
    again, with the same plan.

    Attributes:
        inner: the backend that compiles the smaller graph, as for `torch.compile`.
        plans: fingerprint of each graph -> its plan, filled as graphs are compiled. Saved as JSON and given as `plan=`, one prunes in
            the same way in the next process, without scoring.
    """

    inner: str | Callable[..., Run] = "inductor"
    plans: dict[str, Plan] = field(default_factory=dict, compare=False)

    def __call__(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Run:
        """Called by torch.compile. The work is done when what comes back is first called, with real inputs."""
        return _PerSize(self, graph_module)

    def prune(self, program: Program) -> Program:
        """The smaller program, by the plan that its graph got before, if it did."""
        known = self.plans.get(program.fingerprint)
        if known is not None:
            return PruneStep(plan=known).smaller(program)[0]
        small, plan = self.smaller(program)
        self.plans[program.fingerprint] = plan
        return small


class _PerSize:
    """What torch.compile calls: it holds one compiled program for each size of the inputs, and for each value of its numbers."""

    def __init__(self, step: PruneAndCompile, graph_module: fx.GraphModule) -> None:
        self.step, self.graph_module, self.kinds = step, graph_module, kinds(graph_module)
        self.compiled: dict[tuple[object, ...], Run] = {}

    def __call__(self, *inputs: Any) -> Any:
        """Run.

        Raises:
            TraceError: the weights want gradients.
            OptinError: see `PruneStep.smaller`.
        """
        refuse_training(inputs)
        data = [value for value, kind in zip(inputs, self.kinds, strict=True) if kind is Kind.DATA]
        numbers = [number_of(value) for value, kind in zip(inputs, self.kinds, strict=True) if kind is Kind.NUMBER]
        key = (*(value.shape for value in data), *numbers)
        if key not in self.compiled:
            self.compiled[key] = self._compile(inputs, data)
        return self.compiled[key](*data)

    def _compile(self, inputs: Sequence[Any], data: Sequence[torch.Tensor]) -> Run:
        # a compilation of its own, which must not see Dynamo's
        with tracing(None), torch.no_grad():
            small = flat_module(self.step.prune(trace(over_data_alone(self.graph_module, self.kinds, inputs), data, dynamic_shapes={})))
            inner = self.step.inner
            backend = lookup_backend(inner) if isinstance(inner, str) else inner
            return backend(small, list(data))
