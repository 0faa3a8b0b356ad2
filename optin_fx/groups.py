"""`Groups`: the axes on which a program can shrink, each with its kind, its members, or the reason why it cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import fx

from optin_fx.analysis import Analysis, analyse
from optin_fx.branches import removable
from optin_fx.dims import Axis, Pin, leaves, terms_of
from optin_fx.errors import PlanError
from optin_fx.program import Program
from optin_fx.references import least_units
from optin_fx.source_lines import user_line

if TYPE_CHECKING:
    import networkx

# the first of these roles that a leaf has is its kind; see `Line.roles`
_KINDS = ("kv-group", "query-head", "expert", "head", "rotary-pair", "head-dim", "qk-dim", "v-dim", "conv-group", "residual", "norm-group")
_PLAIN = ("group-width", "filter", "neuron")


@dataclass(frozen=True)
class Group:
    """An axis of the model, shared by all tensors that must shrink together.

    Attributes:
        name: module path of its producers and its kind, unique in the program.
        kind: head, kv-group, query-head, qk-dim, v-dim, head-dim, rotary-pair, neuron, filter, residual, ... or extent.
        extent: number of units.
        members: (parameter name, dim) of every parameter or buffer dim that it is part of.
        pinned: None, or the reason why its extent must stay.
        removable: True if even the last unit may go: the residual branch that it feeds then disappears.
        allowed: None, or the reason that would pin it if the program did not allow it (`Program.allowing`).
        least: fewest units that the model can do with: of experts, as many as a router chooses for each token.
    """

    name: str
    kind: str
    extent: int
    members: tuple[tuple[str, int], ...]
    pinned: str | None = None
    removable: bool = False
    allowed: str | None = None
    least: int = 1

    def __str__(self) -> str:
        state = f", pinned: {self.pinned}" if self.pinned else f", allowed: {self.allowed}" if self.allowed else ""
        return f"{self.name} ({self.kind}, {self.extent} units){state}"


@dataclass(frozen=True)
class Groups:
    """All groups of a program, the prunable ones and the pinned ones. Iterates over every group."""

    groups: tuple[Group, ...]
    fingerprint: str
    unknown: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise PlanError(f"no group is called {name!r}", fix="print(groups) lists the names")

    def __contains__(self, name: object) -> bool:
        return any(group.name == name for group in self.groups)

    @property
    def free(self) -> tuple[Group, ...]:
        """The groups that may shrink."""
        return tuple(group for group in self.groups if group.pinned is None)

    def free_of(self, kinds: Collection[str]) -> tuple[Group, ...]:
        """The groups of these kinds that may shrink; of all kinds if none is named."""
        return tuple(group for group in self.free if not kinds or group.kind in kinds)

    @property
    def pinned(self) -> tuple[Group, ...]:
        """The groups that must keep their extent."""
        return tuple(group for group in self.groups if group.pinned is not None)

    def about(self, query: str) -> tuple[Group, ...]:
        """The group of a name, else all groups that a module or parameter of that name is part of.

        Raises:
            PlanError: there is none.
        """
        found = [g for g in self.groups if g.name == query] or [
            g for g in self.groups if g.name.startswith(query) or any(member.startswith(query) for member, _ in g.members)
        ]
        if not found:
            raise PlanError(f"no group or parameter begins with {query!r}", fix="print(groups) lists the names")
        return tuple(found)

    def explain(self, query: str) -> str:
        """Why the axes of a group, module or parameter are free, tied to what, or pinned.

        Args:
            query: a group's name, or the beginning of a parameter's name (`encoder.layer.3`, `fc1.weight`).
        """
        blocks = []
        for group in self.about(query):
            state = f"must stay: {group.pinned}" if group.pinned else "may shrink; its units go from all of these at once"
            state += f"; free only because it is allowed: {group.allowed}" if group.allowed else ""
            ties = "\n".join(f"    {name}[{dim}]" for name, dim in group.members)
            blocks.append(f"{group.name}: {group.extent} units of kind {group.kind}, {state}\n{ties}")
        return "\n".join(blocks)

    def graph(self) -> networkx.Graph:
        """Who is coupled to whom: a bipartite `networkx` graph of groups and parameters; an edge carries the dim."""
        import networkx

        graph = networkx.Graph()
        for group in self.groups:
            graph.add_node(group.name, bipartite="group", kind=group.kind, extent=group.extent, pinned=group.pinned)
            for name, dim in group.members:
                graph.add_node(name, bipartite="parameter")
                graph.add_edge(group.name, name, dim=dim)
        return graph

    def __str__(self) -> str:
        free, pinned = self.free, self.pinned
        lines = [f"{len(free)} groups may shrink ({sum(g.extent for g in free):,} units), {len(pinned)} must stay"]
        width = max((len(g.name) for g in free), default=0)
        lines += [f"  {g.name:<{width}}  {g.extent:>6}  {_members(g)}{f'  (allowed: {g.allowed})' if g.allowed else ''}" for g in free]
        if pinned:
            lines.append("must stay")
            for reason, count in Counter(_reason(g) for g in pinned).most_common():
                names = [g for g in pinned if _reason(g) == reason]
                shown = ", ".join(f"{m}[{d}]" for g in names[:3] for m, d in g.members[:1])
                lines.append(f"  {count:>4}  {reason}: {shown}{', ...' if len(names) > 3 else ''}")
        for op, count in self.unknown.items():
            lines.append(f"  no rule for {op} ({count} nodes): its axes stay")
        return "\n".join(lines)


def group(program: Program, *, allow: Iterable[str] = ()) -> Groups:
    """Find the groups of a program by dependency analysis of its graph; no model is run, nothing is changed.

    Args:
        allow: what would be free in `program.allowing(*allow)`, which is what to score, search and rewrite then.
    """
    return groups_of(analyse(program.allowing(*allow) if allow else program))


def groups_of(analysis: Analysis) -> Groups:
    """The groups of an analysis."""
    return analysis.once(_read_off)[0]


def leaf_names(analysis: Analysis) -> dict[Axis, str]:
    """The group name of every leaf that is one."""
    return analysis.once(_read_off)[1]


def leaf_of(analysis: Analysis, name: str) -> Axis:
    """The leaf that is the group of a name."""
    return next(leaf for leaf, own in leaf_names(analysis).items() if own == name)


def _read_off(analysis: Analysis) -> tuple[Groups, dict[Axis, str]]:
    pins, allowed = analysis.pinned_leaves(), analysis.allowed_leaves()
    tensors = analysis.program.tensors
    members: dict[Axis, dict[tuple[str, int], None]] = {}
    paired: set[Axis] = set()
    for node in analysis.program.graph_module.graph.nodes:
        if node.op != "get_attr" or node.name not in analysis.axes:
            continue
        for dim, axis in enumerate(analysis.axes[node.name]):
            paired |= _paired(axis)
            for leaf in leaves(axis):
                if leaf.size > 1:
                    members.setdefault(leaf, {})[str(node.target), dim] = None
    from torch import nn

    parameters = {name for name, t in tensors.items() if isinstance(t, nn.Parameter)}
    _refine_roles(analysis, members)
    producers, least = _producers(analysis), least_units(analysis.applied)
    whole = removable(analysis, [leaf for leaf in members if leaf not in pins and leaf not in allowed])
    taken: Counter[str] = Counter()
    groups, names = [], {}
    for leaf, places in members.items():
        if leaf not in pins and least.get(leaf, 1) >= leaf.size > 1:
            pins[leaf] = Pin("as many of its units are chosen as there are")
        if leaf not in pins and not any(name in parameters for name, _ in places):
            pins[leaf] = Pin("only buffers have this axis")
        made_by = producers.get(leaf) or [name for name, _ in places]
        kind = _kind(leaf, paired=leaf in paired)
        stem = f"{_common_module(made_by)}:{kind}".lstrip(":")
        taken[stem] += 1
        name = stem if taken[stem] == 1 else f"{stem}#{taken[stem]}"
        names[leaf] = name
        reasons = (_reason_in_words(analysis, pins.get(leaf)), _reason_in_words(analysis, allowed.get(leaf)))
        waived = None if reasons[0] else reasons[1]
        groups.append(Group(name, kind, leaf.size, tuple(places), reasons[0], leaf in whole, waived, least.get(leaf, 1)))
    unknown = {op: len(nodes) for op, nodes in analysis.unknown.items()}
    return Groups(tuple(groups), analysis.program.fingerprint, unknown), names


def _reason_in_words(analysis: Analysis, why: Pin | None) -> str | None:
    return str(replace(why, source=source_of(analysis, why.node))) if why else None


def _paired(axis: Axis) -> set[Axis]:
    """Leaves of which a concatenation has two and more next to each other: the halves that a rotary embedding turns into each other."""
    found: set[Axis] = set()
    stack = [axis.root()]
    while stack:
        top = stack.pop()
        if top.sign == "+":
            terms = Counter(term.root() for term in terms_of(top))
            found |= {term for term, count in terms.items() if count > 1 and not term.sign}
        stack += [part.root() for part in top.parts]
    return found


def _kind(leaf: Axis, *, paired: bool) -> str:
    roles = set(leaf.roles)
    if {"qk-dim", "v-dim"} <= roles:
        roles.add("head-dim")
    if paired and roles & {"qk-dim", "head-dim"}:
        roles.add("rotary-pair")
    return next((role for role in (*_KINDS, *_PLAIN) if role in roles), "extent")


def _refine_roles(analysis: Analysis, members: dict[Axis, dict[tuple[str, int], None]]) -> None:
    """An attention's head axis that came out as a product is (key-value groups, query heads in a group)."""
    for applied in analysis.applied.values():
        for factor, role in applied.line.roles.items():
            if role != "head" or factor not in applied.factors:
                continue
            parts = [leaf for leaf in leaves(applied.factors[factor]) if leaf in members]
            if len(parts) == 2:
                parts[0].roles.add("kv-group")
                parts[1].roles.add("query-head")


