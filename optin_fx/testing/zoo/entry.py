"""One row of the zoo, and the few helpers that its tables are written with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from optin_fx.program import Program, trace

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """A stock architecture, built from its library's own classes with random weights.

    Attributes:
        name: unique, in snake case.
        family: the table that the entry stands in.
        source: `library:class or model name`, where the code comes from.
        build: `build(small)` makes the module. Small ones have few layers and odd, mutually confusable widths (three
            heads beside the three of a fused qkv); the others have the widths of the published model, fewer layers.
        inputs: `inputs(small)` makes `(args, kwargs)`, batch 2.
        dynamic: `dynamic()` makes `dynamic_shapes` for `torch.export`; `None` leaves the batch to `optin_fx.trace`.
        note: what is special about the entry.
    """

    name: str
    family: str
    source: str
    build: Callable[[bool], nn.Module]
    inputs: Callable[[bool], Inputs]
    dynamic: Callable[[], Any] | None = None
    note: str = ""

    def model(self, *, small: bool = True, seed: int = 0) -> nn.Module:
        """The module in eval mode, with `randomise` applied."""
        torch.manual_seed(seed)
        return randomise(self.build(small).eval(), seed)

    def example(self, *, small: bool = True, seed: int = 0) -> Inputs:
        """Inputs that are the same on every call with the same seed."""
        torch.manual_seed(seed + 1)
        return self.inputs(small)

    def shapes(self) -> Any:
        """`dynamic_shapes` for `torch.export`."""
        return self.dynamic() if self.dynamic is not None else None

    def program(self, *, small: bool = True) -> Program:
        """The model, traced."""
        args, kwargs = self.example(small=small)
        return trace(self.model(small=small), args, kwargs, self.shapes())

    def __repr__(self) -> str:
        return f"Entry({self.name})"


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make every parameter count, in place, so that comparing two programs says something.

    Fresh networks are full of parameters that do nothing yet: zero biases, layer scales of 1e-6, residual branches whose
    last gain is 0, relative-position tables of zeros, matrices of standard deviation 0.02 behind which a residual
    branch is lost in the rounding. A wrong slice of those would go unseen.

    * a parameter whose entries are all equal is drawn anew, around its value where that is not near zero;
    * a matrix far below unit gain is scaled up to it (`std = 1 / sqrt(fan_in)`);
    * BatchNorm statistics are drawn (mean N(0, 0.2), variance U(0.5, 1.5)).

    Other buffers are left alone: they are tables (positions, masks, rotary frequencies), and their values mean something.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.dtype)

    for parameter in model.parameters():
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        value = parameter.flatten()[0].item()
        if bool((parameter == value).all()):
            level = value if abs(value) > 0.05 else 0.0
            parameter.copy_(level + 0.2 * normal(parameter))
        elif parameter.dim() >= 2:
            gain = parameter.std() * (parameter.numel() / parameter.shape[0]) ** 0.5
            if gain < 0.5:
                parameter.mul_(1 / gain)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * normal(buffer))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


# -- inputs ----------------------------------------------------------------------------------------------------------


def image(small: int, real: int, channels: int = 3) -> Callable[[bool], Inputs]:
    """One positional batch of square images."""
    return lambda is_small: ((torch.randn(2, channels, *2 * (small if is_small else real,)),), {})


def pixels(small: int, real: int, **more: Callable[[bool], Any]) -> Callable[[bool], Inputs]:
    """As `image`, by the keyword that transformers uses."""

    def make(is_small: bool) -> Inputs:
        size = small if is_small else real
        return (), {"pixel_values": torch.randn(2, 3, size, size), **{k: f(is_small) for k, f in more.items()}}

    return make


def text(
    vocab: int, *, small: int = 7, real: int = 64, real_vocab: int = 1000, mask: bool = True, names: tuple[str, ...] = ("input_ids",)
) -> Callable[[bool], Inputs]:
    """Token ids by keyword, with a padding mask on the second row where `mask`."""

    def make(is_small: bool) -> Inputs:
        length, words = (small, vocab) if is_small else (real, real_vocab)
        kwargs = {name: torch.randint(5, words, (2, length)) for name in names}
        if mask:
            kwargs["attention_mask"] = torch.ones(2, length, dtype=torch.long)
            kwargs["attention_mask"][1, -2:] = 0
        return (), kwargs

    return make


def batch_only(*names: str) -> Callable[[], Any]:
    """The batch of each keyword input is dynamic."""
    return lambda: {name: {0: Dim.DYNAMIC} for name in names}


def batch_and_sequence(*names: str) -> Callable[[], Any]:
    """Batch and sequence of each keyword input are dynamic."""
    return lambda: {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in names}


# -- builders --------------------------------------------------------------------------------------------------------


def hf(
    model: str,
    config: str,
    small: Mapping[str, Any],
    real: Mapping[str, Any],
    *,
    attention: str | None = None,
    both: Mapping[str, Any] | None = None,
) -> Callable[[bool], nn.Module]:
    """Builder of a transformers class. Values that are callables are called with `small` (nested configs)."""

    def build(is_small: bool) -> nn.Module:
        import transformers

        options = {**(both or {}), **(small if is_small else real)}
        options = {k: v(is_small) if callable(v) else v for k, v in options.items()}
        if attention is not None:
            options["attn_implementation"] = attention
        return getattr(transformers, model)(getattr(transformers, config)(**options))

    return build


def timm(name: str, small: Mapping[str, Any], real: Mapping[str, Any] | None = None) -> Callable[[bool], nn.Module]:
    """Builder of a timm model, with options of its constructor."""

    def build(is_small: bool) -> nn.Module:
        import timm as library

        return library.create_model(name, pretrained=False, **(small if is_small else real or {}))

    return build


def vision(name: str, small: Mapping[str, Any], real: Mapping[str, Any] | None = None) -> Callable[[bool], nn.Module]:
    """Builder of a torchvision model."""

    def build(is_small: bool) -> nn.Module:
        import torchvision

        function = torchvision.models.get_model_builder(name)
        options: dict[str, Any] = {"weights": None, **(small if is_small else real or {})}
        if "weights_backbone" in function.__annotations__:
            options["weights_backbone"] = None
        return function(**options)

    return build


def nested(name: str, small: Mapping[str, Any], real: Mapping[str, Any]) -> Callable[[bool], Any]:
    """A config inside a config."""

    def build(is_small: bool) -> Any:
        import transformers

        return getattr(transformers, name)(**(small if is_small else real))

    return build


# -- rows whose models read one square image ---------------------------------------------------------------------------


def timm_model(
    family: str,
    name: str,
    model: str,
    small: Mapping[str, Any] | None = None,
    real: Mapping[str, Any] | None = None,
    *,
    base: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"num_classes": 5}, {}),
    size: int = 32,
    real_size: int = 224,
    note: str = "",
) -> Entry:
    """A model of timm by its name; `base` holds options of the small and the real one that rows share."""
    build = timm(model, {**base[0], **(small or {})}, {**base[1], **(real or {})})
    return Entry(name, family, f"timm:{model}", build, image(size, real_size), None, note)


def timm_class(
    family: str,
    name: str,
    module: str,
    cls: str,
    small: Mapping[str, Any],
    real: Mapping[str, Any],
    *,
    size: int = 32,
    real_size: int = 224,
    note: str = "",
) -> Entry:
    """A class of timm, built directly because its model functions fix the options that have to change."""

    def build(is_small: bool) -> nn.Module:
        made: nn.Module = getattr(import_module(f"timm.models.{module}"), cls)(**({"num_classes": 5, **small} if is_small else real))
        return made

    return Entry(name, family, f"timm:{cls}", build, image(size, real_size), None, note)
