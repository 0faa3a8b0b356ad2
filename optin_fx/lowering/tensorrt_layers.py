"""What a TensorRT engine consists of: layers by type, from its inspector, or from the network where the inspector says nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any


def network_layers(network: Any) -> dict[str, int]:
    """Layer type -> how many, of the network that the parser made, before anything is fused."""
    return _sorted(network.get_layer(index).type.name for index in range(network.num_layers))


def engine_layers(trt: Any, engine: Any) -> dict[str, int]:
    """Layer type -> how many, of a deserialized engine, after fusion; empty where its inspector gives no types.

    It gives them for engines that were built with detailed profiling verbosity, as ours are.
    """
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text).get("Layers") or []
    except (ValueError, AttributeError):
        return {}
    return _sorted(str(layer["LayerType"]) for layer in layers if isinstance(layer, dict) and "LayerType" in layer)


def _sorted(types: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(types).items()))
