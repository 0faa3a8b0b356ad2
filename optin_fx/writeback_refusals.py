"""Why the code of a module cannot follow a plan: which module, which line, which groups."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from optin_fx.errors import WriteBackError
from optin_fx.plan import Cut
from optin_fx.program import Program
from optin_fx.writeback_attributes import module_of, touched


def inputs_of(program: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # a cache among the inputs is written to by every call
    return copy.deepcopy((program.args, program.kwargs))


def _refusal(what: str, cut: Cut, path: str | None, at: str | None) -> WriteBackError:
    groups = touched(cut, path) if path is not None else []
    named = ", ".join(groups[:4]) + (", ..." if len(groups) > 4 else "")
    fix = f"leave {named or 'its units'} out of the plan, or stay with the smaller program (`pruned.module()` trains, saves and exports)"
    return WriteBackError(what, at=at, so="nothing was changed", fix=fix)


def raised(trial: nn.Module, cut: Cut, error: Exception) -> WriteBackError:
    paths = {id(module): path for path, module in trial.named_modules()}
    path, place, frame = None, "", error.__traceback__
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        code = frame.tb_frame.f_code
        # the hook machinery of nn.Module is nobody's own line
        if isinstance(owner, nn.Module) and id(owner) in paths and not code.co_name.endswith("_call_impl"):
            path = paths[id(owner)]
            place = f"{_titled(owner, path)}, {code.co_filename.rpartition('/')[2]}:{frame.tb_lineno}: "
        frame = frame.tb_next
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    failure = _refusal("the code of a module cannot follow the plan", cut, path, f"{place}{type(error).__name__}: {reason}".rstrip(": "))
    failure.__cause__ = error
    return failure


def differs(trial: nn.Module, cut: Cut, small: fx.GraphModule, how: str) -> WriteBackError:
    path = first_difference(trial, cut.analysis.program, small)
    at = None if path is None else _titled(trial.get_submodule(path), path)
    for node in frozen_scales(cut.analysis.program, small):
        inner = module_of(node) or ""
        if path is None or path.startswith(inner) or inner.startswith(path):
            path = inner
            does = "computes its softmax scale from" if "attention" in node.name else "divides by"
            at = f"{_titled(trial.get_submodule(inner), inner)} {does} the width that it finds (%{node.name})"
            break
    return _refusal(f"the module differs from the smaller program {how}", cut, path, at)


def frozen_scales(program: Program, small: fx.GraphModule) -> list[fx.Node]:
    """Nodes to which slicing has written a number that the user's code computes from a width."""
    dense = {node.name: node for node in program.graph_module.graph.nodes}

    def numbers(node: fx.Node | None) -> list[Any]:
        values = pytree.tree_leaves((node.args, node.kwargs)) if node is not None else []
        return [value for value in values if isinstance(value, float)]

    return [node for node in small.graph.nodes if node.name in dense and len(numbers(node)) > len(numbers(dense[node.name]))]


def _titled(module: nn.Module, path: str) -> str:
    return f"{path} ({type(module).__name__})" if path else type(module).__name__


Print = tuple[tuple[int, ...], float, float]


def first_difference(trial: nn.Module, program: Program, small: fx.GraphModule) -> str | None:
    """The first module, innermost first, whose output no node of its own in the smaller program computes.

    Outputs are compared by shape, sum and sum of magnitudes, so that nothing big is kept.
    """
    expected: dict[str, list[Print]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            for path in {str(entry[0]).partition("@")[0] for entry in (n.meta.get("nn_module_stack") or {}).values()}:
                expected.setdefault(path, []).extend(_prints(value))
            return value

    order: list[tuple[str, list[Print]]] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, path=path: order.append((path, _prints(output)[:1])))
        for path, module in trial.named_modules()
    ]
    args, kwargs = inputs_of(program)
    try:
        with torch.no_grad():
            trial(*args, **kwargs)
            Recorder(small).run(*pytree.tree_leaves(inputs_of(program)))
    finally:
        for hook in hooks:
            hook.remove()
    for path, ours in order:
        if ours and path in expected and not any(_close(ours[0], theirs) for theirs in expected[path]):
            return path
    return None


def _prints(value: Any) -> list[Print]:
    tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    return [(tuple(t.shape), t.double().sum().item(), t.double().abs().sum().item()) for t in tensors]


def _close(ours: Print, theirs: Print) -> bool:
    slack = 1e-4 * theirs[2] + 1e-9
    return ours[0] == theirs[0] and abs(ours[1] - theirs[1]) <= slack and abs(ours[2] - theirs[2]) <= slack
