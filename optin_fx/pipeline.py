"""Passes and how they run one after another.

A pass is a frozen dataclass: its fields are its options, its docstring its documentation, and its text form
(`score-fisher{samples=64}`) its identity in logs, plans and on the command line. It declares what it reads and writes in the
`State`; that is checked before anything runs.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import FunctionType
from typing import Any, ClassVar, TypeVar

import torch

from optin_fx.costs import Measure
from optin_fx.data import Batch, batches_of, first_samples
from optin_fx.errors import PipelineError
from optin_fx.plan import Plan
from optin_fx.program import Program
from optin_fx.scores import Scores

_PASSES: dict[str, type[Pass]] = {}


@dataclass(frozen=True)
class State:
    """What flows between passes. A field is None until a pass has written it.

    Attributes:
        program: the dense program.
        data: calibration batches.
        scores, plan, small: results of the stages.
        latencies: by target, seconds as a function of the groups' extents, for budgets on latency.
        log: (pass, seconds) of every pass that ran.
    """

    program: Program
    data: Sequence[Batch] | None = None
    scores: Scores | None = None
    plan: Plan | None = None
    small: Program | None = None
    latencies: Mapping[str, Measure] | None = None
    log: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Pass:
    """Base of all passes. A subclass is registered under its class name in kebab case."""

    reads: ClassVar[tuple[str, ...]] = ("program",)
    writes: ClassVar[tuple[str, ...]] = ()
    abstract: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__dict__.get("abstract", False):
            return
        cls.abstract = False
        name = cls.name()
        known = _PASSES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise PipelineError(
                f"two passes are called {name!r}", at=f"{known.__module__} and {cls.__module__}", fix="rename one of the classes"
            )
        _PASSES[name] = cls

    @classmethod
    def name(cls) -> str:
        """Class name in kebab case: `ScoreTaylor` is `score-taylor`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __str__(self) -> str:
        shown = []
        for option in fields(self):
            value = getattr(self, option.name)
            if value != option.default:
                shown.append(f"{option.name}={_shown(value)}")
        return self.name() + (f"{{{', '.join(shown)}}}" if shown else "")

    def apply(self, state: State) -> State:
        """Run on a state and return the next one."""
        raise TypeError(f"{type(self).__name__} does not say what it does: define apply()")


def _shown(value: Any) -> str:
    """An option's value as text; a function by its name, which says more than its address."""
    return f"{value.__module__}:{value.__qualname__}" if isinstance(value, FunctionType) else str(value)


