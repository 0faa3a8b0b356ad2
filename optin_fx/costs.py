"""What a program costs, as exact polynomials in the extents of its groups: multiply-accumulates, parameters, bytes.

1 MAC = 2 FLOPs. Counted are the contractions (linear, matmul, convolution, attention), at the sizes of the example
inputs, as torch's own FLOP counter does; element-wise work is not counted. Because a cost is a polynomial, its value for a
plan is exact, and what one more unit costs is a derivative, not a constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from optin_fx.analysis import Analysis, analyse
from optin_fx.attributes import storage_key
from optin_fx.dims import Axis, fold
from optin_fx.groups import groups_of, leaf_names
from optin_fx.plan import Plan
from optin_fx.program import Program

Monomials = dict[tuple[str, ...], float]


class Polynomial:
    """A polynomial in group extents; a monomial is a sorted tuple of group names, repeated for powers."""

    def __init__(self, monomials: Mapping[tuple[str, ...], float] | None = None) -> None:
        self.monomials: Monomials = dict(monomials or {})
        self._index: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        self._index_size = 0

    def __add__(self, other: Polynomial) -> Polynomial:
        result = Polynomial(self.monomials)
        result.add(other)
        return result

    def add(self, other: Polynomial, times: float = 1.0) -> None:
        """Add another polynomial in place."""
        for names, value in other.monomials.items():
            self.monomials[names] = self.monomials.get(names, 0.0) + value * times

    def __mul__(self, other: Polynomial) -> Polynomial:
        result: Monomials = {}
        for left, a in self.monomials.items():
            for right, b in other.monomials.items():
                names = tuple(sorted(left + right)) if left and right else left or right
                result[names] = result.get(names, 0.0) + a * b
        return Polynomial(result)

    def __call__(self, extents: Mapping[str, float]) -> float:
        """The value at some extents (every group must be given)."""
        total = 0.0
        for names, value in self.monomials.items():
            for name in names:
                value *= extents[name]
            total += value
        return total

    def derivative(self, name: str, extents: Mapping[str, float]) -> float:
        """How much one more unit of a group costs at some extents."""
        total = 0.0
        for names, value in self._by_name().get(name, ()):
            power = names.count(name)
            skipped = False
            for other in names:
                if other == name and not skipped:
                    skipped = True
                else:
                    value *= extents[other]
            total += value * power
        return total

    def _by_name(self) -> dict[str, list[tuple[tuple[str, ...], float]]]:
        if self._index_size != len(self.monomials):
            self._index = {}
            for names, value in self.monomials.items():
                for name in dict.fromkeys(names):
                    self._index.setdefault(name, []).append((names, value))
            self._index_size = len(self.monomials)
        return self._index


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
        by_node: macs of every contraction, by node name, for budgets on a part and for reports.
        dense: dense extents of the prunable groups.
    """

    macs: Polynomial
    params: Polynomial
    bytes: Polynomial
    by_node: Mapping[str, Polynomial]
    dense: Mapping[str, int]

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


def cost(program: Program, plan: Plan | None = None) -> Cost:
    """FLOPs, MACs, parameters and bytes of a program, or of what a plan would make of it."""
    return cost_model(program).cost(plan)


def cost_model(program: Program) -> CostModel:
    """The cost polynomials of a program, made on first use and kept with it."""
    analysis = analyse(program)
    found = analysis.__dict__.get("_cost_model")
    if found is None:
        found = analysis.__dict__["_cost_model"] = _build(analysis)
    return found


def _build(analysis: Analysis) -> CostModel:
    names = leaf_names(analysis)
    free = {g.name: g.extent for g in groups_of(analysis).free}
    made: dict[Axis, Polynomial] = {}

    def extent(axis: Axis) -> Polynomial:
        root = axis.root()
        if root not in made:
            made[root] = fold(root, leaf, _times, _plus)
        return made[root]

    def leaf(axis: Axis) -> Polynomial:
        name = names.get(axis)
        return Polynomial({(name,): 1.0}) if name in free else Polynomial({(): float(axis.hint)})

    macs, by_node = Polynomial(), {}
    for node, applied in analysis.applied.items():
        if not applied.line.macs:
            continue
        own = Polynomial()
        for product in applied.line.macs:
            factors = [extent(applied.factors[name]) for name in product if name in applied.factors]
            own.add(_times(factors))
        by_node[node] = own
        macs.add(own)
    params, size = Polynomial(), Polynomial()
    from torch import nn

    seen: set[object] = set()
    for node in analysis.program.graph_module.graph.nodes:
        tensor = analysis.program.tensors.get(str(node.target)) if node.op == "get_attr" else None
        if tensor is None or storage_key(tensor) in seen:
            continue
        seen.add(storage_key(tensor))
        count = _times([extent(axis) for axis in analysis.axes[node.name]])
        size.add(count, float(tensor.element_size()))
        if isinstance(tensor, nn.Parameter):
            params.add(count)
    return CostModel(macs, params, size, by_node, free)


def _times(factors: Iterable[Polynomial]) -> Polynomial:
    result = Polynomial({(): 1.0})
    for factor in factors:
        result = result * factor
    return result


def _plus(terms: Iterable[Polynomial]) -> Polynomial:
    result = Polynomial()
    for term in terms:
        result.add(term)
    return result
