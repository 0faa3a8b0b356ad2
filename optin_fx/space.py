"""What a search chooses from: how many units each group may keep, what they are worth, and what the budget allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from optin_fx.budget import Bound, Budget, parse_budget
from optin_fx.costs import Measure, cost_model
from optin_fx.errors import BudgetError
from optin_fx.groups import Group, group
from optin_fx.narrowing import narrow
from optin_fx.pipeline import SearchPass, State, as_tuples
from optin_fx.plan import Plan, make_plan
from optin_fx.program import Program
from optin_fx.scores import Scores, check
from optin_fx.steering import Widths, as_widths, bounds_of, names, refuse_strangers, step_of, touches

INSIDE_HEADS = ("qk-dim", "v-dim", "head-dim", "rotary-pair")
"""Kinds that shrink every head of a layer at once. Off by default: engines run odd head widths slowly."""

Counts = dict[str, int]

ALIGNED = 8
"""Widths that engines like: vectors of eight floats on a CPU, tensor cores in half precision. In ONNX Runtime a convolution of 121 channels
takes as long as one of 128."""


@dataclass(frozen=True)
class Space:
    """The choices of a search.

    Attributes:
        program, bound: what is pruned, and its budget.
        groups: the groups that may shrink, by name.
        order: per group its units, best first. gains: their scores in that order, not below zero.
        least, most: fewest and most units to keep. step: widths between them are multiples of this.
        additive: the scores estimate losses, so that they may be added up and compared between groups.
        notes: what a search wants to be known about its result; it ends in the plan's provenance.
    """

    program: Program
    bound: Bound
    groups: Mapping[str, Group]
    order: Mapping[str, torch.Tensor]
    gains: Mapping[str, torch.Tensor]
    least: Mapping[str, int]
    most: Mapping[str, int]
    step: Mapping[str, int]
    additive: bool = True
    notes: dict[str, Any] = field(default_factory=dict)
    prefix: Mapping[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        sums = {name: torch.cat([torch.zeros(1, dtype=torch.float64), gains.cumsum(0)]) for name, gains in self.gains.items()}
        object.__setattr__(self, "prefix", sums)

    def whole(self) -> Counts:
        """Every group as wide as it may be."""
        return dict(self.most)

    def value(self, counts: Mapping[str, int]) -> float:
        """Score kept."""
        return sum(float(self.prefix[name][count]) for name, count in counts.items())

    def round_down(self, name: str, count: int) -> int:
        """The nearest width that may be chosen, from below."""
        step = self.step[name]
        return self.most[name] if count >= self.most[name] else max(self.least[name], count // step * step)

    def choices(self, name: str) -> list[int]:
        """All widths that may be chosen, ascending."""
        least, step, most = self.least[name], self.step[name], self.most[name]
        return sorted({least, most, *range(-(-max(least, 1) // step) * step, most, step)})

    def spend(self, counts: Counts, worth: Mapping[str, torch.Tensor]) -> None:
        """Fill what is left of the budget, in place, step by step in the order of the next units' worth."""
        open_groups = {name for name in self.groups if counts[name] < self.most[name]}
        while open_groups:
            name = max(sorted(open_groups), key=lambda n: float(worth[n][counts[n]]))
            step = min(self.step[name] - counts[name] % self.step[name], self.most[name] - counts[name])
            counts[name] += step
            if not self.bound.holds(counts):
                counts[name] -= step
                open_groups.discard(name)
            elif counts[name] >= self.most[name]:
                open_groups.discard(name)

    def gains_per(self, prices: Mapping[str, float]) -> dict[str, torch.Tensor]:
        """Scores for what they cost."""
        return {name: gains / prices[name] for name, gains in self.gains.items()}

    def settled(self, select_at: Callable[[Mapping[str, float], Counts], Counts], rounds: int) -> Counts:
        """The selection of most score among those at the prices of the selection before, until it repeats.

        Prices change with the widths, as a filter costs what its neighbours are wide. All of it, if the budget allows that.
        """
        best = counts = self.whole()
        if self.bound.holds(counts):
            return counts
        for number in range(rounds):
            found = select_at(self.prices(counts), counts)
            if number == 0 or self.value(found) > self.value(best):
                best = found
            if found == counts:
                break
            counts = found
        return best

    def prices(self, counts: Mapping[str, int]) -> dict[str, float]:
        """What one more unit of each group costs at some counts, as a share of the budget; above zero."""
        extents = self.bound.model.extents(counts)
        return {name: max(self.bound.price(name, extents), 1e-30) for name in self.groups}


