"""Running a TensorRT plan on torch's CUDA tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from optin_fx.errors import LoweringError
from optin_fx.lowering.signature import Signature
from optin_fx.lowering.tensorrt_build import make_log


class Session:
    """A deserialized engine with one execution context, on a stream of its own.

    Raises:
        LoweringError: TensorRT does not accept the plan here.
    """

    def __init__(self, trt: Any, plan: bytes, signature: Signature) -> None:
        self._log = make_log(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise LoweringError(
                f"{trt.__name__} does not accept the engine here: {self._log.worst()}",
                at=f"{trt.__name__} {trt.__version__} on {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}",
                so="it cannot run",
                fix="build it again for this GPU and this version",
            )
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        self._signature = signature
        self._names = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Flat CUDA tensors in, flat CUDA tensors out; ordered after and before the current stream's work."""
        context, current = self._context, torch.cuda.current_stream()
        held = [tensor.contiguous() for tensor in inputs]
        for leaf, tensor in zip(self._signature.tensor_inputs, held, strict=True):
            if leaf.name not in self._names:
                continue  # the graph does not use it
            if not context.set_input_shape(leaf.name, tuple(tensor.shape)):
                raise LoweringError(
                    f"input {leaf.name} of shape {list(tensor.shape)} is outside the engine's profile",
                    fix="build the engine with a wider profile=",
                )
            context.set_tensor_address(leaf.name, tensor.data_ptr())
        outputs = []
        for leaf in self._signature.tensor_outputs:
            output = torch.empty(tuple(context.get_tensor_shape(leaf.name)), dtype=leaf.torch_dtype, device="cuda")
            context.set_tensor_address(leaf.name, output.data_ptr())
            outputs.append(output)
        self._stream.wait_stream(current)
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise LoweringError(f"the engine failed to run: {self._log.worst()}", fix="run it again with CUDA_LAUNCH_BLOCKING=1")
        current.wait_stream(self._stream)
        for tensor in (*held, *outputs):
            tensor.record_stream(self._stream)
        return outputs
