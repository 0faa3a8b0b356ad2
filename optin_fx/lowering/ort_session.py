"""ONNX Runtime sessions with one documented default, the same for every model that is compared.

* `threads` intra-op threads (default: as many as torch uses), one inter-op thread;
* idle threads do not spin: two sessions in one process would steal each other's cores, which made a speed-up of 1.77 look like 1.52;
* the `SkipLayerNormFusion` is off on CPUs: its kernel is slower than Add + LayerNormalization, by 7-11 % of a dense encoder's
  time and 10-18 % of one with half the FLOPs.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from optin_fx.errors import LoweringError
from optin_fx.lowering.onnx_lines import refused_place
from optin_fx.lowering.onnx_model import require, weight_bytes, write_onnx
from optin_fx.lowering.signature import Signature

FUSIONS_OFF = ("SkipLayerNormFusion",)
# a model this big is handed over as a file, for it does not fit into one protobuf
IN_MEMORY_BELOW = 2**30


def has_onnxruntime() -> bool:
    return importlib.util.find_spec("onnxruntime") is not None


class OrtSession:
    """One InferenceSession, fed with torch tensors.

    Args:
        source: an `onnx_ir.Model`, or the path of a `.onnx` file.
        signature: input and output names.
        device: `cpu` or `cuda`.
        threads: intra-op threads; default: torch's.
        spinning: let idle threads spin.
        fusions_off: ORT optimizers to switch off.

    Raises:
        LoweringError: ORT refuses the model or lacks the device.
        MissingExtra: onnxruntime is not installed.
    """

    def __init__(
        self,
        source: Any,
        signature: Signature,
        *,
        device: str = "cpu",
        threads: int | None = None,
        spinning: bool = False,
        fusions_off: Sequence[str] = FUSIONS_OFF,
    ) -> None:
        ort = require("onnxruntime", "onnx", needed_for="running ONNX models")
        self.device, self.signature = device, signature
        self.settings = {
            "threads": threads or torch.get_num_threads(),
            "spinning": spinning,
            "fusions_off": list(fusions_off) if device == "cpu" else [],
        }
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        if provider not in ort.get_available_providers():
            raise LoweringError(
                f"this onnxruntime has no {provider}",
                at=f"onnxruntime {ort.__version__} with {', '.join(ort.get_available_providers())}",
                so="onnxruntime:cuda cannot run here",
                fix="pip install onnxruntime-gpu in place of onnxruntime, or lower to onnxruntime:cpu",
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.settings["threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        providers = [provider] if device == "cpu" else [provider, "CPUExecutionProvider"]
        try:
            if isinstance(source, Path):
                self.session = self._open(ort, str(source), options, providers)
            elif weight_bytes(source) < IN_MEMORY_BELOW:
                import onnx_ir as ir

                self.session = self._open(ort, ir.to_proto(source).SerializeToString(), options, providers)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    path = write_onnx(source, Path(folder) / "model.onnx", external_above=0)[0]
                    self.session = self._open(ort, str(path), options, providers)
        except Exception as error:  # ORT raises a dozen types of its own; each means "refused", and its text is passed on
            if isinstance(error, LoweringError):
                raise
            reason = str(error).splitlines()[0][:300]
            place = None if isinstance(source, Path) else refused_place(source, reason)
            raise LoweringError(
                f"ONNX Runtime refuses the model: {reason}",
                at="; ".join(text for text in (place, f"onnxruntime {ort.__version__} on {device}") if text),
                so="there is no session",
                fix="lower to fp32, or to another target",
            ) from error
        self._inputs = [leaf.name for leaf in signature.tensor_inputs]
        self._outputs = [leaf.name for leaf in signature.tensor_outputs]

    def _open(self, ort: Any, model: str | bytes, options: Any, providers: list[str]) -> Any:
        return ort.InferenceSession(model, options, providers=providers, disabled_optimizers=self.settings["fusions_off"])

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Flat tensors in, flat tensors out.

        Raises:
            LoweringError: ORT failed in the middle of a run; its text names the node.
        """
        try:
            if self.device == "cuda":
                return self._run_bound(inputs)
            feeds = {name: tensor.detach().numpy() for name, tensor in zip(self._inputs, inputs, strict=True)}
            return [torch.from_numpy(array) for array in self.session.run(self._outputs, feeds)]
        except Exception as error:  # ORT raises a dozen types of its own
            sizes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in zip(self._inputs, inputs, strict=True))
            raise LoweringError(
                f"ONNX Runtime failed to run: {str(error).strip()[:600]}",
                at=f"inputs {sizes}; {self.settings}",
                fix="if it speaks of memory, run with less beside it; else please report the text above with the model",
            ) from error

    def _run_bound(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        binding = self.session.io_binding()
        held = [tensor.contiguous() for tensor in inputs]
        for name, tensor, leaf in zip(self._inputs, held, self.signature.tensor_inputs, strict=True):
            element = torch.empty((), dtype=leaf.torch_dtype).numpy().dtype
            binding.bind_input(name, "cuda", tensor.device.index or 0, element, list(tensor.shape), tensor.data_ptr())
        for name in self._outputs:
            binding.bind_output(name, "cuda")
        torch.cuda.synchronize()
        self.session.run_with_iobinding(binding)
        found = [from_dlpack(value._ortvalue.to_dlpack()) for value in binding.get_outputs()]
        # booleans come back as bytes
        return [tensor.to(leaf.torch_dtype) for tensor, leaf in zip(found, self.signature.tensor_outputs, strict=True)]
