"""What a program costs, as exact polynomials in the extents of its groups: multiply-accumulates, parameters, bytes.

1 MAC = 2 FLOPs. Counted are the contractions (linear, matmul, convolution, attention), at the sizes of the example
inputs, as torch's own FLOP counter does; element-wise work is not counted. Because a cost is a polynomial, its value for a
plan is exact, and what one more unit costs is a derivative, not a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from optin_fx.analysis import Analysis, analyse
from optin_fx.attributes import storage_key
from optin_fx.errors import BudgetError
from optin_fx.extents import Extents
from optin_fx.groups import groups_of
from optin_fx.liveness import peak_activations
from optin_fx.parts import in_part, module_paths
from optin_fx.plan import Plan
from optin_fx.polynomial import Polynomial, product_of
from optin_fx.program import Program

METRICS = ("flops", "macs", "params", "bytes", "activations", "memory")
"""What can be counted on a plan: of `Cost`'s attributes those that are linear or polynomial, and the peak of live memory."""


class Measure(Protocol):
    """A cost as a function of the groups' extents."""

    def __call__(self, extents: Mapping[str, float]) -> float:
        """The cost at some extents (every prunable group must be given)."""
        ...

    def derivative(self, name: str, extents: Mapping[str, float]) -> float:
        """What one more unit of a group costs there."""
        ...


@dataclass(frozen=True)
class Cost:
    """Costs of a program at its example inputs' sizes.

    Attributes:
        macs: multiply-accumulates of one call. flops: twice that.
        params: number of parameters, ties counted once. bytes: of all parameters and buffers.
    """

    macs: float
    params: float
    bytes: float

    @property
    def flops(self) -> float:
        """Floating-point operations of one call, 2 per multiply-accumulate."""
        return 2 * self.macs

    def __str__(self) -> str:
        return (
            f"{self.flops / 1e9:.3f} GFLOPs ({self.macs / 1e9:.3f} GMACs), {self.params / 1e6:.3f} M parameters, {self.bytes / 1e6:.2f} MB"
        )


@dataclass(frozen=True)
class CostModel:
    """The costs of every plan of a program.

    Attributes:
        macs, params, bytes: polynomials in the extents of the prunable groups.
        by_node: macs of every contraction, by node name. by_tensor: entries of every parameter and buffer, ties once, by name.
        dense: dense extents of the prunable groups.
    """

    macs: Polynomial
    params: Polynomial
    bytes: Polynomial
    by_node: Mapping[str, Polynomial]
    by_tensor: Mapping[str, Polynomial]
    dense: Mapping[str, int]
    analysis: Analysis

    def __post_init__(self) -> None:
        object.__setattr__(self, "_measures", {})

    def extents(self, kept: Mapping[str, object] | Plan | None = None) -> dict[str, float]:
        """Extents of all prunable groups under a plan, or under `{name: units or count}`."""
        found = dict(self.dense)
        for name, units in (kept.kept if isinstance(kept, Plan) else kept or {}).items():
            found[name] = int(units) if isinstance(units, (int, float)) else len(units)  # type: ignore[arg-type]
        return {name: float(extent) for name, extent in found.items()}

    def cost(self, kept: Mapping[str, object] | Plan | None = None) -> Cost:
        """The cost of a plan; without one, of the dense program."""
        extents = self.extents(kept)
        return Cost(self.macs(extents), self.params(extents), self.bytes(extents))

    def measure(self, metric: str, part: str = "") -> Measure:
        """A metric as a function of the extents.

        Args:
            metric: one of `METRICS`.
            part: pattern of the module paths that count (see `parts.in_part`); empty for the whole program.

        Raises:
            BudgetError: no module matches, or the metric has no parts.
        """
        found: dict[tuple[str, str], Measure] = self.__dict__["_measures"]
        if (metric, part) not in found:
            found[metric, part] = self._part(metric, part) if part else self._whole(metric)
        return found[metric, part]

    def _whole(self, metric: str) -> Measure:
        if metric == "flops":
            return self.macs.times(2.0)
        if metric in ("activations", "memory"):
            return peak_activations(self.analysis, self.bytes if metric == "memory" else None)
        return {"macs": self.macs, "params": self.params, "bytes": self.bytes}[metric]

    def _part(self, metric: str, part: str) -> Measure:
        if metric in ("activations", "memory"):
            raise BudgetError(f"{metric} is a peak over the whole program, it has no part {part!r}", fix=f"write {metric} <= ...")
        tensors, paths = self.analysis.program.tensors, module_paths(self.analysis.program)
        total, seen = Polynomial(), False
        if metric in ("flops", "macs"):
            for node, own in self.by_node.items():
                if in_part(paths[node], part):
                    total.add(own, 2.0 if metric == "flops" else 1.0)
                    seen = True
        else:
            for name, own in self.by_tensor.items():
                if in_part(name.rpartition(".")[0], part) and (metric == "bytes" or isinstance(tensors[name], nn.Parameter)):
                    total.add(own, float(tensors[name].element_size()) if metric == "bytes" else 1.0)
                    seen = True
        if not seen:
            known = sorted({path.partition(".")[0] for path in paths.values() if path})
            raise BudgetError(
                f"no module is called {part!r}", at=f"{metric}({part})", fix=f"name a module path, such as {', '.join(known[:5])}"
            )
        return total


def cost(program: Program, plan: Plan | None = None) -> Cost:
    """FLOPs, MACs, parameters and bytes of a program, or of what a plan would make of it."""
    return cost_model(program).cost(plan)


def cost_model(program: Program) -> CostModel:
    """The cost polynomials of a program, made on first use and kept with it."""
    return analyse(program).once(_build)


def _build(analysis: Analysis) -> CostModel:
    extent = Extents(analysis)
    macs, by_node = Polynomial(), {}
    for node, applied in analysis.applied.items():
        if not applied.line.macs:
            continue
        own = Polynomial()
        for product in applied.line.macs:
            own.add(product_of(extent(applied.factors[name]) for name in product if name in applied.factors))
        by_node[node] = own
        macs.add(own)
    params, size, by_tensor = Polynomial(), Polynomial(), {}
    seen: set[object] = set()
    for node in analysis.program.graph_module.graph.nodes:
        tensor = analysis.program.tensors.get(str(node.target)) if node.op == "get_attr" else None
        if tensor is None or storage_key(tensor) in seen:
            continue
        seen.add(storage_key(tensor))
        count = by_tensor[str(node.target)] = product_of(extent(axis) for axis in analysis.axes[node.name])
        size.add(count, float(tensor.element_size()))
        if isinstance(tensor, nn.Parameter):
            params.add(count)
    dense = {g.name: g.extent for g in groups_of(analysis).free}
    return CostModel(macs, params, size, by_node, by_tensor, dense, analysis)
