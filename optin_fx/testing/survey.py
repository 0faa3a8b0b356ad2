"""What is found out about one program: groups, shares, pins, times, and the oracle's error over random plans."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import optin_fx as ofx
from optin_fx.attributes import unique_storages
from optin_fx.program import Program


@dataclass
class Survey:
    """Facts about one program.

    Attributes:
        nodes: of the graph.
        params: entries of all parameters and buffers, tied ones once.
        kinds: free groups by kind.
        pins: pinned groups by reason.
        unknown: overloads without a rule, with the number of nodes.
        params_share, flops_share: how much disappears when every free group keeps one unit.
        seconds: of the analysis.
        errors: relative error of sliced against masked, one per random plan.
        moved: how far the masked outputs are from the dense ones, one per plan; 0 would mean that nothing was tested.
    """

    nodes: int
    params: int
    kinds: Counter[str] = field(default_factory=Counter)
    pins: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, int] = field(default_factory=dict)
    params_share: float = 0.0
    flops_share: float = 0.0
    seconds: float = 0.0
    errors: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)


def survey(program: Program, *, plans: int = 3, keep: float = 0.5, shares: bool = True) -> Survey:
    """Analyse a program and hold the oracle over random plans."""
    start = time.perf_counter()
    groups = ofx.group(program)
    seconds = time.perf_counter() - start
    found = Survey(len(program.graph_module.graph.nodes), sum(t.numel() for t in unique_storages(program.tensors.values())))
    found.seconds = seconds
    found.kinds = Counter(group.kind for group in groups.free)
    found.pins = Counter((group.pinned or "").split(" at ")[0] for group in groups.pinned)
    found.unknown = dict(groups.unknown)
    if shares and groups.free:
        least = ofx.make_plan(program, {group.name: [0] for group in groups.free})
        dense, small = ofx.cost(program), ofx.cost(program, least)
        found.params_share = 1 - small.params / dense.params
        found.flops_share = 1 - small.flops / dense.flops
    for seed in range(plans):
        agreement = ofx.verify(program, ofx.random_plan(program, keep=keep, seed=seed))
        found.errors.append(agreement.max_rel)
        found.moved.append(agreement.moved)
    return found
