"""`Engine`: a program made ready for one target. Called as the model is; saved as one artifact with a JSON sidecar."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch

from optin_fx.errors import LoweringError
from optin_fx.files import saving
from optin_fx.lowering.closeness import Closeness
from optin_fx.lowering.signature import Signature

FORMAT = 1


class Engine(ABC):
    """A program lowered to a target.

    Attributes:
        target: full target text, such as `onnxruntime:cpu` or `tensorrt:fp16`.
        signature: names, dtypes and sizes of inputs and outputs.
        facts: JSON-able facts about the build (versions, options, seconds, what was checked).
        closeness: agreement with the program at build time; `None` where it was not, or could not be, run.
    """

    suffix: ClassVar[str] = ""

    def __init__(self, target: str, signature: Signature, facts: Mapping[str, Any] | None = None) -> None:
        self.target = target
        self.signature = signature
        self.facts = dict(facts or {})
        self.closeness: Closeness | None = None

    @property
    def device(self) -> str:
        """Where tensors are expected: `cpu` or `cuda`."""
        return "cpu"

    @property
    def cannot_run(self) -> str | None:
        """The reason why this engine can be built and saved but not run here; `None` if it can run."""
        return None

    @property
    def capturable(self) -> bool:
        """Whether a run only queues work on CUDA's current stream, so that a CUDA graph can capture it."""
        return False

    @abstractmethod
    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run on flat tensors, in the order of `signature.tensor_inputs`; returns `signature.tensor_outputs`. Nothing is checked."""

    @abstractmethod
    def _write(self, path: Path) -> list[Path]:
        """Write the artifact at `path`; returns the files written, the artifact first."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run, called as the model is; returns the model's output structure with torch tensors.

        Raises:
            LoweringError: the inputs do not fit, or the engine cannot run here.
        """
        self.require_runnable()
        inputs = self.signature.flatten(args, kwargs)
        home = inputs[0].device if inputs else torch.device("cpu")
        outputs = self.run([tensor.to(self.device) for tensor in inputs])
        return self.signature.unflatten([tensor.to(home) for tensor in outputs], inputs)

    def require_runnable(self) -> None:
        if self.cannot_run:
            raise LoweringError(
                f"this {self.target} engine was built, but cannot run here",
                at=self.cannot_run,
                so="it has not been executed: numerics and latency are unknown",
                fix="save it with engine.save(path) and load it where the device is",
            )

    def info(self) -> dict[str, Any]:
        """JSON-able facts: target, inputs, outputs, bounds, build facts, agreement, and whether it can run here."""

        def leaves(items: Sequence[Any]) -> list[dict[str, Any]]:
            return [{"name": leaf.name, "dtype": leaf.dtype, "shape": list(leaf.sizes)} for leaf in items if leaf.is_tensor]

        return {
            "target": self.target,
            "device": self.device,
            "inputs": leaves(self.signature.inputs),
            "outputs": leaves(self.signature.outputs),
            "bounds": {name: list(limits) for name, limits in self.signature.bounds.items()},
            "cannot_run": self.cannot_run,
            "closeness": asdict(self.closeness) if self.closeness else None,
            **self.facts,
        }

    def save(self, path: str | Path) -> Path:
        """Write the artifact, and `<path>.json` beside it with everything needed to load it again.

        Raises:
            SaveError: the place cannot be written.
        """
        path = Path(path)
        if not path.suffix:
            path = path.with_suffix(self.suffix)
        with saving("the engine", path, so="nothing usable was saved"):
            files = self._write(path)
            sidecar = {
                "format": FORMAT,
                "target": self.target,
                "signature": self.signature.to_dict(),
                "facts": self.facts,
                "closeness": asdict(self.closeness) if self.closeness else None,
                "files": {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files},
            }
            sidecar_path(path).write_text(json.dumps(sidecar, indent=1))
        return path


def sidecar_path(path: Path) -> Path:
    """`model.onnx` -> `model.onnx.json`."""
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """The sidecar of an engine, after checking that every file is there and unchanged.

    Raises:
        LoweringError: no sidecar, of another format, or a file is missing or corrupt.
    """
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        raise LoweringError(
            "no engine here: the sidecar is missing",
            at=str(sidecar),
            so="names, sizes and the call structure are unknown",
            fix="write the engine with engine.save(path), and copy the .json file along with it",
        )
    try:
        data = json.loads(sidecar.read_text())
        known = data["format"] == FORMAT
        files = dict(data["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise LoweringError(
            f"the sidecar is not readable: {error}", at=str(sidecar), fix="write the engine again with engine.save(path)"
        ) from error
    if not known:
        raise LoweringError(
            f"the engine has format {data['format']}, this version reads {FORMAT}",
            at=str(sidecar),
            fix="build the engine again with this version of optin-fx",
        )
    for name, expected in files.items():
        file = path.with_name(name)
        if not file.is_file():
            raise LoweringError("a file of the engine is missing", at=str(file), fix="copy all files that engine.save wrote")
        if file.stat().st_size != expected["bytes"] or sha256(file) != expected["sha256"]:
            raise LoweringError(
                "the engine file is corrupt: its bytes are not those that were saved",
                at=str(file),
                fix="copy it again, or build it again with optin_fx.lowering.lower",
            )
    return data


def sha256(path: Path) -> str:
    """Hash of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
