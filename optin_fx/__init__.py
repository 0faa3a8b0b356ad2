"""optin-fx: makes trained networks smaller and faster in one shot, without retraining."""

from optin_fx.program import Program, load, trace

__all__ = ["Program", "load", "trace"]
__version__ = "0.1.0"
