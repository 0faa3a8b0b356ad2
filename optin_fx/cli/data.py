"""`--data`: where calibration batches come from.

package.module:factory     an iterable of batches, or a function without arguments that returns one;
                           a batch is a tuple, a dict or a tensor, as the model is called
file.pt                    a list of batches, or a dict of tensors by input name whose first dim runs over the samples
file.safetensors, .npz     a dict of tensors by input name whose first dim runs over the samples
random                     noise of the example inputs' shapes: a last resort, for trying things out
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from optin_fx.data import Batch
from optin_fx.errors import DataError
from optin_fx.models import find_object
from optin_fx.program import Program

FORMS = "give package.module:factory, a .pt, .safetensors or .npz file, or random"


class RandomDataWarning(UserWarning):
    """Scores were computed on noise."""


def read_data(spec: str | None, program: Program, *, rows: int, samples: int) -> Iterable[Any] | None:
    """The batches that a text stands for; `None` stands for none.

    Args:
        rows: samples of a batch, where the data is one long tensor or noise.
        samples: at most so many samples, where the data is one long tensor or noise.

    Raises:
        DataError: no such file, or it does not hold batches.
        LoadError: no such function.
    """
    if spec is None:
        return None
    if spec == "random":
        warnings.warn(
            "calibrating on noise: scores and compensation will not fit what the model sees in use; give real inputs with --data",
            RandomDataWarning,
            stacklevel=2,
        )
        return random_batches(program, rows=rows, samples=samples)
    path = Path(spec)
    if path.suffix in (".pt", ".pth", ".safetensors", ".npz"):
        return _from_file(path, program, rows, samples)
    if ":" in spec:
        found = find_object(spec)
        batches = found() if callable(found) else found
        if not isinstance(batches, Iterable):
            raise DataError(f"the factory returned {type(batches).__name__}", at=spec, fix="return an iterable of batches")
        return batches
    raise DataError("not calibration data", at=spec, fix=FORMS)


def random_batches(program: Program, *, rows: int, samples: int, seed: int = 0) -> list[Batch]:
    """Noise of the example inputs' shapes: normal floats, integers between the example's least and largest."""
    generator = torch.Generator().manual_seed(seed)

    def noise(example: Any) -> Any:
        if not isinstance(example, torch.Tensor) or example.dim() == 0:
            return example
        shape = (rows, *example.shape[1:])
        if example.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=example.dtype)
        low, high = int(example.min()), int(example.max())
        return torch.randint(low, high + 1, shape, generator=generator).to(example.dtype)

    def batch() -> Batch:
        return Batch(*pytree.tree_map(noise, (program.args, program.kwargs)))

    return [batch() for _ in range(max(1, math.ceil(samples / rows)))]


def _from_file(path: Path, program: Program, rows: int, samples: int) -> Iterable[Any]:
    if not path.is_file():
        raise DataError("no such file", at=str(path), fix=FORMS)
    try:
        content = _read(path)
    except Exception as error:  # the three readers raise many types on foreign files
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"cannot read it: {reason[0][:200]}", at=str(path), fix="write it with torch.save, safetensors or numpy.savez"
        ) from error
    if isinstance(content, list):
        return content
    if isinstance(content, torch.Tensor):
        content = {program.input_names[0]: content}
    if isinstance(content, Mapping) and content and all(isinstance(value, torch.Tensor) and value.dim() for value in content.values()):
        return list(_cut(dict(content), program, rows, samples, path))
    raise DataError(
        "neither a list of batches nor tensors by input name", at=str(path), fix=f"save a dict with {', '.join(program.input_names)}"
    )


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return torch.load(path, map_location="cpu", weights_only=True)


def _cut(tensors: dict[str, torch.Tensor], program: Program, rows: int, samples: int, path: Path) -> Iterator[Batch]:
    lengths = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"the tensors differ in their number of samples: {lengths}", at=str(path), fix="save one row per sample in each")
    if set(tensors) != set(program.input_names):
        raise DataError(
            f"the file holds {', '.join(tensors)}; the model takes {', '.join(program.input_names)}",
            at=str(path),
            fix="name the tensors as the model's inputs",
        )
    count = min(samples, next(iter(lengths.values())))
    for start in range(0, count, rows):
        piece = {name: tensor[start : min(start + rows, count)] for name, tensor in tensors.items()}
        positional = program.input_names[: len(program.args)]
        yield Batch(tuple(piece.pop(name) for name in positional), piece)
