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
CONV = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)


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

    def rows(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Input and output as rows that the matrix maps onto each other."""
        return x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])

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
    """A convolution of up to two spatial dims as a linear map of its patches."""

    def __init__(self, node: fx.Node, module: fx.GraphModule, places: dict[str, int]) -> None:
        super().__init__(node, module, places)
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        given: dict[str, Any] = {
            a.name: node.args[i] if i < len(node.args) else node.kwargs.get(a.name, a.default_value) for i, a in enumerate(schema)
        }
        self.stride, self.padding, self.dilation = given["stride"], given["padding"], given["dilation"]
        self.groups = int(given["groups"])

    def output_dim(self, rank: int) -> int:
        return 1

    def input_dim(self, rank: int) -> int:
        return 1

    def rows(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kernel = self._two(self.weight.shape[2:], 1)
        stride, dilation = self._two(self.stride, 1), self._two(self.dilation, 1)
        if x.dim() == 3:  # one spatial dim is two with a height of one
            x, y = x.unsqueeze(2), y.unsqueeze(2)
        padding = (0, 0)
        if not isinstance(self.padding, str):
            padding = self._two(self.padding, 0)
        elif self.padding == "same":
            high, wide = ((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
            x = F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
        if kernel == (1, 1) and padding == (0, 0):
            patches = x[:, :, :: stride[0], :: stride[1]].flatten(2)
        else:
            patches = F.unfold(x, kernel, dilation, padding, stride)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1]), y.flatten(2).transpose(1, 2).reshape(-1, y.shape[1])

    def _two(self, value: Sequence[int], missing: int) -> tuple[int, int]:
        """Settings of two spatial dims; a single one stands for both, or for the width of a one-dimensional convolution."""
        if self.weight.dim() == 3:
            return missing, int(value[0])
        return int(value[0]), int(value[-1])

    def _as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten(1)

    def _from_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(self.weight.shape)


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
    if kind is Conv:
        if value.dim() > 4:
            return "its patches have three spatial dims"
        if value.shape[1:].numel() > LARGEST:
            return f"its patches have {value.shape[1:].numel()} entries, more than {LARGEST}"
    return kind(node, module, places)


def _tied(weight: fx.Node, module: fx.GraphModule) -> bool:
    key = storage_key(attribute(module, str(weight.target)))
    same = [
        n
        for n in module.graph.nodes
        if n.op == "get_attr" and n is not weight and isinstance(attribute(module, str(n.target)), torch.Tensor)
    ]
    return any(storage_key(attribute(module, str(n.target))) == key for n in same)


def _has(module: nn.Module, name: str) -> bool:
    try:
        attribute(module, name)
    except AttributeError:
        return False
    return True
