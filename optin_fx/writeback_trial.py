"""Try a cut on a copy of the user's model: the original is only touched by changes that a copy has survived."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from optin_fx.errors import VerifyError, WriteBackError
from optin_fx.plan import Cut
from optin_fx.verifying import Agreement, agreement, results_of
from optin_fx.writeback_attributes import Choice
from optin_fx.writeback_refusals import differs, first_difference, inputs_of, raised

MOST_TRIALS = 32
"""How many readings of ambiguous attributes are tried."""


@dataclass
class Changes:
    """What is to become of a module tree.

    Attributes:
        tensors: by the `id` of a parameter or buffer, its smaller self. Ties have one value.
        added: parameters by dotted name, where there was none (`None` in the module).
        attributes: (module path, attribute name) to the new integer.
    """

    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    added: dict[str, nn.Parameter] = field(default_factory=dict)
    attributes: dict[tuple[str, str], int] = field(default_factory=dict)


class Ledger:
    """Changes of live modules that can be undone, the last first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def data(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Give a tensor new contents; it stays the same object, so ties and references hold."""
        old, grad = tensor.data, tensor.grad

        def undo() -> None:
            tensor.data = old
            tensor.grad = grad

        self._undo.append(undo)
        tensor.grad = None
        tensor.data = value

    def parameter(self, module: nn.Module, name: str, value: nn.Parameter) -> None:
        """Fill an empty parameter slot."""
        self._undo.append(lambda: module._parameters.__setitem__(name, None))
        module._parameters[name] = value

    def attribute(self, module: nn.Module, name: str, value: int) -> None:
        """Set a plain attribute."""
        old = vars(module)[name]
        self._undo.append(lambda: vars(module).__setitem__(name, old))
        vars(module)[name] = value

    def undo(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under every name that it has."""
    return {**dict(model.named_buffers(remove_duplicate=False)), **dict(model.named_parameters(remove_duplicate=False))}


def small_copy(model: nn.Module, changes: Changes) -> nn.Module:
    """A copy of a model in eval mode with its tensors already cut; parameters that stay are shared with it, not copied."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    for tensor in named_tensors(model).values():
        value = changes.tensors.get(id(tensor))
        if value is not None:
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(value, requires_grad=tensor.requires_grad) if is_parameter else value.clone()
    trial = copy.deepcopy(model, memo)
    for name, parameter in changes.added.items():
        path, _, leaf = name.rpartition(".")
        trial.get_submodule(path)._parameters[leaf] = parameter
    return trial.eval()


def readings(found: Sequence[Choice]) -> Iterator[dict[tuple[str, str], int]]:
    """Values of the attributes to try, the likeliest first: one choice per class and attribute name, the same in every layer."""
    families: dict[tuple[str, str], int] = {}
    for choice in found:
        families[choice.family] = max(families.get(choice.family, 1), len(choice.options))
    numbers = itertools.islice(itertools.product(*(range(n) for n in families.values())), 16 * MOST_TRIALS)
    for ranks in sorted(numbers, key=sum)[:MOST_TRIALS]:
        rank = dict(zip(families, ranks, strict=True))
        yield {(c.module, c.name): c.options[min(rank[c.family], len(c.options) - 1)] for c in found}


def try_out(model: nn.Module, changes: Changes, found: Sequence[Choice], cut: Cut, small: fx.GraphModule) -> Agreement:
    """Find the reading of the attributes with which the cut model equals the smaller program; it is left in `changes`.

    Raises:
        WriteBackError: there is none; the message is about the likeliest one.
    """
    program = cut.analysis.program
    with torch.no_grad():
        args, kwargs = inputs_of(program)
        wanted = small(*args, **kwargs)
        args, kwargs = inputs_of(program)
        moved = agreement(results_of(program, wanted), results_of(program, program.graph_module(*args, **kwargs))).max_rel
    trial = small_copy(model, changes)
    first: WriteBackError | None = None
    for attributes in readings(found):
        for (path, name), value in attributes.items():
            vars(trial.get_submodule(path))[name] = value
        args, kwargs = inputs_of(program)
        try:
            with torch.no_grad():
                ours = trial(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 the user's own code may raise anything at all; the reason is passed on
            first = first or raised(trial, cut, error)
            continue
        try:
            result = agreement(ours, wanted)
        except VerifyError as error:
            first = first or differs(trial, cut, small, error.what)
            continue
        # a branch that hardly counts (a layer scale of 1e-6) hides its errors from the outputs, so modules are compared one by one
        unsure = moved <= 10 * result.tolerance or any(len(choice.options) > 1 for choice in found)
        if result and unsure and first_difference(trial, program, small) is not None:
            first = first or differs(trial, cut, small, "inside")
            continue
        if result:
            changes.attributes = {key: value for key, value in attributes.items() if value != vars(model.get_submodule(key[0]))[key[1]]}
            return replace(result, moved=moved)
        first = first or differs(trial, cut, small, f"by {result.max_rel:.2e} (relative)")
    assert first is not None
    raise first
