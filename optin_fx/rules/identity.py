"""Ops that pass their first operand on, entry by entry: copies, casts, dropout, and in-place writes."""

from __future__ import annotations

import torch

from optin_fx.rulebook import Call, pointwise, rule, rules

aten = torch.ops.aten


@rule(
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.native_dropout.default,
    aten.lift_fresh_copy.default,
    aten._to_copy.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.bernoulli.default,
    aten.fill_.Scalar,
    aten.zero_.default,
)
def same(call: Call) -> str:
    """The first operand's dims; of any other operand only the type or device is read."""
    rest = ", _" * (len(call.operands) - 1)
    return f"...{rest} -> " + ", ".join(["..."] * len(call.results))


@rule(aten.copy_.default, aten.prelu.default)
def written(call: Call) -> str:
    """Entry by entry, the second operand broadcast (`prelu`: one slope per channel, dim 1)."""
    if call.op is aten.prelu.default and call.operands[1].shape[0] != 1:
        return "b c, c -> b c" if len(call.operands[0].shape) == 2 else "b c ..., c -> b c ..."
    if call.op is aten.prelu.default:
        return "..., 1 -> ..."
    return "..., ... -> ..."


rules(
    dict.fromkeys(
        (aten.__and__.Tensor, aten.__or__.Tensor, aten.__xor__.Tensor, aten.__iand__.Tensor, aten.__ior__.Tensor), "..., ... -> ..."
    )
)
rules(dict.fromkeys((aten.__and__.Scalar, aten.__or__.Scalar, aten.__lshift__.Scalar, aten.__rshift__.Scalar), "... -> ..."))

# entry by entry, though PyTorch does not tag them so
rule(
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.where.Scalar,
    aten.masked_fill_.Scalar,
    aten.masked_fill_.Tensor,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.multiply.Tensor,
    aten.multiply.Scalar,
    aten.floor_divide.default,
    aten.real.default,
)(pointwise)
