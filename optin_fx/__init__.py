"""optin-fx: makes trained networks smaller and faster in one shot, without retraining."""

from optin_fx.costs import Cost, cost
from optin_fx.errors import OptinError
from optin_fx.groups import Group, Groups, group
from optin_fx.plan import Plan, make_plan, random_plan
from optin_fx.program import Program, load, trace
from optin_fx.rewriting import mask, rewrite
from optin_fx.rulebook import rule
from optin_fx.verifying import Agreement, verify

__all__ = [
    "Agreement",
    "Cost",
    "Group",
    "Groups",
    "OptinError",
    "Plan",
    "Program",
    "cost",
    "group",
    "load",
    "make_plan",
    "mask",
    "random_plan",
    "rewrite",
    "rule",
    "trace",
    "verify",
]
__version__ = "0.1.0"