@dataclass(frozen=True)
class BudgetedSearch(SearchPass):
    """Base of the searches: subclasses define `choose(space) -> counts`; the best units of each group stay.

    Attributes:
        budget: see `optin_fx.budget`.
        kinds: kinds of units to prune; empty means all but those inside heads (qk-dim, v-dim, head-dim, rotary-pair).
        freeze: patterns (fnmatch) of what to leave whole: names of groups, modules or parameters, `encoder.layer.3`, `*.attention.*`.
        widths: least and most units of the groups that a pattern names, by group or by module: `{"*.mlp.*": (64, 256)}`; None is no bound.
        min_keep: least share of every group's units to keep (at least one unit; at 0, whole residual branches may go).
        min_width: least number of units to keep in every group.
        align: widths are multiples of this; 1 is free choice; 0 is free choice, too, unless the budget limits a latency: then it is 8, as
            engines compute so many channels at once. Groups of less than 2 x align units, and counts of heads, are free.
        narrowed: the budget counts what the smaller program costs after `narrow-rows`, which must come after the rewrite; shares are of
            the program as it is.
    """

    budget: str | Budget = "flops <= 50%"
    kinds: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    widths: Widths = ()
    min_keep: float = 0.05
    min_width: int = 0
    align: int = 0
    narrowed: bool = False

    abstract: ClassVar[bool] = True

    def __post_init__(self) -> None:
        parse_budget(self.budget)  # refused before anything is scored
        as_tuples(self, "kinds", "freeze")
        object.__setattr__(self, "widths", as_widths(self.widths))

    def choose(self, space: Space) -> Counts:
        """How many units each group keeps."""
        raise TypeError(f"{type(self).__name__} does not say how it chooses: define choose()")

    def apply(self, state: State) -> State:
        """Search a plan for the program, scores and measured latencies of a state."""
        assert state.scores is not None
        return replace(state, plan=self.plan(self.space(state.program, state.scores, state.latencies), state.scores))

    def search(self, program: Program, scores: Scores) -> Plan:
        """See the class."""
        return self.plan(self.space(program, scores), scores)

    def plan(self, space: Space, scores: Scores) -> Plan:
        """The checked plan of a space."""
        counts = self.choose(space)
        kept = {name: space.order[name][:count].tolist() for name, count in counts.items()}
        cost = space.bound.model.cost(kept)
        plan = make_plan(
            space.program,
            kept,
            predicted={"flops": cost.flops, "params": cost.params, "bytes": cost.bytes},
            provenance={
                "search": str(self),
                "score": scores.method,
                "budget": str(space.bound.budget),
                **({"narrowed": True} if self.narrowed else {}),
                **space.notes,
            },
        )
        space.bound.check(plan)
        return plan

    def space(self, program: Program, scores: Scores, latencies: Mapping[str, Measure] | None = None) -> Space:
        """What may be chosen.

        Raises:
            BudgetError: nothing may be pruned, or the budget cannot be met.
        """
        groups = group(program)
        check(scores, groups)
        refuse_strangers(groups.free, self.freeze, touches)
        chosen = {g.name: g for g in groups.free if self.may_prune(g)}
        if not chosen:
            raise BudgetError("no group may be pruned", so="no budget below 100% can be met", fix="allow more kinds, or freeze less")
        refuse_strangers(chosen.values(), (pattern for pattern, *_ in self.widths), names)
        counted = cost_model(narrow(program)) if self.narrowed else None
        bound = parse_budget(self.budget).bind(cost_model(program), latencies, counted)
        align = self.align or (ALIGNED if bound.budget.targets else 1)
        step = {name: step_of(g, align) for name, g in chosen.items()}
        most = {name: bounds_of(g, self.widths, step[name])[1] for name, g in chosen.items()}
        least = self.least(chosen, step, self.min_keep)
        bound.refuse_unreachable(least)
        order = {name: torch.argsort(scores[name], descending=True, stable=True) for name in chosen}
        gains = {name: scores[name][units].double().clamp_min(0) for name, units in order.items()}
        return Space(program, bound, chosen, order, gains, least, most, step, scores.additive)

    def least(self, groups: Mapping[str, Group], step: Mapping[str, int], share: float) -> Counts:
        """Fewest units of each group, as a share of its extent and by the options."""
        found = {}
        for name, g in groups.items():
            asked, most = bounds_of(g, self.widths, step[name])
            none = g.removable and share == 0 and asked == 1
            floor = max(0 if none else asked, round(share * g.extent), min(self.min_width, g.extent))
            found[name] = min(most, -(-floor // step[name]) * step[name])
        return found

    def may_prune(self, g: Group) -> bool:
        """Whether the options let a group be pruned."""
        if any(touches(pattern, g) for pattern in self.freeze):
            return False
        return g.kind in self.kinds if self.kinds else g.kind not in INSIDE_HEADS
