"""Running a TensorRT plan on torch's CUDA tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from optin_fx.errors import LoweringError
from optin_fx.lowering.signature import Signature
from optin_fx.lowering.tensorrt_build import make_log
from optin_fx.lowering.tensorrt_cache import with_runtime_cache


def opened(trt: Any, plan: bytes, log: Any) -> tuple[Any, Any]:
    """(runtime, engine) of a plan.

    Raises:
        LoweringError: TensorRT does not accept the plan here.
    """
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise LoweringError(
            f"{trt.__name__} does not accept the engine here: {log.worst()}",
            at=f"{trt.__name__} {trt.__version__} on {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}",
            so="it cannot run",
            fix="build it again for this GPU and this version",
        )
    return runtime, engine


class Session:
    """A deserialized engine with one execution context.

    TensorRT synchronises more than it must on the default stream, so work that comes from there goes to a stream of its own; any
    other stream is used as it is, which is what a CUDA graph's capture needs.

    Raises:
        LoweringError: TensorRT does not accept the plan here.
    """

    def __init__(self, trt: Any, plan: bytes, signature: Signature, runtime_cache: bytes | None = None) -> None:
        self._log = make_log(trt)
        self._runtime, self.engine = opened(trt, plan, self._log)
        self._context, self._cache = with_runtime_cache(self.engine, runtime_cache)
        self._stream = torch.cuda.Stream()
        self._signature = signature
        self._names = {self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)}

    def runtime_cache(self) -> bytes | None:
        """Kernels that were compiled so far, where the module keeps them."""
        return bytes(self._cache.serialize()) if self._cache is not None else None

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Flat CUDA tensors in, flat CUDA tensors out; ordered after and before the current stream's work."""
        current = torch.cuda.current_stream()
        stream = self._stream if current == torch.cuda.default_stream() else current
        held = [tensor.contiguous() for tensor in inputs]
        self._bind_inputs(held)
        outputs = self._bind_outputs()
        stream.wait_stream(current)
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise LoweringError(f"the engine failed to run: {self._log.worst()}", fix="run it again with CUDA_LAUNCH_BLOCKING=1")
        current.wait_stream(stream)
        if stream != current:
            for tensor in (*held, *outputs):
                tensor.record_stream(stream)
        return outputs

    def _bind_inputs(self, inputs: Sequence[torch.Tensor]) -> None:
        for leaf, tensor in zip(self._signature.tensor_inputs, inputs, strict=True):
            if leaf.name not in self._names:
                continue  # the graph does not use it
            if not self._context.set_input_shape(leaf.name, tuple(tensor.shape)):
                raise LoweringError(
                    f"input {leaf.name} of shape {list(tensor.shape)} is outside the engine's profile",
                    fix="build the engine with a wider profile=",
                )
            self._context.set_tensor_address(leaf.name, tensor.data_ptr())

    def _bind_outputs(self) -> list[torch.Tensor]:
        outputs = []
        for leaf in self._signature.tensor_outputs:
            output = torch.empty(tuple(self._context.get_tensor_shape(leaf.name)), dtype=leaf.torch_dtype, device="cuda")
            self._context.set_tensor_address(leaf.name, output.data_ptr())
            outputs.append(output)
        return outputs
