"""One layer refitted: moments of what it reads against what it should give, batch by batch, then the solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from optin_fx.analysis import Consumer
from optin_fx.branches import Branch, branch_of, branch_scale
from optin_fx.compensation import Compensation, Refitted, Solution, solve
from optin_fx.data import Batch
from optin_fx.dims import positions
from optin_fx.lockstep import Lockstep
from optin_fx.moments import Moments, Refit
from optin_fx.plan import Cut
from optin_fx.refittable import Addmm, Layer
from optin_fx.rows import chosen_rows
from optin_fx.sensitivity import Sensitivity
from optin_fx.units import unit_of_position


@dataclass(frozen=True)
class Setting:
    """What all refits of one reconstruction have in common.

    Attributes:
        both: the dense and the sliced program. cut: what stays.
        batches: calibration data.
        masks: per batch `[batch, tokens]`, true where there is no padding; None where the model takes no such mask.
        seen: where the output notices errors, by node; empty if all rows count alike.
    """

    both: Lockstep
    cut: Cut
    options: Compensation
    batches: Sequence[Batch]
    masks: Sequence[torch.Tensor | None]
    seen: dict[str, Sensitivity]

    def shares(self, number: int, length: int) -> list[tuple[bool, slice]]:
        """Of a batch's rows (or samples), those that fit and those that are held out: (held out, which). An only batch is split."""
        count = len(self.batches)
        if count > 1:
            return [(self.options.is_held_out(number, count), slice(None))]
        cut = int(length * (1 - self.options.held_out))
        return [(False, slice(cut)), (True, slice(cut, None))]


