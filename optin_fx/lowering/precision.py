"""A program in half precision, made by tracing it again with casts where ATen ops want equal dtypes.

`torch.autocast` around `torch.export` does nothing and says nothing: an exported program carries its dtypes. So the cast is made
on the graph: weights become half; where a matrix product, convolution or normalisation meets mixed dtypes, its floats become half;
elementwise ops promote as torch does. Islands that the model's author computes in float32 (RMS norms, rotary tables, softmax
with an explicit dtype) therefore stay float32. Inputs and outputs keep their dtypes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from optin_fx.attributes import attribute
from optin_fx.errors import LoweringError
from optin_fx.lowering.fold import fold_batch_norm
from optin_fx.lowering.reexport import reexported
from optin_fx.program import Program

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
PROMOTING = (torch.ops.aten.cat.default, torch.ops.aten.stack.default, torch.ops.aten.where.self)
WIDE = (torch.float32, torch.float64)


def in_precision(program: Program, precision: str) -> Program:
    """The program with its arithmetic in `precision`; the program itself for fp32 and tf32.

    BatchNorm is folded into convolutions first, in float32: folding it later leaves float32 weights on half inputs.

    Raises:
        LoweringError: the half-precision graph cannot be traced.
    """
    dtype = DTYPES.get(precision)
    if dtype is None:
        return program
    module = program.exported.module(check_guards=False)
    fold_batch_norm(module)
    try:
        exported = reexported(_Half(module, dtype, program), program)
    except Exception as error:  # torch.export raises many types; all mean "refused", and the reason is passed on
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise LoweringError(
            f"the program cannot be traced in {precision}: {reason[0][:300]}",
            so="there is no half-precision engine",
            fix="trace the model in half precision yourself: ofx.trace(model.half(), ...), and lower that in fp32",
        ) from error
    return Program(exported, program.args, program.kwargs, provenance=program.provenance)


class _Half(nn.Module):
    def __init__(self, module: fx.GraphModule, dtype: torch.dtype, program: Program) -> None:
        super().__init__()
        self.inner, self.dtype, self.out_spec = module, dtype, program.exported.call_spec.out_spec
        values = {node.name: node.meta.get("val") for node in program.exported.graph.nodes}
        outputs = [values.get(str(name)) for name in program.exported.graph_signature.user_outputs]
        self.out_dtypes = [value.dtype if isinstance(value, torch.Tensor) else None for value in outputs]
        # only weights are halved in place: a float32 buffer such as a rotary table loses its meaning in half
        for name, parameter in list(module.named_parameters()):
            if parameter.dtype in WIDE:
                owner, _, leaf = name.rpartition(".")
                halved = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                setattr(module.get_submodule(owner), leaf, halved)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = [_to(value, self.dtype) for value in pytree.tree_leaves((args, kwargs))]
        outputs = _HalfInterpreter(self.inner, self.dtype).run(*inputs, enable_io_processing=False)
        restored = [value.to(dtype) if dtype else value for value, dtype in zip(outputs, self.out_dtypes, strict=True)]
        return pytree.tree_unflatten(restored, self.out_spec)


class _HalfInterpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.dtype = dtype
        self.stored: set[int] = set()

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = attribute(self.module, target)
        if isinstance(value, torch.Tensor):
            self.stored.add(id(value))
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.aten._assert_tensor_metadata.default:
            return None  # it pins the dtypes that we are about to change
        tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        floats = [value for value in tensors if value.dtype.is_floating_point]
        if len({value.dtype for value in floats}) < 2:
            return super().call_function(target, args, kwargs)
        promotes = target in PROMOTING or torch.Tag.pointwise in getattr(target, "tags", ())

        def narrowed(value: Any) -> Any:
            # a stored constant never widens an activation, or one positional table would make the whole residual stream float32
            if promotes and id(value) not in self.stored:
                return value
            return _to(value, self.dtype)

        return super().call_function(target, *pytree.tree_map(narrowed, (args, kwargs)))


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.dtype in WIDE else value
