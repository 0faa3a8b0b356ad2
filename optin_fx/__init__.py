"""optin-fx: makes trained networks smaller and faster in one shot, without retraining."""

from optin_fx.api import Pruned, prune, prune_family, rewrite, score, search
from optin_fx.costs import Cost, cost
from optin_fx.data import Batch
from optin_fx.errors import OptinError
from optin_fx.groups import Group, Groups, group
from optin_fx.latency import measure
from optin_fx.lowering import load_engine, lower
from optin_fx.narrowing import narrow
from optin_fx.plan import Plan, make_plan, random_plan
from optin_fx.program import Program, load, trace
from optin_fx.report import Report
from optin_fx.restoring import restore
from optin_fx.rewriting import mask
from optin_fx.rulebook import rule
from optin_fx.scores import Scores
from optin_fx.verifying import Agreement, verify

__all__ = [
    "Agreement",
    "Batch",
    "Cost",
    "Group",
    "Groups",
    "OptinError",
    "Plan",
    "Program",
    "Pruned",
    "Report",
    "Scores",
    "cost",
    "group",
    "load",
    "load_engine",
    "lower",
    "make_plan",
    "mask",
    "measure",
    "narrow",
    "prune",
    "prune_family",
    "random_plan",
    "restore",
    "rewrite",
    "rule",
    "score",
    "search",
    "trace",
    "verify",
]
__version__ = "0.1.0"
