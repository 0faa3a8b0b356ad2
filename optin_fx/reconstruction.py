"""Fold what was removed into what stays: refit every consumer of a pruned group, in closed form, front to back.

The dense and the sliced program run side by side, node by node, over all calibration data. At every contraction that
reads a pruned axis, moments of the sliced program's input against the dense program's output are summed, the layer's weight and
bias are solved for (`optin_fx.moments.ridge`), and the sliced program goes on with the new ones, so that later layers see,
and correct, what earlier ones could not. One forward of each program in all; activations are kept as long as they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from optin_fx.analysis import analyse
from optin_fx.attributes import attribute
from optin_fx.data import Batch
from optin_fx.dims import positions
from optin_fx.interpreter import flat_inputs
from optin_fx.masks import token_mask
from optin_fx.moments import Moments, Refit, offset_only, ridge
from optin_fx.plan import Plan, resolve
from optin_fx.program import Program
from optin_fx.refittable import Layer, layer_of
from optin_fx.rewriting import sliced

aten = torch.ops.aten


@dataclass(frozen=True)
class Refitted:
    """What became of one consumer.

    Attributes:
        node, weight: the contraction and the name of its weight.
        level: "affine", "bias" or "none": the refit that was best on held-out rows.
        ratio: ridge as a share of the mean input variance, for "affine".
        before, after: held-out error as a share of the output's variance, without and with the refit.
        note: why it was left alone, if it was.
    """

    node: str
    weight: str
    level: str
    ratio: float = 0.0
    before: float = float("nan")
    after: float = float("nan")
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return f"{self.weight}: left alone, {self.note}"
        errors = f"held-out error {self.before:.4f} -> {self.after:.4f} of the output's variance"
        return f"{self.weight}: {self.level}, {errors} (ridge {self.ratio:g})"


@dataclass(frozen=True)
class Options:
    """See `RewriteReconstruct`, whose options these are."""

    level: str = "affine"
    target: str = "residual"
    sequential: bool = True
    ratios: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    held_out: float = 0.25
    rows: int = 4096


def reconstruct(
    program: Program, plan: Plan, batches: Sequence[Batch], options: Options = Options()
) -> tuple[fx.GraphModule, list[Refitted]]:
    """The sliced program with refitted consumers, and what was done to each."""
    with torch.no_grad():
        return _Lockstep(program, plan, batches, options).run()


class _Lockstep:
    def __init__(self, program: Program, plan: Plan, batches: Sequence[Batch], options: Options) -> None:
        self.program, self.options, self.batches = program, options, batches
        self.cut, self.analysis = resolve(program, plan), analyse(program)
        self.small = sliced(program, plan)
        self.dense = program.graph_module
        self.masks = [token_mask(program, batch) for batch in batches]
        self.report: list[Refitted] = []
        self.due = self._due()

    def run(self) -> tuple[fx.GraphModule, list[Refitted]]:
        # a residual target compares the other addend, which both programs read later than this consumer at the latest
        dense = _Stream(self.dense, self.program, self.batches)
        small = _Stream(self.small, self.program, self.batches)
        partners = {node.name: node for node in self.dense.graph.nodes}
        ahead = iter(self.dense.graph.nodes)
        for node in list(self.small.graph.nodes):
            partner = partners.get(node.name)
            if partner is not None:
                for own in ahead:  # the dense program also has what the sliced one lost: removed branches
                    dense.execute(own)
                    if own is partner:
                        break
                    dense.release(own)
            if node.name in self.due:
                self._refit(node, dense, small)
            small.execute(node)
            if partner is not None:
                dense.release(partner)
            small.release(node)
        self.small.graph.lint()
        self.small.recompile()
        return self.small, self.report

    def _due(self) -> dict[str, None]:
        """Contractions with a weight that read a pruned axis."""
        found: dict[str, None] = {}
        for consumer in self.analysis.consumers():
            if any(leaf in self.cut.kept for leaf in consumer.leaves) and consumer.node not in found:
                applied = self.analysis.applied[consumer.node]
                if any(o.node.op == "get_attr" and len(o.shape) >= 2 for o in applied.call.operands):
                    found[consumer.node] = None
        return found

    def _sum_after(self, name: str) -> fx.Node | None:
        """The addition that a consumer's output runs into, through nodes of a single use that change nothing in eval."""
        node = next(n for n in self.dense.graph.nodes if n.name == name)
        while len(node.users) == 1:
            user = next(iter(node.users))
            if user.target in (aten.add.Tensor, aten.add_.Tensor) and len(user.all_input_nodes) == 2 and not user.kwargs:
                return user
            if user.target not in (aten.dropout.default, aten.dropout_.default, aten.contiguous.default, aten.clone.default):
                return None
            node = user
        return None

    # -- one consumer --------------------------------------------------------------------------------------------

    def _refit(self, node: fx.Node, dense: _Stream, small: _Stream) -> None:
        layer = layer_of(node, self.small)
        if isinstance(layer, str):
            self.report.append(Refitted(node.name, node.name, "none", note=layer))
            return
        if self.options.level == "none":
            return
        outputs = self._kept_outputs(node.name, layer)
        prior_weight, prior_bias = layer.matrix()
        groups, per_group = layer.groups, prior_weight.shape[0] // layer.groups
        inputs = prior_weight.shape[1]
        moments = [(Moments(inputs, per_group), Moments(inputs, per_group)) for _ in range(groups)]
        for i, (x, y) in enumerate(self._rows(node, layer, outputs, dense, small)):
            for g in range(groups):
                fold = 1 if _held_out(i, len(self.batches), self.options.held_out) else 0
                rows, targets = x[:, g * inputs : (g + 1) * inputs], y[:, g * per_group : (g + 1) * per_group]
                if len(self.batches) == 1:  # split the rows of the only batch
                    cut = int(len(rows) * (1 - self.options.held_out))
                    moments[g][0].add(rows[:cut], targets[:cut])
                    moments[g][1].add(rows[cut:], targets[cut:])
                else:
                    moments[g][fold].add(rows, targets)
        weight, bias = prior_weight.double().clone(), prior_bias.double().clone()
        best_before = best_after = variance = 0.0
        chosen: tuple[str, float] = ("none", 0.0)
        for g, (fit, held) in enumerate(moments):
            block = slice(g * per_group, (g + 1) * per_group)
            prior, old_bias = weight[block], bias[block]
            level, ratio, before, after = self._choose(fit, held, prior, old_bias)
            variance += held.variance
            best_before, best_after, chosen = best_before + before, best_after + after, (level, ratio)
            if level == "none":
                continue
            whole = fit + held
            solved = offset_only(whole, prior) if level == "bias" else ridge(whole, prior, ratio)
            weight[block], bias[block] = solved.weight, solved.bias
        layer.put(weight, bias)
        for read in node.all_input_nodes:  # the weights were read at the top of the graph: go on with the new ones
            if read.op == "get_attr":
                small.execute(read)
        scale = max(variance, 1e-30)
        self.report.append(Refitted(node.name, layer.weight_name, chosen[0], chosen[1], best_before / scale, best_after / scale))

    def _choose(self, fit: Moments, held: Moments, prior: torch.Tensor, bias: torch.Tensor) -> tuple[str, float, float, float]:
        """The level and ridge with the least held-out error; doing nothing is a candidate."""
        before = held.residual(prior, bias)
        best = ("none", 0.0, before)
        if fit.count < 2 or held.count < 1:
            return "none", 0.0, before, before
        candidates: list[tuple[str, float, Refit]] = [("bias", 0.0, offset_only(fit, prior))]
        if self.options.level == "affine":
            candidates += [("affine", ratio, ridge(fit, prior, ratio)) for ratio in self.options.ratios]
        for level, ratio, solved in candidates:
            error = held.residual(solved.weight, solved.bias)
            if error < best[2]:
                best = (level, ratio, error)
        return best[0], best[1], before, best[2]

    def _kept_outputs(self, name: str, layer: Layer) -> torch.Tensor | None:
        axes = self.analysis.axes[name]
        return positions(axes[layer.output_dim(len(axes))], self.cut.units)

    def _rows(
        self, node: fx.Node, layer: Layer, outputs: torch.Tensor | None, dense: _Stream, small: _Stream
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        add = self._sum_after(node.name) if self.options.target == "residual" and self.options.sequential else None
        other = None
        if add is not None:
            came = self._branch(add, node.name)
            other = next((n.name for n in add.all_input_nodes if n.name != came), None)
            if other is None or other not in small.values or other not in dense.values:
                add = None
        generator = torch.Generator().manual_seed(0)
        for i, mask in enumerate(self.masks):
            target = dense.values[node.name][i]
            if add is not None and other is not None:  # what this branch must add so that the stream is the dense one
                late = dense.values[other][i] - small.values[other][i] if outputs is None else None
                target = target + late if late is not None and late.shape == target.shape else target
            if outputs is not None:
                target = target.index_select(layer.output_dim(target.dim()), outputs)
            if self.options.sequential:
                read = small.values[layer.input.name][i]
            else:
                kept = positions(self.analysis.axes[layer.input.name][layer.input_dim(target.dim())], self.cut.units)
                read = dense.values[layer.input.name][i]
                read = read if kept is None else read.index_select(layer.input_dim(read.dim()), kept)
            x, y = layer.rows(read, target)
            if mask is not None and read.dim() == 3 and mask.shape == read.shape[:2]:
                x, y = x[mask.flatten()], y[mask.flatten()]
            if len(x) > self.options.rows:
                pick = torch.randperm(len(x), generator=generator)[: self.options.rows]
                x, y = x[pick], y[pick]
            yield x.float(), y.float()

    def _branch(self, add: fx.Node, name: str) -> str:
        node = next(n for n in self.dense.graph.nodes if n.name == name)
        while add not in node.users:
            node = next(iter(node.users))
        return node.name


def _held_out(index: int, count: int, share: float) -> bool:
    if count == 1:
        return False
    period = max(2, round(1 / max(share, 1e-6)))
    return index % period == min(period, count) - 1


class _Stream:
    """A graph executed node by node over all batches, values freed after their last use."""

    def __init__(self, module: fx.GraphModule, program: Program, batches: Sequence[Batch]) -> None:
        self.module = module
        self.inputs = [iter(flat_inputs(program, batch)) for batch in batches]
        self.values: dict[str, list[Any]] = {}
        self.left = {node.name: len(node.users) for node in module.graph.nodes}

    def execute(self, node: fx.Node) -> None:
        """Run one node on every batch."""
        if node.op == "placeholder":
            self.values[node.name] = [next(flat) for flat in self.inputs]
        elif node.op == "get_attr":
            value = attribute(self.module, str(node.target))
            self.values[node.name] = [value.detach() if isinstance(value, torch.Tensor) else value] * len(self.inputs)
        elif node.op == "call_function":
            found = []
            for i in range(len(self.inputs)):
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.values[n.name][i])  # noqa: B023  used at once
                found.append(node.target(*args, **kwargs))  # type: ignore[operator]
            self.values[node.name] = found

    def release(self, node: fx.Node) -> None:
        """Free what this node was the last to read."""
        for value in node.all_input_nodes:
            self.left[value.name] = self.left.get(value.name, 1) - 1
            if self.left[value.name] <= 0:
                self.values.pop(value.name, None)
