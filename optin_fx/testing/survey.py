"""What is found out about one program: groups, shares, pins, times, and the oracle's error over random plans."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import optin_fx as ofx
from optin_fx.analysis import Analysis, analyse
from optin_fx.attributes import unique_storages
from optin_fx.costs import cost_model
from optin_fx.dims import leaves
from optin_fx.program import Program

OF_INPUTS_AND_OUTPUTS = ("an input of the model", "an output of the model", "a vocabulary")
"""Reasons for which an axis has the extent that the model's inputs and outputs give it."""


@dataclass
class Survey:
    """Facts about one program.

    Attributes:
        nodes: of the graph.
        params: entries of all parameters and buffers, tied ones once.
        kinds: free groups by kind.
        pins: pinned groups by reason.
        unknown: overloads without a rule, with the number of nodes.
        params_share, flops_share: how much disappears when every free group keeps as few units as it may (one; of experts more).
        inner_share: the same of the FLOPs of all ops but those with a weight whose extent an input or output pins (first and last layers).
        seconds: processor time of the analysis.
        errors: relative error of sliced against masked, one per random plan.
        rounding: the errors that near ties make, of the plans that were compared with the same choices; see `Agreement.rounding`.
        moved: how far the masked outputs are from the dense ones, one per plan; 0 would mean that nothing was tested.
    """

    nodes: int
    params: int
    kinds: dict[str, int] = field(default_factory=dict)
    pins: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    params_share: float = 0.0
    flops_share: float = 0.0
    inner_share: float = 0.0
    seconds: float = 0.0
    errors: list[float] = field(default_factory=list)
    rounding: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """Largest error over the plans."""
        return max(self.errors, default=0.0)

    def facts(self) -> dict[str, Any]:
        """All fields, JSON-able; `Survey(**facts)` is the inverse."""
        return asdict(self)


def survey(program: Program, *, plans: int = 3, keep: float = 0.5, shares: bool = True) -> Survey:
    """Analyse a program and hold the oracle over random plans."""
    nodes = len(program.graph_module.graph.nodes)
    found = Survey(nodes, sum(t.numel() for t in unique_storages(program.tensors.values())))
    start = time.process_time()
    groups = ofx.group(program)
    found.seconds = time.process_time() - start
    found.kinds = dict(Counter(group.kind for group in groups.free).most_common())
    found.pins = dict(Counter((group.pinned or "").split(" at %")[0] for group in groups.pinned).most_common())
    found.unknown = dict(groups.unknown)
    if shares and groups.free:
        least = ofx.make_plan(program, {group.name: range(group.least) for group in groups.free})
        dense, small = ofx.cost(program), ofx.cost(program, least)
        found.params_share = 1 - small.params / max(dense.params, 1)
        found.flops_share = 1 - small.flops / max(dense.flops, 1)
        found.inner_share = inner_share(program)
    for seed in range(plans if groups.free else 0):
        agreement = ofx.verify(program, ofx.random_plan(program, keep=keep, seed=seed))
        found.errors.append(agreement.max_rel)
        found.moved.append(agreement.moved)
        if agreement.rounding is not None:
            found.rounding.append(agreement.rounding)
    return found


def inner_share(program: Program) -> float:
    """Share of FLOPs that goes when every free group keeps as few units as it may, over the ops that inputs and outputs do not pin."""
    analysis, model = analyse(program), cost_model(program)
    dense = model.extents()
    least = dict.fromkeys(dense, 1.0) | {group.name: float(group.least) for group in ofx.group(program).free}
    outer = _outer_nodes(analysis)
    inner = [macs for node, macs in model.by_node.items() if node not in outer]
    before = sum(macs(dense) for macs in inner)
    return 1 - sum(macs(least) for macs in inner) / before if before else 0.0


def _outer_nodes(analysis: Analysis) -> set[str]:
    """Contractions with a weight that has an axis whose extent an input or an output of the model gives."""
    held = {leaf for leaf, why in analysis.pinned_leaves().items() if why.reason in OF_INPUTS_AND_OUTPUTS}
    found = set()
    for name, applied in analysis.applied.items():
        for operand in applied.call.operands:
            axes = analysis.axes[operand.node.name] if operand.node.op == "get_attr" else ()
            if any(leaf in held and leaf.size > 1 for axis in axes for leaf in leaves(axis)):
                found.add(name)
    return found