@dataclass(frozen=True)
class ScorePass(Pass):
    """A criterion. Subclasses define `score(program, batches) -> {group: tensor}`.

    Attributes:
        normalise: how scores are made comparable between groups, see `Scores.normalised`; "none" leaves them as they are.
        samples: use so many samples of the data, the first ones; None uses all.
    """

    abstract: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("program",)
    writes: ClassVar[tuple[str, ...]] = ("scores",)
    needs_data: ClassVar[bool] = True
    additive: ClassVar[bool] = True

    normalise: str = field(default="none", kw_only=True)
    samples: int | None = field(default=None, kw_only=True)

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Scores of every prunable group, `[extent]` each, higher = keep."""
        raise TypeError(f"{type(self).__name__} does not say how it scores: define score()")

    def score_after(self, program: Program, batches: Sequence[Batch], earlier: Scores | None) -> dict[str, torch.Tensor]:
        """Like `score`, for a criterion that can build on scores that are there already; by default they are left alone."""
        return self.score(program, batches)

    def apply(self, state: State) -> State:
        """Score the program of a state."""
        from optin_fx.annotation import annotate
        from optin_fx.digests import facts_of
        from optin_fx.execution import running
        from optin_fx.placement import placed

        batches = batches_of(state.program, state.data, needed_for=self.name()) if self.needs_data or state.data is not None else []
        if self.samples is not None:
            batches = first_samples(batches, self.samples, needed_for=self.name())
        facts = facts_of(state.program, batches, self)
        program, moved = placed(state.program, batches)
        with running(self.name(), facts):
            found = self.score_after(program, moved, state.scores)
        scores = self._scores(state.program, found, {"batches": len(batches), **facts})
        annotate(state.program, scores)
        return replace(state, scores=scores)

    def _scores(self, program: Program, found: dict[str, torch.Tensor], facts: dict[str, Any]) -> Scores:
        from optin_fx.groups import group
        from optin_fx.scores import check

        values = {name: value.detach().double().cpu() for name, value in found.items() if not name.startswith("extra/")}
        extra = {name[6:]: value.detach().cpu() for name, value in found.items() if name.startswith("extra/")}
        groups = group(program)
        scores = Scores(values, str(self), groups.fingerprint, self.additive, extra, facts)
        check(scores, groups)
        return scores.normalised(self.normalise, program)


@dataclass(frozen=True)
class SearchPass(Pass):
    """A search. Subclasses define `search(program, scores, budget) -> Plan` and have a `budget` option."""

    abstract: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("program", "scores")
    writes: ClassVar[tuple[str, ...]] = ("plan",)

    def search(self, program: Program, scores: Scores) -> Plan:
        """The plan that keeps most score within the budget."""
        raise TypeError(f"{type(self).__name__} does not say how it searches: define search()")

    def apply(self, state: State) -> State:
        """Search a plan for the program and scores of a state."""
        assert state.scores is not None
        return replace(state, plan=self.search(state.program, state.scores))


@dataclass(frozen=True)
class Pipeline:
    """A tuple of passes. `callbacks` are called with (pass, state after it, seconds)."""

    passes: tuple[Pass, ...]
    callbacks: tuple[Callable[[Pass, State, float], None], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return " | ".join(map(str, self.passes))

    def check(self, state: State) -> None:
        """Refuse a pipeline in which a pass reads what nothing has written.

        Raises:
            PipelineError: names the pass and what it misses.
        """
        there = {option.name for option in fields(state) if getattr(state, option.name) is not None}
        for step in self.passes:
            missing = [name for name in step.reads if name not in there]
            if missing:
                writers = [name for name, cls in registered_passes().items() if missing[0] in cls.writes]
                raise PipelineError(
                    f"{step.name()} reads {', '.join(missing)}, which nothing before it writes",
                    at=str(self),
                    fix=f"put a pass before it that writes {missing[0]}: {', '.join(writers) or 'none is known'}",
                )
            there |= set(step.writes)

    def run(self, state: State) -> State:
        """Check, then run the passes in order."""
        self.check(state)
        for step in self.passes:
            started = time.perf_counter()
            state = step.apply(state)
            seconds = time.perf_counter() - started
            state = replace(state, log=(*state.log, (str(step), seconds)))
            for callback in self.callbacks:
                callback(step, state, seconds)
        return state


P = TypeVar("P", bound=Pass)


def registered_passes() -> dict[str, type[Pass]]:
    """All known passes by name, sorted."""
    return dict(sorted(_PASSES.items()))


def find_pass(text: str | Pass, stage: str = "", **options: Any) -> Pass:
    """A pass from its text form; the stage's prefix may be left out (`fisher` for `score-fisher`).

    Raises:
        PipelineError: no such pass, or no such option.
    """
    if isinstance(text, Pass):
        return text
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\{(.*)\})?\s*", text)
    if match is None:
        raise PipelineError(f"cannot read the pass {text!r}", fix="write name or name{option=value, ...}")
    name, inside = match.group(1), match.group(2)
    cls = _PASSES.get(name) or _PASSES.get(f"{stage}-{name}")
    if cls is None:
        known = [n for n in registered_passes() if not stage or n.startswith(stage)]
        raise PipelineError(f"there is no pass called {name!r}", fix=f"choose one of: {', '.join(known)}")
    given = {**_options(inside or "", name), **options}
    allowed = {option.name for option in fields(cls)}
    unknown = [key for key in given if key not in allowed]
    if unknown:
        raise PipelineError(f"{cls.name()} has no option {unknown[0]!r}", fix=f"its options: {', '.join(sorted(allowed)) or 'none'}")
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise PipelineError(f"{cls.name()} refuses its options: {error}", fix="see its documentation: optin-fx passes") from error


def find_criterion(text: str, asked_by: str) -> ScorePass:
    """A scoring pass that another pass builds on, from its text form.

    Args:
        asked_by: the pass and its option, for the message.

    Raises:
        PipelineError: no such pass or option, or it does not score.
    """
    step = find_pass(text, "score")
    if not isinstance(step, ScorePass):
        raise PipelineError(f"{text!r} is no criterion", at=asked_by, fix="name a score pass")
    return step


def scores_within(step: ScorePass, program: Program, batches: Sequence[Batch], earlier: Scores | None) -> dict[str, torch.Tensor]:
    """Values of a criterion that another one builds on, `[extent]` float64 by group; earlier scores are taken where they are its."""
    from optin_fx.groups import group

    if earlier is None or (earlier.method, earlier.fingerprint) != (str(step), group(program).fingerprint):
        earlier = step._scores(program, step.score(program, batches), {})
    return {name: value.clone() for name, value in earlier.values.items()}


def _options(text: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in split_at(text, ",") if text.strip() else ():
        key, equals, value = item.partition("=")
        if not equals:
            raise PipelineError(f"cannot read the option {item.strip()!r} of {name}", fix="write option=value")
        try:
            found[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found[key.strip()] = value.strip()
    return found


def as_tuples(step: Pass, *options: str) -> None:
    """Make tuples of options of a frozen pass that take one text or several."""
    for name in options:
        value = getattr(step, name)
        object.__setattr__(step, name, (value,) if isinstance(value, str) else tuple(value))


def split_at(text: str, at: str) -> list[str]:
    """The parts of a text between the separators that are neither within brackets nor within quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote or character in "'\"":
            quote = "" if character == quote else quote or character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == at and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def parse_pipeline(text: str | Iterable[str | Pass]) -> Pipeline:
    """A pipeline from `score-fisher | search-rank{budget=...}` or from a sequence of passes and their texts."""
    items = split_at(text, "|") if isinstance(text, str) else text
    return Pipeline(tuple(find_pass(item) for item in items))
