"""Contractions whose weights can be solved for: a weight of their own as a matrix, their input as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from optin_fx.attributes import assign, attribute, storage_key

aten = torch.ops.aten

LINEAR = (aten.linear.default,)
ADDMM = (aten.addmm.default,)
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
CONV = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
CONTRACTIONS = (*LINEAR, *ADDMM, *TRANSPOSED, *CONV)
"""Ops that are layers, if their weight is their own."""


class Layer:
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
        """Dim of the output that holds its features."""
        return rank - 1

    def input_dim(self, rank: int) -> int:
        """Dim of the input that is contracted."""
        return rank - 1

    def matrix(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight `[outputs, inputs]` and bias `[outputs]` in float64."""
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

    def inputs_of(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """What the matrix is multiplied with at some rows of the output, `[rows, inputs]`."""
        return _rows(x.reshape(-1, x.shape[-1]), index)

    def outputs_of(self, y: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """Rows of the output, all or some, `[rows, outputs]`: all dims but the features', flattened."""
        found = y.movedim(self.output_dim(y.dim()), -1)
        found = found.reshape(-1, found.shape[-1])
        return found if index is None else _rows(found, index)

    @property
    def repeats(self) -> int:
        """Columns of the matrix per entry of the input's features."""
        return 1

    def _as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def _from_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


class Addmm(Layer):
    """`bias + x W`, W stored as [inputs, outputs]."""

    def _as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T

    def _from_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T.contiguous()


class Conv(Layer):
    """A convolution as a linear map of its patches, in any number of spatial dims. Columns: channels, then kernel positions."""

    def __init__(self, node: fx.Node, module: fx.GraphModule, places: dict[str, int]) -> None:
        super().__init__(node, module, places)
        given = _arguments(node)
        space = self.weight.dim() - 2
        self.kernel = tuple(self.weight.shape[2:])
        self.stride, self.dilation = _each(given["stride"], space), _each(given["dilation"], space)
        self.groups = int(given["groups"])
        before = _padding(given["padding"], self.kernel, self.dilation)
        self.padding = [
            (p, (k - 1) * d - p) if given["padding"] == "same" else (p, p)
            for p, k, d in zip(before, self.kernel, self.dilation, strict=True)
        ]

    @property
    def repeats(self) -> int:
        return self.weight.shape[2:].numel()

    def output_dim(self, rank: int) -> int:
        return 1

    def input_dim(self, rank: int) -> int:
        return 1

    def inputs_of(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, [p for pair in reversed(self.padding) for p in pair])
        steps = [(k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True)]
        extents = [(n - step - 1) // s + 1 for n, step, s in zip(x.shape[2:], steps, self.stride, strict=True)]
        return _patches(x, index, extents, self.kernel, self.stride, self.dilation)

    def _as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten(1)

    def _from_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(self.weight.shape)


class ConvTranspose(Conv):
    """A transposed convolution as a convolution, with the kernel turned round, of its input with zeros between the entries."""

    def __init__(self, node: fx.Node, module: fx.GraphModule, places: dict[str, int]) -> None:
        Layer.__init__(self, node, module, places)
        given = _arguments(node)
        space = self.weight.dim() - 2
        self.kernel = tuple(self.weight.shape[2:])
        self.stride, self.dilation, self.groups = _each(given["stride"], space), _each(given["dilation"], space), int(given["groups"])
        last = _each(given["output_padding"], space)
        edge = [(k - 1) * d - p for p, k, d in zip(_each(given["padding"], space), self.kernel, self.dilation, strict=True)]
        self.padding = [(e, e + o) for e, o in zip(edge, last, strict=True)]

    def inputs_of(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        spread = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], self.stride, strict=True)))
        inside = spread
        for dim, s in enumerate(self.stride, start=2):
            inside = inside[(slice(None),) * dim + (slice(None, None, s),)]
        inside.copy_(x)
        spread = F.pad(spread, [p for pair in reversed(self.padding) for p in pair])
        extents = [n - (k - 1) * d for n, k, d in zip(spread.shape[2:], self.kernel, self.dilation, strict=True)]
        return _patches(spread, index, extents, self.kernel, [1] * len(self.kernel), self.dilation)

    def _as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        weight = weight.flip(list(range(2, weight.dim())))
        inputs, outputs = weight.shape[0] // self.groups, weight.shape[1]
        return weight.reshape(self.groups, inputs, outputs, -1).transpose(1, 2).reshape(self.groups * outputs, -1)

    def _from_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        inputs, outputs = self.weight.shape[0] // self.groups, self.weight.shape[1]
        weight = weight.reshape(self.groups, outputs, inputs, -1).transpose(1, 2).reshape(self.weight.shape)
        return weight.flip(list(range(2, weight.dim())))


