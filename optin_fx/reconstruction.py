"""Fold what was removed into what stays: refit every consumer of a pruned group, in closed form, front to back.

The dense and the sliced program run side by side, node by node, over all calibration data. At every contraction that
reads a pruned axis, moments of the sliced program's input against what it should give are summed, the layer's weight and
bias are solved for (`optin_fx.compensation.solve`), and the sliced program goes on with the new ones, so that later layers see,
and correct, what earlier ones could not. One forward of each program in all; activations are kept as long as they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from optin_fx.analysis import Consumer, analyse
from optin_fx.attributes import assign, attribute
from optin_fx.branches import Branch, branch_of, branch_scale
from optin_fx.compensation import Compensation, Refitted, Solution, solve
from optin_fx.data import Batch
from optin_fx.dims import positions
from optin_fx.lockstep import Stream
from optin_fx.masks import token_mask
from optin_fx.moments import Moments, Refit
from optin_fx.plan import Plan, resolve
from optin_fx.program import Program
from optin_fx.refittable import Layer, layer_of
from optin_fx.rewriting import sliced
from optin_fx.rows import chosen_rows
from optin_fx.sensitivity import Sensitivity, sensitivities
from optin_fx.units import unit_of_position

Rows = Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]


def reconstruct(
    program: Program, plan: Plan, batches: Sequence[Batch], options: Compensation | None = None
) -> tuple[fx.GraphModule, list[Refitted]]:
    """The sliced program with refitted consumers, and what was done to each."""
    with torch.no_grad():
        return _Reconstruction(program, plan, batches, options or Compensation()).run()


class _Reconstruction:
    def __init__(self, program: Program, plan: Plan, batches: Sequence[Batch], options: Compensation) -> None:
        self.program, self.options, self.batches = program, options, batches
        self.cut, self.analysis = resolve(program, plan), analyse(program)
        self.small = sliced(program, plan)
        self.due = self._due()
        self.dense = Stream(program.graph_module, program, batches)
        self.sliced = Stream(self.small, program, batches)
        self.masks = [token_mask(program, batch) for batch in batches]
        self.report: list[Refitted] = []
        self.seen = self._sensitivities()

    def run(self) -> tuple[fx.GraphModule, list[Refitted]]:
        partners = {node.name: node for node in self.program.graph_module.graph.nodes}
        ahead = iter(self.program.graph_module.graph.nodes)
        for node in list(self.small.graph.nodes):
            partner = partners.get(node.name)
            if partner is not None:
                for own in ahead:  # the dense program also has what the sliced one lost: removed branches
                    self.dense.execute(own)
                    if own is partner:
                        break
                    self.dense.release(own)
                if node.name in self.due:
                    self._refit(node, partner, self.due[node.name])
                elif self.options.norms and self.report and node.target is torch.ops.aten.batch_norm.default:
                    self._renormalise(node, partner)
            self.sliced.execute(node)
            if partner is not None:
                self.dense.release(partner)
            self.sliced.release(node)
        self.small.graph.lint()
        self.small.recompile()
        return self.small, self.report

    def _due(self) -> dict[str, Consumer]:
        """Contractions with a weight that read a pruned axis."""
        found: dict[str, Consumer] = {}
        for consumer in self.analysis.consumers():
            applied = self.analysis.applied[consumer.node]
            if any(leaf in self.cut.kept for leaf in consumer.leaves) and any(
                o.node.op == "get_attr" and len(o.shape) >= 2 for o in applied.call.operands
            ):
                found.setdefault(consumer.node, consumer)
        return found

    def _sensitivities(self) -> dict[str, Sensitivity]:
        if self.options.rows_by == "uniform" or self.options.level == "none":
            return {}
        features = {}
        for node in self.small.graph.nodes:
            layer = layer_of(node, self.small) if node.name in self.due else ""
            if isinstance(layer, Layer):
                features[node.name] = layer.output_dim(len(self.analysis.axes[node.name]))
        return sensitivities(self.program, self.batches, features)

    def _renormalise(self, node: fx.Node, partner: fx.Node) -> None:
        """Move the statistics of a BatchNorm in eval mode with its input's."""
        read, was = node.args[0], partner.args[0]
        if node.args[5] or not isinstance(read, fx.Node) or not isinstance(was, fx.Node):
            return
        kept = positions(self.analysis.axes[was.name][1], self.cut.units)
        mean, variance = channel_moments(self.sliced.values[read.name])
        old_mean, old_variance = (v if kept is None else v[kept] for v in channel_moments(self.dense.values[was.name]))
        for place, change in (
            (3, lambda v: v + mean - old_mean),
            (4, lambda v: v * (variance / old_variance.clamp_min(1e-12)).clamp(0.1, 10)),
        ):
            at = node.args[place]
            if isinstance(at, fx.Node) and at.op == "get_attr":
                value = attribute(self.small, str(at.target))
                assign(self.small, str(at.target), change(value.double()).to(value))
                self.sliced.execute(at)

    # -- one consumer --------------------------------------------------------------------------------------------

    def _refit(self, node: fx.Node, partner: fx.Node, consumer: Consumer) -> None:
        layer = layer_of(node, self.small)
        if isinstance(layer, str):
            self.report.append(Refitted(node.name, node.name, "none", note=layer))
            return
        if self.options.level == "none":
            return
        weight, bias = layer.matrix()
        inputs, per_group = weight.shape[1], weight.shape[0] // layer.groups
        moments = [(Moments(inputs, per_group), Moments(inputs, per_group)) for _ in range(layer.groups)]
        for i, (x, y, w) in enumerate(self._rows(partner, layer)):
            for g, (fit, held) in enumerate(moments):
                # for a grouped convolution the patches of a group's own channels
                own, target = x[:, g * inputs : (g + 1) * inputs], y[:, g * per_group : (g + 1) * per_group]
                if len(self.batches) == 1:  # split the rows of the only batch
                    cut = int(len(own) * (1 - self.options.held_out))
                    fit.add(own[:cut], target[:cut], None if w is None else w[:cut])
                    held.add(own[cut:], target[cut:], None if w is None else w[cut:])
                else:
                    (held if self.options.is_held_out(i, len(self.batches)) else fit).add(own, target, w)
        units = self._units(consumer, layer)
        solutions = []
        for g, (fit, held) in enumerate(moments):
            block, columns = slice(g * per_group, (g + 1) * per_group), units[g * inputs : (g + 1) * inputs]
            found = solve(fit, held, Refit(weight[block], bias[block]), columns.unique(return_inverse=True)[1], self.options)
            solutions.append(found)
            if found.refit is not None:
                weight[block], bias[block] = found.refit.weight, found.refit.bias
        layer.put(weight, bias)
        for read in node.all_input_nodes:  # the weights were read at the top of the graph: go on with the new ones
            if read.op == "get_attr":
                self.sliced.execute(read)
        self.report.append(_report(node.name, layer.weight_name, solutions))

    def _units(self, consumer: Consumer, layer: Layer) -> torch.Tensor:
        """For every input column the unit of the pruned groups that it belongs to; what belongs to none is a unit of its own."""
        operand = self.analysis.applied[consumer.node].call.operands[consumer.operand]
        axis = self.analysis.axes[operand.node.name][consumer.dim]
        found = torch.zeros(axis.root().size, dtype=torch.long)
        for leaf in (leaf for leaf in self.cut.kept if leaf in consumer.leaves):
            unit = unit_of_position(axis, leaf)
            found = torch.where(unit >= 0, found * (leaf.size + 1) + unit + 1, found)
        found = torch.where(found > 0, found, -1 - torch.arange(len(found)))
        kept = positions(axis, self.cut.units)
        return (found if kept is None else found[kept]).repeat_interleave(layer.repeats)

    def _rows(self, partner: fx.Node, layer: Layer) -> Rows:
        """Per batch: inputs `[rows, inputs]`, what the outputs should be `[rows, outputs]`, and weights of the rows."""
        generator = torch.Generator().manual_seed(0)
        weight = layer.matrix()[0].float()
        dense_input = partner.args[layer.places["input"]]
        assert isinstance(dense_input, fx.Node)
        axes, outputs = self.analysis.axes, self.analysis.axes[partner.name]
        kept_inputs = positions(axes[dense_input.name][layer.input_dim(len(axes[dense_input.name]))], self.cut.units)
        kept_outputs = positions(outputs[layer.output_dim(len(outputs))], self.cut.units)
        branch = self._branch(partner) if self.options.target == "residual" and self.options.mode == "sequential" else None
        scale = None if branch is None else branch_scale(self.program.graph_module, branch)
        seen = self.seen.get(partner.name)
        for i, mask in enumerate(self.masks):
            target = _kept(self.dense.values[partner.name][i], layer.output_dim(len(outputs)), kept_outputs)
            if branch is not None:  # what this branch must add so that the stream is the dense one
                other = self.dense.values[branch.other][i]
                late = _kept(other, layer.output_dim(other.dim()), kept_outputs) - self.sliced.values[branch.other][i]
                if scale is not None:
                    late = late / (scale if kept_outputs is None or scale.numel() == 1 else scale[kept_outputs]).reshape(
                        [-1] + [1] * (-branch.channel - 1)
                    )
                target = target + late
            dense = _kept(
                self.dense.values[dense_input.name][i], layer.input_dim(self.dense.values[dense_input.name][i].dim()), kept_inputs
            )
            read = dense if self.options.mode == "parallel" else self.sliced.values[layer.input.name][i]
            index = chosen_rows(layer.outputs_of(target).shape[0], mask, read, self.options.rows, generator)
            x, y = layer.inputs_of(read, index).float(), layer.outputs_of(target, index).float()
            if self.options.target == "own" and self.options.mode == "sequential":
                y = y + _grouped(x - layer.inputs_of(dense, index).float(), weight, layer.groups)
            yield x, y, None if seen is None else seen.weights(i, self.options.floor)[index]

    def _branch(self, node: fx.Node) -> Branch | None:
        """The branch that a consumer ends, if both programs know the other addend by now."""
        branch = branch_of(node)
        known = branch is not None and branch.other in self.dense.values and branch.other in self.sliced.values
        return branch if known else None


