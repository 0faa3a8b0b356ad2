"""K-prune (Park et al., ICLR 2024): knowledge-based pruning, one sublayer at a time from the bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

import optin_fx as ofx
from optin_fx.budget import parse_budget
from optin_fx.costs import cost_model
from optin_fx.data import Batch
from optin_fx.gradients import gate_gradients
from optin_fx.groups import group
from optin_fx.interpreter import Runner
from optin_fx.outputs import output_terms
from optin_fx.passes import RewriteReconstruct
from optin_fx.pipeline import Pass, State
from optin_fx.plan import make_plan
from optin_fx.statistics import collect

KINDS = ("head", "kv-group", "neuron")


@dataclass(frozen=True)
class KPrune(Pass):
    """For each sublayer, bottom up: score all that is not cut yet, find the global threshold, cut this sublayer only, refit it, go on.

    The score of a unit is `(rep * E[x^2] |W_:j|^2 / outputs + pred * E[g^2] / 2) / FLOPs`, with g the gate gradient of `T^2 KL` to the
    dense outputs; in the first sublayer it is zero, as the paper's code has it. The refit maps the pruned program's inputs to the dense
    residual stream. Differs from the code in what favours it: per-sample instead of per-batch gradients, a bias is fitted
    too, and a tiny ridge stands in for none at all. Cost: one forward and backward pass, and one refit of all that lies below, for every
    sublayer.

    Attributes:
        budget: see `optin_fx.budget`.
        temperature, rep, pred: T and the weights of the two terms (defaults of the authors' script).
    """

    budget: str = "flops <= 50%"
    temperature: float = 2.0
    rep: float = 2.5e-4
    pred: float = 1.0

    reads: ClassVar[tuple[str, ...]] = ("program", "data")
    writes: ClassVar[tuple[str, ...]] = ("plan", "small")

    def apply(self, state: State) -> State:
        """Cut and refit sublayer after sublayer."""
        program, batches = state.program, list(state.data or ())
        bound = parse_budget(self.budget).bind(cost_model(program))
        prices = {g.name: bound.price(g.name, bound.model.extents()) for g in group(program).free}
        waiting = [g for g in group(program).free if g.kind in KINDS]
        refit, decided, small = RewriteReconstruct(layers="consumers", ratios=(1e-6,)), dict[str, list[int]](), program
        teacher = [_outputs(program, batch) for batch in batches]
        while waiting:
            scores = self._scores(small, batches, teacher)
            worth = {g.name: scores[g.name] / prices[g.name] for g in waiting}
            level = _threshold(worth, lambda counts: bound.holds({**decided, **counts}))
            first, *waiting = waiting
            keep = (worth[first.name] > level).nonzero().flatten().tolist()
            decided[first.name] = keep or [int(worth[first.name].argmax())]
            plan = make_plan(program, decided, provenance={"search": str(self), "budget": self.budget})
            after = refit.apply(replace(state, plan=plan))
            assert after.small is not None
            small = after.small
        bound.check(plan)
        return replace(state, plan=plan, small=small)

    def _scores(self, small: ofx.Program, batches: Sequence[Batch], teacher: Sequence[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        terms, dense = output_terms(small), {id(batch): outputs for batch, outputs in zip(batches, teacher, strict=True)}

        def objective(
            runner: Runner, outputs: list[torch.Tensor], batch: Batch, generator: torch.Generator
        ) -> Iterable[tuple[str, torch.Tensor]]:
            t, wanted = self.temperature, dense[id(batch)]
            yield "kl", t**2 * torch.stack([term.divergence(outputs[term.index] / t, wanted[term.index] / t) for term in terms]).sum()

        squared = gate_gradients(small, batches, objective)["kl"].squared
        width = {
            node.name: node.meta["val"].shape[-1]
            for node in small.graph_module.graph.nodes
            if isinstance(node.meta.get("val"), torch.Tensor) and node.meta["val"].dim()
        }
        energy = collect(small, batches).per_unit(lambda moments: moments.square * moments.weight / width[moments.consumer.node])
        return {name: self.rep * energy[name] + self.pred * squared[name] / 2 for name in energy}


def _outputs(program: ofx.Program, batch: Batch) -> list[torch.Tensor]:
    with torch.no_grad():
        return Runner(program)(batch)


def _threshold(worth: Mapping[str, torch.Tensor], holds: Callable[[dict[str, int]], bool]) -> float:
    """The lowest level such that the units above it meet the budget, at least one in each group."""
    levels = torch.cat([torch.tensor([-1.0]).double(), *worth.values()]).unique()

    def counts(level: float) -> dict[str, int]:
        return {name: max(1, int((values > level).sum())) for name, values in worth.items()}

    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(counts(float(levels[middle]))) else (middle + 1, high)
    return float(levels[low])
