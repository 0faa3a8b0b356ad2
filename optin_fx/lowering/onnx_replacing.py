"""Ops that the ONNX exporter takes in one form only, brought into that form before it sees them.

The program is traced again through an interpreter that replaces them; a program without such calls is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from optin_fx.lowering.reexport import reexported
from optin_fx.program import Program

aten = torch.ops.aten


def exportable(program: Program) -> Program:
    """The program with calls that the exporter refuses written in another way; the program itself if there are none."""
    if not any(_wants_replacing(node) for node in program.exported.graph.nodes):
        return program
    module = _Replaced(program.exported.module(check_guards=False), program.exported.call_spec.out_spec)
    return Program(reexported(module, program), program.args, program.kwargs, provenance=program.provenance)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """Scaled dot-product attention of any rank by that of four dims `[batch, heads, tokens, width]`, the one that the exporter takes."""
    if query.dim() < 4:
        missing = (None,) * (4 - query.dim())
        mask = attn_mask if attn_mask is None else attn_mask[missing]
        return aten.scaled_dot_product_attention(query[missing], key[missing], value[missing], mask, *args, **kwargs)[(0,) * len(missing)]
    lead = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])

    def flat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.expand(*lead, *tensor.shape[-3:]).flatten(0, -4)

    mask = attn_mask if attn_mask is None or attn_mask.dim() < 4 else flat(attn_mask)
    mixed = aten.scaled_dot_product_attention(flat(query), flat(key), flat(value), mask, *args, **kwargs)
    return mixed.reshape(*lead, *mixed.shape[1:])


def reversed_difference(tensor: torch.Tensor, other: float, alpha: float = 1) -> torch.Tensor:
    """`other - alpha * tensor` of whole numbers and a fraction: the exporter's own promotion leaves a call with no overload."""
    return aten.rsub.Scalar(tensor.to(torch.result_type(tensor, other)), other, alpha)


REPLACEMENTS: dict[Any, tuple[Callable[[torch.Tensor, Any], bool], Callable[..., torch.Tensor]]] = {
    aten.scaled_dot_product_attention.default: (lambda query, _key: query.dim() != 4, attention),
    aten.rsub.Scalar: (lambda tensor, other: torch.result_type(tensor, other) != tensor.dtype, reversed_difference),
}
"""Overload -> whether a call with these first two arguments is to be replaced, and by what."""


def _wants_replacing(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in REPLACEMENTS or len(node.args) < 2:
        return False
    values: list[Any] = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in node.args[:2]]
    return REPLACEMENTS[node.target][0](values[0], values[1])


class _Replaced(nn.Module):
    def __init__(self, module: fx.GraphModule, out_spec: Any) -> None:
        super().__init__()
        self.inner, self.out_spec = module, out_spec

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = _Replacing(self.inner).run(*pytree.tree_leaves((args, kwargs)), enable_io_processing=False)
        return pytree.tree_unflatten(outputs, self.out_spec)


class _Replacing(fx.Interpreter):
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in REPLACEMENTS and len(args) >= 2 and REPLACEMENTS[target][0](*args[:2]):
            return REPLACEMENTS[target][1](*args, **kwargs)
        return super().call_function(target, args, kwargs)