def channel_moments(values: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of every channel over batches `[rows, channels, ...]`, float64."""
    count = sum(v.numel() // v.shape[1] for v in values)
    flat = [v.transpose(0, 1).flatten(1).double() for v in values]
    mean = sum((v.sum(1) for v in flat), torch.zeros(1)) / count
    return mean, sum(((v - mean[:, None]).square().sum(1) for v in flat), torch.zeros(1)) / count


def _kept(value: torch.Tensor, dim: int, index: torch.Tensor | None) -> torch.Tensor:
    return value if index is None else value.index_select(dim, index)


def _grouped(x: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """`x W^T` for block-diagonal W: `[rows, groups x inputs]` to `[rows, outputs]`."""
    blocks = weight.reshape(groups, -1, weight.shape[1])
    return torch.einsum("rgi,goi->rgo", x.reshape(len(x), groups, -1), blocks).reshape(len(x), -1)


def _report(node: str, weight: str, solutions: Sequence[Solution]) -> Refitted:
    variance = max(sum(s.variance for s in solutions), 1e-30)
    before, after = (sum(getattr(s, name) for s in solutions) / variance for name in ("before", "after"))
    notes = "; ".join(dict.fromkeys(s.note for s in solutions if s.note))
    last = solutions[-1]
    return Refitted(node, weight, last.level, last.ratio, before, after, notes)
