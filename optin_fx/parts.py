"""Which part of a model a node belongs to, by module path."""

from __future__ import annotations

from fnmatch import fnmatch

from torch import fx

from optin_fx.program import Program


def in_part(path: str, pattern: str) -> bool:
    """True if a module path lies in a part: any run of its leading names, or of names inside it, matches the pattern.

    `encoder`, `bert.encoder` and `*.layer.[0-3]` all hold `bert.encoder.layer.0.attention`.
    """
    names = path.split(".")
    runs = [".".join(names[start:end]) for end in range(1, len(names) + 1) for start in range(end)]
    return bool(path) and any(fnmatch(run, pattern) for run in runs)


def module_paths(program: Program) -> dict[str, str]:
    """The module path of every node: as torch.export recorded it, else that of the weights it reads, else its inputs' common path."""
    found: dict[str, str] = {}
    for node in program.graph_module.graph.nodes:
        found[node.name] = (
            _recorded(node) or _of_weights(node) or _common([found[n.name] for n in node.all_input_nodes if found.get(n.name)])
        )
    return found


def _recorded(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(value[0]) for value in stack.values() if isinstance(value, tuple) and value]
    return paths[-1].removeprefix("L['self'].").removeprefix("L['self']") if paths else ""


def _of_weights(node: fx.Node) -> str:
    if node.op == "get_attr":
        return str(node.target).rpartition(".")[0]
    return next((str(n.target).rpartition(".")[0] for n in node.all_input_nodes if n.op == "get_attr"), "")


def _common(paths: list[str]) -> str:
    split = [path.split(".") for path in paths]
    common = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)
