"""Products of changes with weights."""

from __future__ import annotations

import torch
from torch import fx


class Products:
    """Products of changes with weights, as fast as the processor does them.

    Args:
        precision: "full", or "bf16": both factors rounded to bfloat16, the product in bfloat16, too.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.halves: dict[fx.Node, torch.Tensor] = {}
        self.latest: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, change: torch.Tensor, weight: torch.Tensor, source: fx.Node) -> torch.Tensor:
        """`d W^T`; `source` is the weight's node."""
        if self.precision == "bf16":
            if source not in self.halves:
                self.halves[source] = weight.bfloat16()
            if self.latest is None or self.latest[0] is not change:  # queries, keys and values multiply the same change
                self.latest = (change, change.bfloat16())
            return torch.nn.functional.linear(self.latest[1], self.halves[source])
        if weight.dtype is torch.float32 and weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            # oneDNN: twice the speed of MKL on processors that are not Intel's, the same on those that are
            found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(change.float(), weight, None, "none", [], "")
            return found
        return torch.nn.functional.linear(change.to(weight.dtype), weight)
