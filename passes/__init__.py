"""The passes: policy, one decision per file. File, class and command-line name are the same; the prefix is the stage."""

from optin_fx.passes.narrow_rows import NarrowRows
from optin_fx.passes.rearrange_fisher import RearrangeFisher
from optin_fx.passes.rewrite_reconstruct import RewriteReconstruct
from optin_fx.passes.rewrite_slice import RewriteSlice
from optin_fx.passes.rewrite_tune import RewriteTune
from optin_fx.passes.score_activation import ScoreActivation
from optin_fx.passes.score_fisher import ScoreFisher
from optin_fx.passes.score_joint import ScoreJoint
from optin_fx.passes.score_magnitude import ScoreMagnitude
from optin_fx.passes.score_random import ScoreRandom
from optin_fx.passes.score_reconstruction import ScoreReconstruction
from optin_fx.passes.score_refine import ScoreRefine
from optin_fx.passes.score_taylor import ScoreTaylor
from optin_fx.passes.score_trajectory import ScoreTrajectory
from optin_fx.passes.score_trajectory_sketch import ScoreTrajectorySketch
from optin_fx.passes.score_wanda import ScoreWanda
from optin_fx.passes.search_knapsack import SearchKnapsack
from optin_fx.passes.search_kwon import SearchKwon
from optin_fx.passes.search_rank import SearchRank
from optin_fx.passes.search_steps import SearchSteps
from optin_fx.passes.search_trial import SearchTrial

__all__ = [
    "NarrowRows",
    "RearrangeFisher",
    "RewriteReconstruct",
    "RewriteSlice",
    "RewriteTune",
    "ScoreActivation",
    "ScoreFisher",
    "ScoreJoint",
    "ScoreMagnitude",
    "ScoreRandom",
    "ScoreReconstruction",
    "ScoreRefine",
    "ScoreTaylor",
    "ScoreTrajectory",
    "ScoreTrajectorySketch",
    "ScoreWanda",
    "SearchKnapsack",
    "SearchKwon",
    "SearchRank",
    "SearchSteps",
    "SearchTrial",
]
