"""Which integer attributes of a model's modules are extents that shrink, and to what: read off the axes of the traced graph.

A module's Python code holds sizes in plain integers: `num_heads`, `out_channels`, `all_head_size`. An attribute can only be an
extent that the module's own ops see, so its value is looked up among the dims of the tensors that those ops read and write (whole,
or as a run of the factors that a dim is made of). Where several axes of that size become different, the attribute's name says which
is meant first; the others are alternatives that a trial may choose. No table of modules or models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from torch import nn

from optin_fx.analysis import Analysis
from optin_fx.dims import Axis, factors_of, leaves, terms_of
from optin_fx.groups import groups_of, leaf_names
from optin_fx.plan import Cut

_NOT_EXTENTS = {
    "layer", "layers", "depth", "block", "blocks", "stage", "stages", "stride", "padding", "dilation", "kernel", "patch", "patches",
    "window", "image", "img", "vocab", "position", "positions", "max", "length", "idx", "index", "axis", "seed", "classes", "labels",
    "tokens", "chunk", "ratio", "start", "batch", "resolution", "padded",
}  # fmt: skip
_OF_PARTS = {"head", "heads", "dim", "dims", "size", "width", "channels", "features", "hidden", "embed", "inner", "planes", "chs", "units"}
_COUNTS = {"head", "kv-group", "query-head"}
_WIDTHS = {"qk-dim", "v-dim", "head-dim", "rotary-pair"}


@dataclass(frozen=True)
class Meaning:
    """An axis, or a run of its factors, that an integer may stand for.

    Attributes:
        old, new: its extent before and after.
        kinds: the kinds of the groups that it is made of.
        sides: "in" where an op of the module sums over it, "out" where none does.
        whole: True for a dim of a tensor, False for a part of one.
    """

    old: int
    new: int
    kinds: frozenset[str]
    sides: frozenset[str]
    whole: bool


@dataclass(frozen=True)
class Choice:
    """An integer attribute that stands for an axis that shrinks: the new values that it may take, the likeliest first."""

    module: str
    name: str
    family: tuple[str, str]  # modules of one class are written by one author, so their attributes mean the same
    old: int
    options: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.module}.{self.name}".lstrip(".")


def choices(model: nn.Module, cut: Cut) -> list[Choice]:
    """The integer attributes that have to follow a cut, in module order."""
    own = _meanings(cut)
    found = []
    for path, module in model.named_modules():
        below = [m for inner, some in own.items() if not path or inner.startswith(f"{path}.") for m in some]
        for name, value in vars(module).items():
            if type(value) is not int or value < 2 or name.startswith("_"):
                continue
            options = _options(name, value, own.get(path, ()), below)
            if options and options != (value,):
                found.append(Choice(path, name, (type(module).__qualname__, name), value, options))
    return found


def _options(name: str, value: int, own: Iterable[Meaning], below: Iterable[Meaning]) -> tuple[int, ...]:
    """New values of an attribute, the likeliest first; none where nothing of that extent shrinks."""
    words = set(name.lower().split("_"))
    if words & _NOT_EXTENTS:
        return ()
    near = [m for m in own if m.old == value]
    speaks = bool(words & _OF_PARTS)
    parts = [m for m in below if m.old == value] if speaks or near else []
    if not any(m.new != value for m in near):
        # a container's attribute may describe what its parts do, if its name speaks of an extent at all
        if near or len({m.new for m in parts}) > 1:
            return () if near else (value, *sorted({m.new for m in parts} - {value}, reverse=True))
        near = parts
    ranked = sorted([(m, 0) for m in near] + [(m, 1) for m in parts], key=lambda pair: (-_fit(words, pair[0]), pair[1], not pair[0].whole))
    return tuple(dict.fromkeys(m.new for m, _ in ranked))


def _fit(words: set[str], meaning: Meaning) -> int:
    """How well an attribute's name speaks of an axis: 2 for what it names, 1 for what it may mean by default, 0 for anything else."""
    kinds = meaning.kinds
    widths = bool(words & {"dim", "size", "width", "channels"})
    keys = bool(words & {"kv"}) or {"key", "value"} <= words
    if words & {"in", "nx", "out", "nf"}:
        side = "in" if words & {"in", "nx"} else "out"
        return 2 if side in meaning.sides and meaning.whole else 0
    if "groups" in words:
        wanted = {"query-head"} if keys else {"conv-group", "norm-group"}
        return 2 if len(kinds) == 1 and kinds <= wanted else 0
    if words & {"head", "heads", "nhead"}:
        if not widths:
            return 2 if kinds == {"kv-group"} or (not keys and kinds and kinds <= _COUNTS) else 0
        if "all" not in words:
            return 2 if kinds and kinds <= _WIDTHS else 0
    if words & {"all", "attn", "inner"} and kinds & _COUNTS and kinds & _WIDTHS:
        return 2
    if words & {"intermediate", "inner", "ff", "ffn", "mlp"}:
        return 2 if kinds == {"neuron"} else 0
    # a plain `dim` or `hidden_size` is most often the stream that the module reads and writes
    return 1 if meaning.new == meaning.old else 0


