"""What each tool is asked to do with a model, and how the outcome is judged."""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import optin_fx as ofx
from optin_fx.testing.zoo import Entry
from optin_fx.verifying import results_of

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def attempt(tool: str, entry: Entry, *, small: bool = False) -> dict[str, Any]:
    """Prune a model of the zoo with one tool; facts about how it went."""
    inputs = entry.example(small=small)
    model = entry.model(small=small)
    return TOOLS[tool](model, inputs)


def ours(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Half of every free group, by magnitude; sliced against masked."""
    clock = _Clock()
    program = ofx.trace(model, *inputs)
    scores = ofx.score(program, "magnitude")
    kept = {g.name: torch.argsort(scores[g.name], descending=True)[: -(-g.extent // 2)].tolist() for g in ofx.group(program).free}
    plan = ofx.make_plan(program, kept)
    small = ofx.rewrite(program, plan)
    facts = clock.read()
    facts["params"] = ofx.cost(small).params / ofx.cost(program).params
    dense, found = (results_of(program, p(*inputs[0], **inputs[1])) for p in (program, small))
    facts["runs"] = [t.shape for t in _floats(dense)] == [t.shape for t in _floats(found)]
    facts["error"] = _difference(found, results_of(program, ofx.mask(program, plan)(*inputs[0], **inputs[1])))
    return facts


def torch_pruning(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """A magnitude pruner with a uniform ratio of one half; pruned against the dense model with the same input channels zeroed."""
    import torch_pruning as tp

    dense = copy.deepcopy(model)
    last = _last_layers(copy.deepcopy(model), inputs)
    names = {module: name for name, module in model.named_modules()}
    clock = _Clock()
    pruner = tp.pruner.MagnitudePruner(
        model,
        example_inputs=inputs[1] if inputs[1] else inputs[0],
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[module for module, name in names.items() if name in last],
        output_transform=_floats,
    )
    consumed = _Consumed(dense)
    for group in pruner.step(interactive=True):
        for item in group:
            consumed.note(names.get(item.dep.target.module), item.dep.handler.__name__, item.idxs)
        group.prune()
    facts = clock.read()
    facts["params"] = sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in dense.parameters())
    with torch.no_grad():
        wanted = _floats(dense(*inputs[0], **inputs[1]))
        try:
            found = _floats(model(*inputs[0], **inputs[1]))
        except Exception as error:  # noqa: BLE001  whatever the user's code raises on the new shapes
            return {**facts, "runs": False, "reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        facts["runs"] = [t.shape for t in wanted] == [t.shape for t in found]
        if not facts["runs"]:
            return {**facts, "reason": "outputs of other shapes"}
        consumed.zero()
        facts["error"] = _difference(found, dense(*inputs[0], **inputs[1]))
    return facts


TOOLS: dict[str, Callable[[nn.Module, Inputs], dict[str, Any]]] = {"optin-fx": ours, "torch-pruning": torch_pruning}


class _Consumed:
    """Which input channels of the dense layers were removed; groups name channels by their place in the layer as it is by then."""

    def __init__(self, dense: nn.Module) -> None:
        self.layers = dict(dense.named_modules())
        self.alive: dict[tuple[str, str], list[int]] = {}
        self.gone: dict[str, list[int]] = {}

    def note(self, name: str | None, how: str, places: Sequence[int]) -> None:
        """A group's item: its layer, torch-pruning's function (`prune_in_channels`, ...) and the places along that dim."""
        layer = self.layers.get(name) if name is not None else None
        weight = getattr(layer, "weight", None)
        if name is None or weight is None or how != "prune_in_channels" or weight.dim() < 2:
            return
        width = weight.shape[1] * getattr(layer, "groups", 1)
        alive = self.alive.setdefault((name, how), list(range(width)))
        removed = {alive[place] for place in places}
        self.gone.setdefault(name, []).extend(removed)
        self.alive[name, how] = [channel for channel in alive if channel not in removed]

    def zero(self) -> None:
        """Zero what was removed in the dense model, where it is read."""
        for name, channels in self.gone.items():
            layer = self.layers[name]
            layer.register_forward_pre_hook(_Zero(channels, 1 if layer.weight.dim() > 2 else -1))  # type: ignore[union-attr, operator, arg-type]


class _Zero:
    def __init__(self, channels: list[int], dim: int) -> None:
        self.channels, self.dim = torch.tensor(sorted(channels)), dim

    def __call__(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0].index_fill(self.dim, self.channels, 0.0), *args[1:])


def _last_layers(model: nn.Module, inputs: Inputs) -> set[str]:
    """Names of layers that make an output of the model, up to views of it."""
    made: dict[int, str] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            made.update({t.untyped_storage()._cdata: name for t in _floats(output)})

        return hook

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            module.register_forward_hook(note(name))
    with torch.no_grad():
        outputs = _floats(model(*inputs[0], **inputs[1]))
    return {made[key] for t in outputs if (key := t.untyped_storage()._cdata) in made}


def _floats(outputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def _difference(ours: Any, theirs: Any) -> float:
    """Largest relative difference over all outputs."""
    pairs = zip(_floats(ours), _floats(theirs), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) if a.shape == b.shape else float("inf") for a, b in pairs)


class _Clock:
    """Seconds and growth of peak memory from its making on."""

    def __init__(self) -> None:
        self.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.start = time.perf_counter()

    def read(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self.start
        return {"seconds": seconds, "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.memory) / 1024}
