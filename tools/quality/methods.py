"""Methods as text: the pipelines of passes that a grid is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from optin_fx.errors import PipelineError
from optin_fx.pipeline import Pass, parse_pipeline


@dataclass(frozen=True)
class Method:
    """One line of a table.

    Attributes:
        name: how the table calls it.
        text: its pipeline, without budget, seed and task, which are filled in.
        peer: somebody else's method, as opposed to a criterion under this project's search and compensation.
        tasks: the tasks on which it can be run, or can be afforded; empty for all.
    """

    name: str
    text: str
    peer: bool = False
    tasks: tuple[str, ...] = ()

    def passes(self, budget: str, seed: int, task: str) -> tuple[Pass, ...]:
        """The passes with a budget, a seed and a task's name filled in, where they have such options.

        Raises:
            PipelineError: a pass is not there, or has not such an option.
        """
        return tuple(_with(step, budget=budget, seed=seed, task=task) for step in parse_pipeline(self.text).passes)

    def runs_on(self, task: str) -> bool:
        return not self.tasks or task in self.tasks


def available(methods: tuple[Method, ...]) -> tuple[tuple[Method, ...], dict[str, str]]:
    """(those whose passes exist, why the others do not)."""
    found, missing = [], {}
    for method in methods:
        try:
            method.passes("flops <= 50%", 0, "reviews")
            found.append(method)
        except PipelineError as error:
            missing[method.name] = str(error).splitlines()[0]
    return tuple(found), missing


Settings = list[dict[str, str]]


def settings(steps: Iterable[Pass]) -> Settings:
    """Every option of every pass, also those at their defaults, as JSON-able text."""
    return [{"pass": step.name(), **{option.name: repr(getattr(step, option.name)) for option in fields(step)}} for step in steps]


def still_mean(stored: Settings, steps: Iterable[Pass]) -> bool:
    """Whether results under the stored settings are results of these passes, which have the same text form.

    A default that was changed since, or an option that is gone, makes them others'; an option that came later does not, as its default
    is what was done before.
    """
    return all(old.items() <= new.items() for old, new in zip(stored, settings(steps), strict=True))


def _with(step: Pass, **options: Any) -> Pass:
    known = {option.name for option in fields(step)}
    return replace(step, **{name: value for name, value in options.items() if name in known})