def _meanings(cut: Cut) -> dict[str, set[Meaning]]:
    """By module path, what the integers in that module's code can stand for: the axes that its own ops and parameters have."""
    analysis = cut.analysis
    names, groups = leaf_names(analysis), {g.name: g for g in groups_of(analysis)}
    kinds = {leaf: groups[name].kind for leaf, name in names.items()}
    found: dict[str, set[Meaning]] = defaultdict(set)
    known: dict[tuple[Axis, frozenset[str]], set[Meaning]] = {}
    for path, axis, sides in _seen(analysis):
        key = (axis.root(), sides)
        if key not in known:
            known[key] = {_meaning(cut, run, kinds, sides, whole) for run, whole in _runs(axis)}
        found[path] |= known[key]
    return found


def _meaning(cut: Cut, run: list[Axis], kinds: dict[Axis, str], sides: frozenset[str], whole: bool) -> Meaning:
    of = frozenset(kinds[leaf] for axis in run for leaf in leaves(axis) if leaf in kinds)
    return Meaning(prod(axis.size for axis in run), prod(cut.size(axis) for axis in run), of, sides, whole)


def _seen(analysis: Analysis) -> Iterator[tuple[str, Axis, frozenset[str]]]:
    """(module path, axis, sides) of every dim that an op of the module, or an op that uses its parameters, reads or writes."""
    summed: set[tuple[str, Axis]] = set()
    found: list[tuple[str, Axis]] = []
    for node in analysis.program.graph_module.graph.nodes:
        path = module_of(node)
        results = analysis.axes.get(node.name) or []
        for axis in (a for dims in results for a in (dims if isinstance(dims, list) else [dims])):
            if path is not None and axis is not None:
                found.append((path, axis.root()))  # noqa: PERF401  one more nested generator would not be read by anybody
        applied = analysis.applied.get(node.name)
        if applied is None:
            continue
        contracted = applied.contracted()
        for dims, operand in zip(applied.operands, applied.call.operands, strict=False):
            owner = str(operand.node.target).rpartition(".")[0] if operand.node.op == "get_attr" else None
            for term, axis in zip(dims or (), analysis.axes[operand.node.name], strict=False):
                for place in {path, owner}:
                    if place is None:
                        continue
                    found.append((place, axis.root()))
                    if set(term.names()) & contracted:
                        summed.add((place, axis.root()))
    for place, axis in dict.fromkeys(found):
        yield place, axis, frozenset({"in" if (place, axis) in summed else "out"})


def touched(cut: Cut, path: str) -> list[str]:
    """Groups that a cut shrinks and that a module's own ops see."""
    names = leaf_names(cut.analysis)
    found = [names[leaf] for place, axis, _ in _seen(cut.analysis) if place == path for leaf in leaves(axis) if leaf in cut.kept]
    return list(dict.fromkeys(found))


def _runs(axis: Axis) -> Iterator[tuple[list[Axis], bool]]:
    """An axis, every run of its factors, and the same of the terms of sums: what code may multiply out or split off."""
    yield [axis.root()], True
    stack = [axis.root()]
    while stack:
        top = stack.pop()
        factors, terms = factors_of(top), terms_of(top)
        if len(factors) > 1:
            yield from ((factors[i:j], False) for i in range(len(factors)) for j in range(i + 1, len(factors) + 1))
        below = terms if len(terms) > 1 else factors if len(factors) > 1 else []
        yield from (([term.root()], False) for term in terms if len(terms) > 1)
        stack.extend(part.root() for part in below)


def module_of(node: object) -> str | None:
    """Path of the innermost module whose code made a node, as torch.export recorded it."""
    stack = getattr(node, "meta", {}).get("nn_module_stack")
    if not stack:
        return None
    path = str(list(stack.values())[-1][0]).partition("@")[0]  # `@1` marks the second call of a shared module
    return None if path.startswith("_empty_nn_module_stack") else path
