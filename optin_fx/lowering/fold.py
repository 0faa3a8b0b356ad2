"""Fold BatchNorm into the convolution before it, in float32 and in the ATen graph."""

from __future__ import annotations

import torch
from torch import fx, nn

from optin_fx.attributes import attribute

_aten = torch.ops.aten
CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.convolution.default)
NORMS = (_aten.batch_norm.default, _aten._native_batch_norm_legit_no_training.default)


def fold_batch_norm(module: fx.GraphModule) -> int:
    """Fold every inference-mode BatchNorm whose input is a convolution used by nothing else; edits `module` in place.

    The folded weights are new parameters: tensors shared with another program stay as they are.

    Returns:
        How many were folded.
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in NORMS and _fold(module, node, count):
            count += 1
    if count:
        module.graph.eliminate_dead_code()
        module.recompile()
    return count


def _fold(module: fx.GraphModule, norm: fx.Node, number: int) -> bool:
    conv = norm.args[0]
    if not isinstance(conv, fx.Node) or conv.target not in CONVOLUTIONS or len(conv.users) != 1:
        return False
    whole = norm.target is _aten.batch_norm.default
    if whole and norm.args[5]:
        return False
    results = [norm] if whole else [user for user in norm.users if user.args[1] == 0]
    if not whole and len(results) != len(norm.users):
        return False
    transposed = conv.target is _aten.convolution.default and conv.args[6]
    stored = [_stored(module, item) for item in (conv.args[1], conv.args[2] if len(conv.args) > 2 else None, *norm.args[1:5])]
    weight, bias, gamma, beta, mean, variance = stored
    if transposed or weight is None or mean is None or variance is None:
        return False
    if len(conv.args) > 2 and conv.args[2] is not None and bias is None:
        return False
    epsilon = float(norm.args[7] if whole else norm.args[6])  # type: ignore[arg-type]
    scale = torch.rsqrt(variance + epsilon) * (gamma if gamma is not None else 1.0)
    offset = (bias - mean if bias is not None else -mean) * scale + (beta if beta is not None else 0.0)
    names = {
        f"folded_{number}_weight": (weight * scale.reshape(-1, *[1] * (weight.dim() - 1))).to(weight.dtype),
        f"folded_{number}_bias": offset.to(weight.dtype),
    }
    with module.graph.inserting_before(conv):
        folded = []
        for name, tensor in names.items():
            module.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
            node = module.graph.get_attr(name)
            node.meta["val"] = tensor
            folded.append(node)
    conv.args = (conv.args[0], *folded, *conv.args[3:])
    for result in results:
        result.replace_all_uses_with(conv)
    return True


def _stored(module: fx.GraphModule, node: object) -> torch.Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = attribute(module, str(node.target))
    return value.detach() if isinstance(value, torch.Tensor) else None
