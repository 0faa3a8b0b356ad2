"""The pruner as one step of somebody else's pipeline: over exported programs, over graph modules, in `torch.compile`. And quantisation
after it."""

from optin_fx.toolchains.compiling import PruneAndCompile
from optin_fx.toolchains.exported import PruneExported
from optin_fx.toolchains.graph import PruneGraph
from optin_fx.toolchains.quantising import quantise
from optin_fx.toolchains.step import PruneStep

__all__ = ["PruneAndCompile", "PruneExported", "PruneGraph", "PruneStep", "quantise"]
