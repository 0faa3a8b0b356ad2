"""How a change in an op's operands comes out of it: which ops carry changes as they are."""

from __future__ import annotations

import operator
from enum import Enum, auto

import torch
from torch import fx
from torch._ops import OpOverload

aten = torch.ops.aten


class Carries(Enum):
    """What an op does with changes of its operands.

    ALONE: linear in its one tensor operand. SUM: linear in all of them together. PRODUCT: linear in each of them while the others stay.
    NOTHING: none of these.
    """

    ALONE = auto()
    SUM = auto()
    PRODUCT = auto()
    NOTHING = auto()


_ALONE = {
    "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "flatten", "unflatten",
    "contiguous", "clone", "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "sum", "mean", "neg", "detach", "alias",
    "dropout",
    "movedim", "swapaxes", "numpy_T", "mT", "narrow", "flip", "roll", "repeat", "adaptive_avg_pool2d", "avg_pool2d", "pixel_shuffle",
    "pixel_unshuffle", "index_select", "view_as", "expand_as", "diagonal", "unfold", "im2col", "lift_fresh_copy",
}  # fmt: skip
_SUM = {"add", "sub", "cat", "stack", "add_", "sub_"}
_PRODUCT = {"linear", "matmul", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d", "mul", "div", "mul_", "div_"}
BIAS = {"linear": 2, "conv1d": 2, "conv2d": 2, "conv3d": 2, "addmm": 0}
"""Place of the bias, which a change does not see."""

JOINS = ("cat", "stack")
"""Sums in which an operand that does not change is zeros of its shape."""
FRESH = ("gelu", "silu", "relu", "tanh", "sigmoid", "hardtanh", "hardswish", "layer_norm", "softmax", "scaled_dot_product_attention",
         "batch_norm", "matmul", "bmm")  # fmt: skip
"""Common ops whose result never shares memory with an operand but one that they write into."""
IN_PLACE: dict[object, OpOverload] = {
    getattr(aten, name).default: getattr(aten, f"{name}_").default
    for name in ("gelu", "silu", "relu", "tanh", "sigmoid", "hardtanh", "hardswish")
}
"""Ops of one tensor, with what computes the same in its memory."""


def carries(node: fx.Node) -> Carries:
    """What a node does with changes of its operands."""
    if node.target is operator.getitem:
        return Carries.ALONE
    if not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        return Carries.NOTHING
    name = op_name(node)
    if name in _ALONE and len(node.all_input_nodes) >= 1 and _tensors(node) == 1:
        return Carries.ALONE
    if name in _SUM:
        return Carries.SUM
    return Carries.PRODUCT if name in _PRODUCT else Carries.NOTHING


def op_name(node: fx.Node) -> str:
    """`linear` for `aten.linear.default`."""
    return str(getattr(node.target, "overloadpacket", node.target)).rpartition(".")[2]


def mutated(node: fx.Node) -> fx.Node | None:
    """The operand that an op writes into, if it does."""
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return None
    for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node):
            return value
    return None


def without_writing(node: fx.Node) -> OpOverload | None:
    """The op that computes what a writing op does into a tensor of its own; None where writing cannot be seen not to matter.

    It does not matter where nothing reads the written tensor afterwards, and the tensor is no view of another.
    """
    written = mutated(node)
    if written is None or written.op != "call_function" or carries(written) is Carries.ALONE:
        return None
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    if any(order[user] > order[node] for user in written.users) or any(carries(user) is Carries.ALONE for user in written.users):
        return None
    packet = getattr(torch.ops.aten, op_name(node).rstrip("_"), None)
    return getattr(packet, node.target._overloadname, None)  # type: ignore[union-attr]


def aliases(op: OpOverload) -> bool:
    """Whether a result of an op may lie in the memory of an argument."""
    return any(result.alias_info is not None for result in op._schema.returns)


def sharing_memory(writer: fx.Node) -> set[fx.Node]:
    """The values that may lie in the memory that a node writes into: all that views and writing ops make of each other."""
    found, front = {writer}, [writer]
    while front:
        node = front.pop()
        near = [user for user in node.users if carries(user) is Carries.ALONE or mutated(user) is node]
        if carries(node) is Carries.ALONE or mutated(node) is not None:
            near += node.all_input_nodes
        front += [value for value in near if value not in found]
        found.update(near)
    return found


def _tensors(node: fx.Node) -> int:
    return sum(isinstance(value.meta.get("val"), (torch.Tensor, list, tuple)) or value.op == "get_attr" for value in node.all_input_nodes)