def _patches(
    x: torch.Tensor, index: torch.Tensor, extents: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> torch.Tensor:
    """Patches at some output positions, `[rows, channels x kernel positions]`; rows are numbered (sample, position)."""
    rest, at = index, []
    for extent in reversed(extents):
        at.append(rest % extent)
        rest = rest // extent
    offsets = torch.cartesian_prod(*(torch.arange(k) * d for k, d in zip(kernel, dilation, strict=True))).reshape(-1, len(kernel))
    places = [(where * s)[:, None] + offsets[None, :, dim] for dim, (where, s) in enumerate(zip(reversed(at), stride, strict=True))]
    found = x.movedim(1, -1)[(rest[:, None], *places)]  # [rows, kernel positions, channels]
    return found.transpose(1, 2).reshape(len(index), -1)


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    return {a.name: node.args[i] if i < len(node.args) else node.kwargs.get(a.name, a.default_value) for i, a in enumerate(schema)}


def _each(value: Sequence[int], space: int) -> list[int]:
    """A setting for every spatial dim; a single one stands for all."""
    return [int(v) for v in value] if len(value) == space else [int(value[0])] * space


def _padding(value: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    if value == "same":
        return [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
    return [0] * len(kernel) if value == "valid" else _each(value, len(kernel))


LARGEST = 6144
"""Most inputs of a refit, channels times kernel positions: its Gram matrix would take 300 MB beyond."""


def layer_of(node: fx.Node, module: fx.GraphModule) -> Layer | str:
    """The node as a layer that can be refitted, or why it cannot."""
    if node.target in LINEAR:
        kind, places = Layer, {"input": 0, "weight": 1, "bias": 2}
    elif node.target in ADDMM:
        kind, places = Addmm, {"bias": 0, "input": 1, "weight": 2}
    elif node.target in CONV:
        kind, places = Conv, {"input": 0, "weight": 1, "bias": 2}
    elif node.target in TRANSPOSED:
        kind, places = ConvTranspose, {"input": 0, "weight": 1, "bias": 2}
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
    layer = kind(node, module, places)
    columns = layer.matrix()[0].shape[1]
    return layer if columns <= LARGEST else f"it has {columns} inputs, more than {LARGEST}"


def can_be_refitted(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether a node is a layer that can be refitted with no more memory than the largest refit of a pruned group's consumer takes.

    Grouped layers are not meant: a channel of a depthwise convolution sees too little of what has changed.
    """
    layer = layer_of(node, module) if node.target in CONTRACTIONS else ""
    return isinstance(layer, Layer) and layer.groups == 1 and layer.weight.numel() <= LARGEST**2


def _tied(weight: fx.Node, module: fx.GraphModule) -> bool:
    key = storage_key(attribute(module, str(weight.target)))
    others = (attribute(module, str(n.target)) for n in module.graph.find_nodes(op="get_attr") if n is not weight)
    return any(isinstance(value, torch.Tensor) and storage_key(value) == key for value in others)


def _has(module: nn.Module, name: str) -> bool:
    try:
        attribute(module, name)
    except AttributeError:
        return False
    return True


def _rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Some rows, by ascending numbers; as many as there are need no copy."""
    return x if len(index) == len(x) else x[index]