def _producers(analysis: Analysis) -> dict[Axis, list[str]]:
    """Parameters of contractions that write a leaf: the weights whose output dim it is."""
    found: dict[Axis, list[str]] = {}
    for applied in analysis.applied.values():
        if not applied.line.macs:
            continue
        contracted = applied.contracted()
        sides = list(zip(applied.operands, applied.call.operands, strict=True))
        # a factor that an activation brings along (depthwise channels, a batch) passes through, it is not made here
        passing = {n for dims, o in sides if o.node.op != "get_attr" for term in dims or () for n in term.names()}
        for dims, operand in sides:
            if operand.node.op != "get_attr" or len(operand.shape) < 2:
                continue
            for term in dims or ():
                for name in term.names():
                    if name not in contracted and name not in passing:
                        for leaf in leaves(applied.factors[name]):
                            found.setdefault(leaf, []).append(str(operand.node.target))
    return found


def _common_module(parameters: list[str]) -> str:
    paths = [name.split(".")[:-1] for name in dict.fromkeys(parameters)]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def source_of(analysis: Analysis, node_name: str) -> str:
    """The user's source line of a node, `file:line`, from what torch.export recorded."""
    node = analysis.once(_nodes_by_name).get(node_name)
    return (user_line(node.meta.get("stack_trace")) or "").rsplit("/", 1)[-1] if node else ""


def _nodes_by_name(analysis: Analysis) -> dict[str, fx.Node]:
    return {node.name: node for node in analysis.program.graph_module.graph.nodes}


def _reason(group: Group) -> str:
    return (group.pinned or "").split(" at %")[0]


def _members(group: Group) -> str:
    stem = _common_module([name for name, _ in group.members])
    cut = len(stem) + 1 if stem else 0
    shown = [f"{name[cut:]}[{dim}]" for name, dim in group.members]
    return " ".join(shown[:8]) + (f" ... {len(shown)} in all" if len(shown) > 8 else "")
