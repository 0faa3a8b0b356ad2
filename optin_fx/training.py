"""Train and eval mode for exported graphs.

A program is traced in eval mode, so dropout and BatchNorm stand in its graph with a literal `False`. `train()` of the module that
`Program.module` returns writes `True` there, `eval()` writes `False` back; parameters and running statistics are the module's own.

What a model's Python code only does `if self.training` leaves no node in an eval graph and cannot be switched on: stochastic depth,
and dropout inside fused attention. Where that matters, cut the eager module (`apply_to`) and train that.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import fx

from optin_fx.arguments import argument_place

aten = torch.ops.aten

SWITCHES = {
    aten.dropout.default: "train",
    aten.dropout_.default: "train",
    aten.feature_dropout.default: "train",
    aten.feature_dropout_.default: "train",
    aten.alpha_dropout.default: "train",
    aten.feature_alpha_dropout.default: "train",
    aten.native_dropout.default: "train",
    aten.batch_norm.default: "training",
    aten.instance_norm.default: "use_input_stats",
    aten.rrelu.default: "training",
    aten.lstm.input: "train",
    aten.gru.input: "train",
    aten.rnn_tanh.input: "train",
    aten.rnn_relu.input: "train",
}
"""Ops that compute something else in training, and the argument that says so."""


class SwitchableModule(fx.GraphModule):
    """An exported module whose ops follow `train()` and `eval()`."""

    def train(self, mode: bool = True) -> Self:
        """Switch dropout and normalisation to training, or back."""
        super().train(mode)
        for inner in self.modules():
            if isinstance(inner, fx.GraphModule) and _write(inner.graph, mode):
                inner.recompile()
        return self


def switchable(module: fx.GraphModule) -> fx.GraphModule:
    """Let an exported module, which is in eval mode, be switched by `train()` and `eval()`; changes the module passed in."""
    for inner in module.modules():
        for name in ("train", "eval"):
            vars(inner).pop(name, None)  # torch puts functions there that raise
        if isinstance(inner, fx.GraphModule):
            for node in inner.graph.nodes:
                # what the traced model does in eval mode too (Monte Carlo dropout) is no matter of the mode
                if node.target in SWITCHES and not _flag(node):
                    node.meta["custom"] = {**node.meta.get("custom", {}), "follows_mode": True}
    # fx makes a class of this name for every module, and copies what stands below it
    metaclass: Any = type(type(module))
    module.__class__ = metaclass("GraphModuleImpl", (SwitchableModule, *type(module).__bases__), {})
    module.recompile()
    return module.eval()


def _flag(node: fx.Node) -> bool:
    name = SWITCHES[node.target]  # type: ignore[index]
    place = argument_place(node, name)
    return bool(node.args[place] if place is not None and place < len(node.args) else node.kwargs.get(name, False))


def _write(graph: fx.Graph, mode: bool) -> bool:
    """Write the mode into the ops that follow it; True if there are any."""
    found = [node for node in graph.nodes if node.meta.get("custom", {}).get("follows_mode")]
    for node in found:
        name = SWITCHES[node.target]
        place = argument_place(node, name)
        if place is not None and place < len(node.args):
            node.update_arg(place, mode)
        else:
            node.update_kwarg(name, mode)
    return bool(found)
