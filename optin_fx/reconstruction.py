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
import torch.nn.functional as F
from torch import fx, nn

from optin_fx.analysis import analyse
from optin_fx.attributes import assign, attribute, storage_key
from optin_fx.data import Batch
from optin_fx.dims import positions
from optin_fx.interpreter import flat_inputs
from optin_fx.masks import token_mask
from optin_fx.moments import Moments, Refit, offset_only, ridge
from optin_fx.plan import Plan, resolve
from optin_fx.program import Program
from optin_fx.rewriting import sliced

aten = torch.ops.aten

LINEAR = (aten.linear.default,)
ADDMM = (aten.addmm.default,)
CONV = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)


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
        return f"{self.weight}: {self.level}, held-out error {self.before:.4f} -> {self.after:.4f} of the output's variance (ridge {self.ratio:g})"


@dataclass(frozen=True)
class Options:
    """See `RewriteReconstruct`, whose options these are."""

    level: str = "affine"
    target: str = "residual"
    sequential: bool = True
    ratios: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    held_out: float = 0.25
    rows: int = 4096


def reconstruct(program: Program, plan: Plan, batches: Sequence[Batch], options: Options = Options()) -> tuple[fx.GraphModule, list[Refitted]]:
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
        for node in list(self.small.graph.nodes):
            partner = partners.pop(node.name, None)
            if partner is not None:
                dense.execute(partner)
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
            if any(leaf in self.cut.kept for leaf in consumer.leaves) and str(consumer.node) not in found:
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
        layer = _layer_of(node, self.small)
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

    def _kept_outputs(self, name: str, layer: _Layer) -> torch.Tensor | None:
        axes = self.analysis.axes[name]
        return positions(axes[layer.output_dim(len(axes))], self.cut.units)

    def _rows(
        self, node: fx.Node, layer: _Layer, outputs: torch.Tensor | None, dense: _Stream, small: _Stream
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


# -- layers --------------------------------------------------------------------------------------------------------------


class _Layer:
    """A contraction with a weight of its own: its weight as a matrix, its input as rows."""

    def __init__(self, node: fx.Node, module: fx.GraphModule, places: dict[str, int]) -> None:
        self.node, self.module = node, module
        self.input: fx.Node = node.args[places["input"]]  # type: ignore[assignment]
        weight = node.args[places["weight"]]
        assert isinstance(weight, fx.Node)
        self.weight_name = str(weight.target)
        self.places = places
        at = places["bias"]
        bias = node.args[at] if at < len(node.args) else None
        self.bias_name = str(bias.target) if isinstance(bias, fx.Node) else None
        self.weight: torch.Tensor = attribute(module, self.weight_name)
        self.groups = 1

    def output_dim(self, rank: int) -> int:
        return rank - 1

    def input_dim(self, rank: int) -> int:
        return rank - 1

    def matrix(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight = self._as_matrix(self.weight.detach())
        bias = attribute(self.module, self.bias_name).detach() if self.bias_name else torch.zeros(weight.shape[0])
        return weight.double().cpu(), bias.double().cpu()

    def put(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Write the new weight and bias; a layer without bias is given one."""
        fresh = self._from_matrix(weight).to(self.weight)
        assign(self.module, self.weight_name, nn.Parameter(fresh, requires_grad=self.weight.requires_grad))
        if self.bias_name is not None:
            old = attribute(self.module, self.bias_name)
            assign(self.module, self.bias_name, nn.Parameter(bias.to(old), requires_grad=old.requires_grad))
        elif bool((bias != 0).any()):
            self._add_bias(nn.Parameter(bias.to(self.weight), requires_grad=self.weight.requires_grad))

    def _add_bias(self, bias: nn.Parameter) -> None:
        stem = self.weight_name.rpartition(".")[0]
        name = f"{stem}.bias" if stem else "bias"
        while _has(self.module, name):
            name += "_refit"
        assign(self.module, name, bias)
        with self.node.graph.inserting_before(self.node):
            node = self.node.graph.get_attr(name)
        at = self.places["bias"]
        self.node.args = (*self.node.args[:at], node, *self.node.args[at + 1 :])

    def rows(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])

    def _as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def _from_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


class _Addmm(_Layer):
    """`bias + x W`, W stored as [inputs, outputs]."""

    def _as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T

    def _from_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T.contiguous()


class _Conv(_Layer):
    """A convolution of up to two spatial dims as a linear map of its patches."""

    def __init__(self, node: fx.Node, module: fx.GraphModule, places: dict[str, int]) -> None:
        super().__init__(node, module, places)
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        given = {a.name: node.args[i] if i < len(node.args) else node.kwargs.get(a.name, a.default_value) for i, a in enumerate(schema)}
        self.stride, self.padding, self.dilation = given["stride"], given["padding"], given["dilation"]
        self.groups = int(given["groups"])  # type: ignore[call-overload]

    def output_dim(self, rank: int) -> int:
        return 1

    def input_dim(self, rank: int) -> int:
        return 1

    def rows(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kernel = self.weight.shape[2:]
        if len(kernel) == 1:  # one spatial dim is two with a height of one
            x, y, kernel = x.unsqueeze(2), y.unsqueeze(2), (1, *kernel)
        two = lambda v, fill: [fill, v[0]] if len(v) == 1 and self.weight.dim() == 3 else [v[0], v[-1]]  # noqa: E731
        stride, dilation = two(list(self.stride), 1), two(list(self.dilation), 1)
        if isinstance(self.padding, str):
            total = [(k - 1) * d if self.padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
            x = F.pad(x, [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2])
            padding = [0, 0]
        else:
            padding = two(list(self.padding), 0)
        if tuple(kernel) == (1, 1) and padding == [0, 0]:
            x = x[:, :, :: stride[0], :: stride[1]]
            patches = x.flatten(2)
        else:
            patches = F.unfold(x, tuple(kernel), dilation, padding, stride)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1]), y.flatten(2).transpose(1, 2).reshape(-1, y.shape[1])

    def _as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten(1)

    def _from_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(self.weight.shape)


LARGEST = 6144
"""Most inputs of a refit, channels times kernel positions: its Gram matrix would take 300 MB beyond."""


def _layer_of(node: fx.Node, module: fx.GraphModule) -> _Layer | str:
    """The node as a layer that can be refitted, or why it cannot."""
    if node.target in LINEAR:
        kind, places = _Layer, {"input": 0, "weight": 1, "bias": 2}
    elif node.target in ADDMM:
        kind, places = _Addmm, {"bias": 0, "input": 1, "weight": 2}
    elif node.target in CONV:
        kind, places = _Conv, {"input": 0, "weight": 1, "bias": 2}
    else:
        return f"there is no closed form for {node.target}"
    weight, read = node.args[places["weight"]], node.args[places["input"]]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return "its weight is computed"
    if not isinstance(read, fx.Node) or read.op == "get_attr":
        return "its input is a parameter"
    if len(weight.users) > 1 or _tied(weight, module):
        return "its weight has other users"
    bias = node.args[places["bias"]] if places["bias"] < len(node.args) else None
    if isinstance(bias, fx.Node) and (bias.op != "get_attr" or len(bias.users) > 1 or attribute(module, str(bias.target)).dim() != 1):
        return "its bias is shared or computed"
    value = attribute(module, str(weight.target))
    if kind is _Conv:
        if value.dim() > 4:
            return "its patches have three spatial dims"
        if value.shape[1:].numel() > LARGEST:
            return f"its patches have {value.shape[1:].numel()} entries, more than {LARGEST}"
    return kind(node, module, places)


def _tied(weight: fx.Node, module: fx.GraphModule) -> bool:
    key = storage_key(attribute(module, str(weight.target)))
    same = [n for n in module.graph.nodes if n.op == "get_attr" and n is not weight and isinstance(attribute(module, str(n.target)), torch.Tensor)]
    return any(storage_key(attribute(module, str(n.target))) == key for n in same)


def _has(module: nn.Module, name: str) -> bool:
    try:
        attribute(module, name)
    except AttributeError:
        return False
    return True

