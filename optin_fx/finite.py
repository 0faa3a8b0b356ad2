"""Where NaN and infinite activations come from: the first node that makes one out of finite inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from optin_fx.analysis import analyse
from optin_fx.data import Batch
from optin_fx.errors import ScoreError
from optin_fx.groups import source_of
from optin_fx.interpreter import Runner
from optin_fx.program import Program


def refuse_non_finite(program: Program, batch: Batch, outputs: Sequence[Any], number: int) -> None:
    """Refuse a batch for which the model's floating outputs are NaN or plus infinity.

    Raises:
        ScoreError: names the batch, and the node that made the first such value.
    """
    floats = [o for o in outputs if isinstance(o, torch.Tensor) and o.is_floating_point()]
    if not any(torch.isnan(o).any() or torch.isposinf(o).any() for o in floats):  # minus infinity masks classes out
        return
    raise ScoreError(
        "the model's outputs are not finite",
        at=f"batch {number}",
        so="units cannot be ranked",
        fix=why_not_finite(program, batch),
    )


def why_not_finite(program: Program, batch: Batch) -> str:
    """Advice for an error: which node is to blame, with the user's source line."""
    watch = _Watch(program)
    with torch.no_grad():
        watch(batch)
    if watch.culprit is None:
        return "activations are finite: use float32 or float64"
    kind, name = watch.culprit
    if name in program.input_names:
        return f"the input {name} holds {kind}; mend the data"
    source = source_of(analyse(program), name)
    return f"the first {kind} is made by %{name}{f', {source}' if source else ''}; mend the data or the model there"


class _Watch(Runner):
    """Finds the node that made the first NaN, or the overflow that it came from.

    Infinities are legitimate in masks, which are made by filling and choosing; an infinity counts if a node made it by computing with
    finite values, and if a NaN or an output came of it.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.culprit: tuple[str, str] | None = None
        self.overflow: dict[fx.Node, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        overflows = [self.overflow[i] for i in n.all_input_nodes if i in self.overflow]
        values = [self.env.get(i) for i in n.all_input_nodes if i.op != "get_attr"]
        clean = all(bool(torch.isfinite(v).all()) for v in values if isinstance(v, torch.Tensor))
        result = super().run_node(n)
        if self.culprit is not None:
            return result
        if n.op == "output":
            if overflows:
                self.culprit = ("infinity", overflows[0])
        elif isinstance(result, torch.Tensor) and result.is_floating_point() and result.device.type != "meta":
            if torch.isnan(result).any():
                self.culprit = ("infinity", overflows[0]) if overflows else ("NaN", n.name)
            elif torch.isinf(result).any():
                if overflows:
                    self.overflow[n] = overflows[0]
                elif (clean and not _fills(n)) or n.op == "placeholder":
                    self.overflow[n] = n.name
        return result


def _fills(node: fx.Node) -> bool:
    return node.op != "call_function" or any(word in str(node.target) for word in ("full", "fill", "where", "scalar_tensor", "mask", "log"))
