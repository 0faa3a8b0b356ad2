"""The rewrite with mask tuning (Kwon et al., NeurIPS 2022): one factor per unit that stays, by layer-wise least squares."""

from __future__ import annotations

from dataclasses import dataclass

from optin_fx.passes.rewrite_reconstruct import RewriteReconstruct


@dataclass(frozen=True)
class RewriteTune(RewriteReconstruct):
    """Slice, and give every unit that stays a real-valued gate, folded into its consumer's weights, layer by layer, front to back.

    Solves `min E|y - sum_u s_u (W x)_u - b|^2 + lam |s - 1|^2` (Kwon et al. 2022, eq. 12) for the residual stream of the dense
    program. Three things differ from the public code: the damping is relative to the system and chosen on held-out batches; a layer
    whose factors leave [-10, 10] falls back by itself, and is reported, where theirs ends tuning for all later layers; and the target is
    the dense model, not a model pruned half as much.

    Attributes:
        level, target, layers, mode, rows_by, floor, norms, logits, ratios, held_out, rows: see `Compensation`.
    """

    level: str = "scale"
    layers: str = "consumers"
