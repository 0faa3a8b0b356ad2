"""Models by name: what a text such as `timm:resnet50` or `mypackage.models:make` stands for.

model.pt2                  a program saved by optin-fx or by torch.export.save
package.module:factory     a function without arguments that returns model, (model, args) or (model, args, kwargs)
timm:NAME                  an image model of timm; the example input has the size that the model was trained at
hf:NAME_OR_FOLDER          AutoModel of transformers; the example inputs come from the config and the tokenizer
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.export import ExportedProgram

from optin_fx.errors import LoadError, MissingExtra
from optin_fx.program import Program, load, trace

FORMS = "give model.pt2, package.module:factory, timm:NAME or hf:NAME_OR_FOLDER"


class Source(NamedTuple):
    """A model and one set of example inputs, as `optin_fx.trace` takes them."""

    model: nn.Module | ExportedProgram | Program
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sizes:
    """How large the example inputs are that `timm:` and `hf:` models get. Costs are counted at these sizes.

    Attributes:
        batch: rows.
        length: tokens of a text (`hf:`).
        image: side of a square image in pixels; `None` is the size that the model says.
        weights: `pretrained`, `random`, or the path of a state dict (`.pth`, `.pt`, `.safetensors`).
    """

    batch: int = 1
    length: int = 128
    image: int | None = None
    weights: str = field(default="pretrained")


def read_model(spec: str, sizes: Sizes | None = None) -> Program:
    """The traced program that a text stands for.

    Raises:
        LoadError: the text names nothing that exists, or what it names is not a model.
        MissingExtra: `timm:` or `hf:` is given without the package.
        TraceError: torch.export refused the model.
    """
    source = find_model(spec, sizes or Sizes())
    return trace(source.model, source.args, source.kwargs)


def find_model(spec: str, sizes: Sizes) -> Source:
    """The model that a text stands for, not yet traced."""
    prefix, _, rest = spec.partition(":")
    if prefix in ("timm", "hf") and rest:
        makers: dict[str, Callable[[str, Sizes], Source]] = {"timm": _timm, "hf": _hugging_face}
        return makers[prefix](rest, sizes)
    if spec.endswith(".pt2") or Path(spec).is_file():
        return Source(load(spec))
    if rest and all(part.isidentifier() for part in [*prefix.split("."), rest]):
        return _from_factory(spec)
    raise LoadError("not a model", at=spec, fix=FORMS)


def find_object(spec: str) -> Any:
    """The object that `package.module:name` names, searched in the current folder too."""
    module_name, _, name = spec.partition(":")
    # an installed command does not search the folder that it is called in, `python -m` does: do the same for both
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name != missing and not module_name.startswith(missing + "."):
            raise  # the module exists and itself imports something that does not: the user's traceback says more than we can
        raise LoadError(f"no module named '{missing}'", at=spec, fix="install its package, or run in the folder that holds it") from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        public = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        close = difflib.get_close_matches(name, public, n=5) or public[:5]
        raise LoadError(
            f"module '{module_name}' has no '{name}'", at=spec, fix=f"it has {', '.join(close)}" if close else "check the module's name"
        ) from error


def _from_factory(spec: str) -> Source:
    factory = find_object(spec)
    made = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    parts = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], nn.Module | ExportedProgram | Program):
        raise LoadError(f"the factory returned {_kinds(made)}", at=spec, fix="return model, (model, args) or (model, args, kwargs)")
    args = parts[1] if len(parts) > 1 else ()
    return Source(parts[0], (args,) if isinstance(args, torch.Tensor) else tuple(args), parts[2] if len(parts) > 2 else None)


def _kinds(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return type(value).__name__


def _timm(name: str, sizes: Sizes) -> Source:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingExtra("timm", "timm", needed_for=f"timm:{name}") from error
    spec = f"timm:{name}"
    try:
        model = timm.create_model(name, pretrained=sizes.weights == "pretrained")
    except RuntimeError as error:  # timm says "Unknown model (…)" and "No pretrained weights exist …" like this
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise LoadError(
            f"timm cannot make it: {_first_line(error)}",
            at=spec,
            fix=f"names that look alike: {', '.join(close)}" if close else "timm.list_models() lists all names",
        ) from error
    except OSError as error:
        raise _unreachable_weights(spec, error) from error
    channels, *size = timm.data.resolve_model_data_config(model)["input_size"]
    _read_weights(model, sizes.weights)
    side = (sizes.image, sizes.image) if sizes.image else size
    return Source(model.eval(), (_noise(sizes.batch, channels, *side),))


def _hugging_face(name: str, sizes: Sizes) -> Source:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtra("transformers", "hf", needed_for=f"hf:{name}") from error
    spec = f"hf:{name}"
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if sizes.weights == "pretrained":
            model = transformers.AutoModel.from_pretrained(name, dtype=torch.float32)
        else:
            model = transformers.AutoModel.from_config(config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _unreachable_weights(spec, error) from error
    _read_weights(model, sizes.weights)
    # a cache of past keys is state of a conversation, not of the model, and is no part of the graph
    model.config.use_cache = False
    return Source(model.eval(), (), hugging_face_inputs(model, name, sizes))


def hugging_face_inputs(model: Any, name: str, sizes: Sizes) -> dict[str, torch.Tensor]:
    """Example inputs of a transformers model: text, images, sound, or text with images."""
    config = model.config
    text = getattr(config, "text_config", None) or config
    vision = getattr(config, "vision_config", None) or config
    main = model.main_input_name
    inputs: dict[str, torch.Tensor] = {}
    if main == "input_ids":
        inputs |= _text(name, text, sizes)
    if main == "pixel_values" or vision is not config:
        side = sizes.image or _side(getattr(vision, "image_size", None))
        inputs["pixel_values"] = _noise(sizes.batch, getattr(vision, "num_channels", 3), side, side)
    if main == "input_features":
        inputs["input_features"] = _noise(sizes.batch, config.num_mel_bins, 2 * config.max_source_positions)
    if main == "input_values":
        inputs["input_values"] = _noise(sizes.batch, 16_000)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _tokens(sizes.batch, min(sizes.length, 16), text)
    if not inputs:
        raise LoadError(
            f"no recipe for the input '{main}' of {type(model).__name__}",
            at=f"hf:{name}",
            fix="write a factory that returns (model, args, kwargs), and give package.module:factory",
        )
    return inputs


def _text(name: str, config: Any, sizes: Sizes) -> dict[str, torch.Tensor]:
    longest = getattr(config, "max_position_embeddings", None) or sizes.length
    ids = _tokens(sizes.batch, min(sizes.length, longest), config)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _tokens(batch: int, length: int, config: Any) -> torch.Tensor:
    # ids 0..9 are special in many vocabularies (padding above all)
    low = 10 if config.vocab_size > 100 else 0
    return torch.randint(low, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _side(size: Any) -> int:
    return int(size[0]) if isinstance(size, list | tuple) else int(size or 224)


def _read_weights(model: nn.Module, weights: str) -> None:
    if weights not in ("pretrained", "random"):
        load_weights(model, weights)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read a state dict into a model: by names, or by order where the names differ and all shapes agree one by one.

    Raises:
        LoadError: no such file, not a state dict, or the tensors do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise LoadError("no such file", at=str(path), fix="give --weights pretrained, random, or a state dict's path")
    given = _read_state(path)
    wanted = model.state_dict()
    if given.keys() != wanted.keys():
        pairs = list(zip(wanted.items(), given.values(), strict=False))
        wrong = [name for (name, old), new in pairs if old.shape != new.shape]
        if len(given) != len(wanted) or wrong:
            raise LoadError(
                f"{len(given)} tensors in the file, {len(wanted)} in the model"
                + (f"; the first that differs in shape: {wrong[0]}" if wrong else ""),
                at=str(path),
                so="the weights fit neither by name nor by order",
                fix="give the state dict of this very model",
            )
        given = {name: new for (name, _), new in pairs}
    model.load_state_dict(given)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types on foreign files
        raise LoadError(
            f"not a state dict: {_first_line(error)}", at=str(path), fix="save it with torch.save(model.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise _not_a_state_dict(path, type(state).__name__)
    return state


def _not_a_state_dict(path: Path, found: str) -> LoadError:
    return LoadError(f"not a state dict: {found}", at=str(path), fix="save it with torch.save(model.state_dict(), path)")


def _unreachable_weights(spec: str, error: Exception) -> LoadError:
    return LoadError(
        f"cannot read it: {_first_line(error)}",
        at=spec,
        so="there is no model to work on",
        fix="check the name; without a connection give a local folder (hf:FOLDER), --weights FILE, or --weights random",
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
