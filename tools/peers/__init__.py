"""Other people's methods, for comparison, as passes; importing this package registers them. What they share with ours is ours."""

from .k_prune import KPrune
from .torch_pruning import TorchPruning
from .uniform import SearchUniform

__all__ = ["KPrune", "SearchUniform", "TorchPruning"]