class Refitting:
    """Of one layer, or of several that read the same value (queries, keys and values); see the module's text.

    Args:
        aims: the layer first in the graph comes first.
    """

    def __init__(self, setting: Setting, aims: Sequence[Aim]) -> None:
        self.setting, self.aims = setting, aims
        self.layer, self.inputs = aims[0].layer, aims[0].inputs
        outputs, groups = sum(aim.per_group for aim in aims), self.layer.groups
        self.moments = [(Moments(self.inputs, outputs), Moments(self.inputs, outputs)) for _ in range(groups)]
        self.generator = torch.Generator().manual_seed(0)

    @property
    def bytes(self) -> int:
        """Memory of the moments."""
        return sum(8 * (one.xx.numel() + one.xy.numel()) for both in self.moments for one in both)

    def see(self, number: int) -> None:
        """Take the values of a batch in."""
        x, y, w = self._rows(number)
        shares = self.setting.shares(number, len(x))
        per_group = y.shape[1] // self.layer.groups
        for g, (fit, held) in enumerate(self.moments):
            # for a grouped convolution the patches of a group's own channels
            own, target = x[:, g * self.inputs : (g + 1) * self.inputs], y[:, g * per_group : (g + 1) * per_group]
            for held_out, part in shares:
                (held if held_out else fit).add(own[part], target[part], None if w is None else w[part])

    def finish(self) -> list[Refitted]:
        """Solve, and write the new weights and biases."""
        found, begin = [], 0
        for aim in self.aims:
            outputs = slice(begin, begin + aim.per_group)
            found.append(aim.solved([(fit.of_outputs(outputs), held.of_outputs(outputs)) for fit, held in self.moments]))
            begin += aim.per_group
        return found

    def _rows(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Inputs `[rows, inputs]`, what the outputs should be `[rows, outputs]`, and weights of the rows."""
        options, layer, both, first = self.setting.options, self.layer, self.setting.both, self.aims[0]
        targets = [aim.target() for aim in self.aims]
        read = first.dense_value() if options.mode == "parallel" else both.sliced.value(layer.input)
        index = chosen_rows(layer.outputs_of(targets[0]).shape[0], self.setting.masks[number], read, options.rows, self.generator)
        x, ys = layer.inputs_of(read, index).float(), [layer.outputs_of(target, index).float() for target in targets]
        if options.target == "own" and options.mode == "sequential":
            late = x - layer.inputs_of(first.dense_value(), index).float()
            ys = [y + _grouped(late, aim.weight.float(), layer.groups) for y, aim in zip(ys, self.aims, strict=True)]
        seen = self.setting.seen.get(first.partner.name)
        return x, ys[0] if len(ys) == 1 else torch.cat(ys, 1), None if seen is None else seen.weights(number, options.floor)[index]


class Aim:
    """What one layer should give.

    Args:
        partner: the layer in the dense program.
        consumer: the pruned axis that the layer reads; None if its input has changed, but lost nothing.
    """

    def __init__(self, setting: Setting, partner: fx.Node, consumer: Consumer | None, layer: Layer) -> None:
        self.setting, self.partner, self.consumer, self.layer = setting, partner, consumer, layer
        self.weight, self.bias = layer.matrix()
        self.inputs, self.per_group = self.weight.shape[1], self.weight.shape[0] // layer.groups
        dense_input = partner.args[layer.places["input"]]
        assert isinstance(dense_input, fx.Node)
        self.dense_input = dense_input
        axes, cut = setting.cut.analysis.axes, setting.cut
        reads, gives = axes[dense_input.name], axes[partner.name]
        self.kept_inputs = positions(reads[layer.input_dim(len(reads))], cut.units)
        self.kept_outputs = positions(gives[layer.output_dim(len(gives))], cut.units)

    def reads_with(self, other: Aim) -> bool:
        """Whether the moments of another layer's input are this one's, too, and its aim is known by now."""
        same = self.layer.input is other.layer.input and self.dense_input is other.dense_input and _is_plain(self.layer, other.layer)
        # where rows are weighed, each layer has its own weights; what a branch is to give depends on its other addend, known late
        return same and not self.setting.seen and self._branch() is None and other._branch() is None

    def target(self) -> torch.Tensor:
        """What the layer is to give for the batch at hand."""
        layer, both, kept = self.layer, self.setting.both, self.kept_outputs
        value = both.dense.now(self.partner)
        target = _kept(value, layer.output_dim(value.dim()), kept)
        branch = self._branch()
        if branch is None or not all(branch.other in stream.values for stream in (both.dense, both.sliced)):
            return target
        # what this branch must add so that the stream is the dense one, if both programs know the other addend by now
        other = both.dense.values[branch.other]
        late = _kept(other, layer.output_dim(other.dim()), kept) - both.sliced.values[branch.other]
        scale = branch_scale(both.dense.module, branch)
        if scale is not None:
            late = late / (scale if kept is None or scale.numel() == 1 else scale[kept]).reshape([-1] + [1] * (-branch.channel - 1))
        return target + late

    def dense_value(self) -> torch.Tensor:
        """What the layer would read in the dense program, of the units that stay."""
        value = self.setting.both.dense.value(self.dense_input)
        return _kept(value, self.layer.input_dim(value.dim()), self.kept_inputs)

    def solved(self, moments: Sequence[tuple[Moments, Moments]]) -> Refitted:
        """Solve from the moments of each group, (to fit, held out), and write the new weight and bias."""
        weight, bias, units = self.weight, self.bias, self._units()
        solutions = []
        for g, (fit, held) in enumerate(moments):
            block, columns = slice(g * self.per_group, (g + 1) * self.per_group), units[g * self.inputs : (g + 1) * self.inputs]
            numbered = columns.unique(return_inverse=True)[1]
            found = solve(fit, held, Refit(weight[block], bias[block]), numbered, self.setting.options)
            solutions.append(found)
            if found.refit is not None:
                weight[block], bias[block] = found.refit.weight, found.refit.bias
        self.layer.put(weight, bias)
        return _report(self.partner.name, self.layer.weight_name, solutions)

    def _branch(self) -> Branch | None:
        """The branch that the layer ends, if the stream is to be corrected."""
        options = self.setting.options
        return branch_of(self.partner) if options.target == "residual" and options.mode == "sequential" else None

    def _units(self) -> torch.Tensor:
        """For every input column the unit of the pruned groups that it belongs to; what belongs to none is a unit of its own."""
        cut, consumer = self.setting.cut, self.consumer
        if consumer is None:
            return torch.arange(self.inputs * self.layer.groups)
        operand = cut.analysis.applied[consumer.node].call.operands[consumer.operand]
        axis = cut.analysis.axes[operand.node.name][consumer.dim]
        found = torch.zeros(axis.root().size, dtype=torch.long)
        for leaf in (leaf for leaf in cut.kept if leaf in consumer.leaves):
            unit = unit_of_position(axis, leaf)
            found = torch.where(unit >= 0, found * (leaf.size + 1) + unit + 1, found)
        found = torch.where(found > 0, found, -1 - torch.arange(len(found)))
        kept = positions(axis, cut.units)
        return (found if kept is None else found[kept]).repeat_interleave(self.layer.repeats)


def _is_plain(*layers: Layer) -> bool:
    return all(type(layer) in (Layer, Addmm) for layer in layers)


def _kept(value: torch.Tensor, dim: int, index: torch.Tensor | None) -> torch.Tensor:
    if index is None:
        return value
    if dim % value.dim() < value.dim() - 1:
        return value.index_select(dim, index)
    # along the last of two dims PyTorch selects eight times as fast as along the last of three
    return value.reshape(-1, value.shape[-1]).index_select(1, index).reshape(*value.shape[:-1], len(index))


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
