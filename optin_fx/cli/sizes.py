"""The options that say how large a model's example inputs are: written once, and given to every command that reads a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from optin_fx.cli import options
from optin_fx.models import Sizes

DEFAULT = Sizes()
PARAMETER = "sizes"
OPTIONS = {"batch": options.Batch, "length": options.Length, "image": options.Image, "weights": options.Weights}  # fields of `Sizes`


def with_sizes(command: Callable[..., None]) -> Callable[..., None]:
    """A command in which the parameter `sizes: Sizes` stands for `--batch`, `--length`, `--image` and `--weights`.

    typer reads a command's options off its signature, so the command that it sees has the four in place of the one, behind the others.
    """

    def expanded(**given: Any) -> None:
        command(**{PARAMETER: Sizes(**{name: given.pop(name) for name in OPTIONS})}, **given)

    own = inspect.signature(command, eval_str=True)
    kept = [parameter for parameter in own.parameters.values() if parameter.name != PARAMETER]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(DEFAULT, name), annotation=annotation)
        for name, annotation in OPTIONS.items()
    ]
    expanded.__name__, expanded.__doc__ = command.__name__, command.__doc__
    expanded.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in (*kept, *added)}
    return expanded
