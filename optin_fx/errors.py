"""Exceptions of optin-fx. Every one reads the same way: what happened, at which place, so what, and how to fix it."""

from __future__ import annotations


class OptinError(Exception):
    """Base of all errors raised on purpose.

    The message has up to four lines: *what* went wrong, *at* which place (node, source line, file, option),
    *so* what does not work because of it, and what to do to *fix* it.
    """

    def __init__(self, what: str, *, at: str | None = None, so: str | None = None, fix: str | None = None) -> None:
        self.what, self.at, self.so, self.fix = what, at, so, fix
        lines = [what]
        lines += [f"  {word:<4}{text}" for word, text in (("at", at), ("so", so), ("fix", fix)) if text]
        super().__init__("\n".join(lines))


class TraceError(OptinError):
    """`torch.export` refused the model."""


class LoadError(OptinError):
    """A file is not a program that optin-fx can read."""


class SaveError(OptinError):
    """A result cannot be written where it was asked to go."""


class DataError(OptinError):
    """Calibration data is empty, or does not fit the model's inputs."""


class ScoreError(OptinError):
    """Scores are missing, of the wrong shape, or not finite."""


class BudgetError(OptinError):
    """A budget cannot be parsed or cannot be met."""


class PlanError(OptinError):
    """A plan does not fit the program that it is applied to."""


class RuleError(OptinError):
    """An op rule is malformed, registered twice, or contradicts the op that it describes."""


class VerifyError(OptinError):
    """The smaller program does not equal the masked one."""


class WriteBackError(OptinError):
    """The code of an eager module cannot follow a plan, or the module is not the one that the plan is for."""


class PipelineError(OptinError):
    """A pass reads something that no earlier pass has written, or its options are wrong."""


class DistributedError(OptinError):
    """Processes that work together do not agree on what they work on."""


class LoweringError(OptinError):
    """A target refused to build, save, load or run an engine."""


class MissingExtra(OptinError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, *, needed_for: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"{needed_for} needs the package '{package}', which is not installed",
            fix=f"pip install 'optin-fx[{extra}]'",
        )
