"""Products of changes with weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx


class Products:
    """Products of changes with weights, as fast as the processor does them.

    Args:
        precision: "full", or "bf16": both factors rounded to bfloat16, the product in bfloat16, too.
        packed: keep a copy of every weight in the order in which the processor reads it; in bfloat16 a copy is kept anyway.
    """

    def __init__(self, precision: str, packed: bool = False) -> None:
        self.precision, self.packed = precision, packed
        self.copies: dict[fx.Node, torch.Tensor] = {}
        self.latest: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, change: torch.Tensor, weight: torch.Tensor, source: fx.Node) -> torch.Tensor:
        """`d W^T`; `source` is the weight's node."""
        if self.precision == "bf16":
            if self.latest is None or self.latest[0] is not change:  # queries, keys and values multiply the same change
                self.latest = (change, change.bfloat16())
            change, dtype = self.latest[1], torch.bfloat16
        else:
            change, dtype = change.to(weight.dtype), weight.dtype
        if not by_onednn(weight, dtype):
            if weight.dtype is not dtype:
                weight = self.copies[source] = self.copies[source] if source in self.copies else weight.to(dtype)
            return torch.nn.functional.linear(change, weight)
        if source not in self.copies and (self.packed or weight.dtype is not dtype):
            rows = change.numel() // change.shape[-1]
            self.copies[source] = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), rows)
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(change, self.copies.get(source, weight), None, "none", [], "")
        return found


def by_onednn(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies: at twice the speed of MKL on processors that are not Intel's, the same on those that are."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    bf16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype is torch.float32 or (dtype is torch.bfloat16 and bf16)


def packed_bytes(weights: Sequence[torch.Tensor]) -> int:
    """Memory of the copies of weights, where keeping them pays."""
    return sum(w.numel() * w.element_size() for w in weights if w.dtype is torch.float32 and by_onednn(w, w.dtype))
