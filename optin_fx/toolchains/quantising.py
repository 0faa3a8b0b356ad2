"""Quantisation after pruning: PyTorch's own PT2E flow over a program, static INT8 with a scale per output channel of a weight.

What comes out is a program with quantize and dequantize nodes in it. Lowered to `onnx` or `onnxruntime`, they become QuantizeLinear and
DequantizeLinear, which ONNX Runtime, OpenVINO and TensorRT fuse into integer kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from optin_fx.data import batches_of
from optin_fx.lowering.fold import fold_batch_norm
from optin_fx.lowering.onnx_model import require
from optin_fx.lowering.reexport import reexported
from optin_fx.program import Program


def quantise(program: Program, data: Iterable[Any], quantizer: Any = None) -> Program:
    """The program with its products and convolutions in INT8.

    Args:
        program: dense or pruned; it is not changed. BatchNorm is folded first.
        data: calibration batches, called as the program is; a few dozen rows tell the ranges of activations.
        quantizer: a PT2E quantizer of torchao; by default the one for x86 CPUs: activations in 8 bits per tensor, weights in 8 bits per
            output channel.

    Raises:
        MissingExtra: torchao is not installed.
        DataError: there is no data, or it does not fit.
    """
    require("torchao", "quantise", needed_for="quantise")
    from torchao.quantization.pt2e import quantize_pt2e as pt2e

    batches = batches_of(program, data, needed_for="quantise")
    module = program.exported.module(check_guards=False)
    fold_batch_norm(module)
    prepared = pt2e.prepare_pt2e(module, quantizer or _for_x86())
    with torch.no_grad():
        for batch in batches:
            prepared(*batch.args, **batch.kwargs)
        converted = pt2e.convert_pt2e(prepared)
    quantised = reexported(_AsCalled(converted), program)
    return Program(quantised, program.args, program.kwargs, provenance={**program.provenance, "quantised": "PT2E, static INT8"})


def _for_x86() -> Any:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())


class _AsCalled(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)
