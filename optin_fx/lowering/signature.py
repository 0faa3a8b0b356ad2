"""How a model is called, as data: the flat tensors that an engine sees, and the way there and back.

An engine file outlives the Python model, so everything here is JSON-able: names, dtypes, sizes, named symbols, and torch's own
text form of the input and output structures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from optin_fx.containers import class_names, register_by_name
from optin_fx.errors import LoweringError
from optin_fx.lowering.leaf import Leaf, checked, leaf_of
from optin_fx.lowering.symbols import name_symbols
from optin_fx.program import Program


@dataclass(frozen=True)
class Signature:
    """Inputs, outputs and symbols of a program.

    Attributes:
        inputs, outputs: the leaves in flattening order.
        bounds: per symbol, the least and the largest size (`None`: not bounded).
        in_spec, out_spec: the structures in torch's text form.
        parameters: names of `forward`'s parameters in order, so that a keyword may stand for a position.
        containers: classes that are to be known before the structures can be read, see `optin_fx.containers.class_names`.
    """

    inputs: tuple[Leaf, ...]
    outputs: tuple[Leaf, ...]
    bounds: Mapping[str, tuple[int, int | None]]
    in_spec: str
    out_spec: str
    parameters: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()

    @staticmethod
    def of(program: Program, dim_names: Mapping[str, Mapping[int, str]] | None = None) -> Signature:
        """Read the signature off a program.

        Args:
            program: the program; its dynamic dims become named symbols.
            dim_names: input name -> dim -> symbol name. By default a leading dynamic dim is `batch` and any other
                `<input>_dim<k>`.
        """
        exported = program.exported
        values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
        user_inputs = [spec.arg for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
        user_outputs = [spec.arg for spec in exported.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
        symbols = name_symbols({arg.name: values.get(arg.name) for arg in user_inputs}, dim_names)
        in_spec, out_spec = exported.call_spec.in_spec, exported.call_spec.out_spec
        if in_spec is None or out_spec is None:
            raise LoweringError("the exported program has no call structure", fix="export it again with torch.export.export")
        output_names = _distinct(_paths(out_spec), taken={arg.name for arg in user_inputs})
        bounds = {}
        for symbol, limits in exported.range_constraints.items():
            if str(symbol) in symbols:
                low, high = str(limits.lower), str(limits.upper)
                bounds[symbols[str(symbol)]] = (int(low), int(high) if high.isdigit() else None)
        return Signature(
            inputs=tuple(leaf_of(arg, arg.name, values, symbols) for arg in user_inputs),
            outputs=tuple(leaf_of(arg, name, values, symbols, follows=True) for arg, name in zip(user_outputs, output_names, strict=True)),
            bounds={name: bounds.get(name, (0, None)) for name in symbols.values()},
            in_spec=pytree.treespec_dumps(in_spec),
            out_spec=pytree.treespec_dumps(out_spec),
            parameters=_parameters(program),
            containers=tuple(class_names(in_spec, out_spec)),
        )

    # -- calls ---------------------------------------------------------------------------------------------------

    @cached_property
    def tensor_inputs(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in self.inputs if leaf.is_tensor)

    @cached_property
    def tensor_outputs(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in self.outputs if leaf.is_tensor)

    @cached_property
    def _specs(self) -> tuple[Any, Any]:
        return pytree.treespec_loads(self.in_spec), pytree.treespec_loads(self.out_spec)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """The tensors of a call in the order of `tensor_inputs`.

        Raises:
            LoweringError: structure, dtype, size or a baked constant differs from what the program was traced with.
        """
        tensors = []
        symbols: dict[str, int] = {}
        for value, leaf in zip(self._leaves(args, kwargs), self.inputs, strict=True):
            if leaf.is_tensor:
                tensors.append(checked(value, leaf, symbols, self.bounds))
            elif value != leaf.constant:
                raise LoweringError(
                    f"input {leaf.name} is {value!r}, but the program was traced with {leaf.constant!r}",
                    so="that value is part of the graph",
                    fix="trace the model again with the value that you need",
                )
        return tensors

    def resized(self, args: Sequence[Any], kwargs: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call with other sizes, by symbol: entries are repeated or dropped along every dim whose size is that symbol."""
        leaves = self._leaves(args, kwargs)
        for index, leaf in enumerate(self.inputs):
            for dim, size in enumerate(leaf.sizes):
                if size in sizes:
                    entries = torch.arange(sizes[str(size)], device=leaves[index].device) % leaves[index].shape[dim]
                    leaves[index] = leaves[index].index_select(dim, entries)
        new_args, new_kwargs = pytree.tree_unflatten(leaves, self._specs[0])
        return new_args, new_kwargs

    def call(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The other way: `(args, kwargs)` around the tensors of `tensor_inputs`."""
        rest = iter(tensors)
        args, kwargs = pytree.tree_unflatten([next(rest) if leaf.is_tensor else leaf.constant for leaf in self.inputs], self._specs[0])
        return args, kwargs

    def unflatten(self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> Any:
        """The model's output structure around the tensors of `tensor_outputs`, with the numbers that the sizes of `inputs` give."""
        rest, sizes = iter(outputs), self._sizes(inputs)
        leaves = [next(rest) if leaf.is_tensor else leaf.number(sizes) for leaf in self.outputs]
        return pytree.tree_unflatten(leaves, self._specs[1])

    def _sizes(self, inputs: Sequence[torch.Tensor]) -> dict[str, int]:
        pairs = zip(self.tensor_inputs, inputs, strict=True)
        return {str(name): size for leaf, value in pairs for name, size in zip(leaf.sizes, value.shape, strict=True)}

    def _leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        args_spec, kwargs_spec = self._specs[0].children()
        args, kwargs = self._as_traced(tuple(args), dict(kwargs), args_spec.num_children, list(kwargs_spec.context))
        return _flatten(args, args_spec, "args") + _flatten(kwargs, kwargs_spec, "kwargs")

    def _as_traced(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], positional: int, keywords: list[str]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(args) == positional and set(kwargs) == set(keywords):
            return args, kwargs
        named = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        wanted = list(self.parameters[:positional]) + keywords
        if len(named) != len(args) + len(kwargs) or set(named) != set(wanted) or len(self.parameters) < positional:
            raise LoweringError(
                f"the call has {len(args)} positional inputs and keywords {sorted(kwargs)}, "
                f"but the program was traced with {positional} and {sorted(keywords)}",
                so="the inputs cannot be matched",
                fix="call the engine as the model was called when it was traced",
            )
        return tuple(named[name] for name in wanted[:positional]), {name: named[name] for name in keywords}

    # -- text ----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Signature:
        """Read what `to_dict` made, and make the classes known that inputs and outputs are packed in.

        Raises:
            LoadError: one of them cannot be imported here.
        """
        register_by_name(data["containers"])

        def leaf(entry: Mapping[str, Any]) -> Leaf:
            return Leaf(entry["name"], entry["dtype"], tuple(entry["sizes"]), entry["constant"])

        return Signature(
            inputs=tuple(map(leaf, data["inputs"])),
            outputs=tuple(map(leaf, data["outputs"])),
            bounds={name: (low, high) for name, (low, high) in data["bounds"].items()},
            in_spec=data["in_spec"],
            out_spec=data["out_spec"],
            parameters=tuple(data["parameters"]),
            containers=tuple(data["containers"]),
        )


def _flatten(value: Any, spec: Any, place: str) -> list[Any]:
    if spec.is_leaf():
        return [value]
    if isinstance(value, Mapping) and issubclass(spec.type, Mapping) and set(value) == set(spec.context):
        children = [(f"{place}.{key}", value[key]) for key in spec.context]
    else:
        found, own = pytree.tree_flatten(value, is_leaf=lambda item: item is not value)
        children = [(f"{place}.{index}", child) for index, child in enumerate(found)]
        if type(value) is not spec.type or len(children) != spec.num_children or own.context != spec.context:
            keys = f": its keys are {own.context} in place of {spec.context}" if own.type is spec.type is dict else ""
            raise LoweringError(
                f"{place} is a {type(value).__name__} with {len(children)} entries, "
                f"the program was traced with a {spec.type.__name__} with {spec.num_children}{keys}",
                fix="call the engine as the model was called when it was traced",
            )
    return [leaf for (name, child), sub in zip(children, spec.children(), strict=True) for leaf in _flatten(child, sub, name)]


def _paths(spec: Any, prefix: str = "") -> list[str]:
    if spec.is_leaf():
        return [prefix or "output"]
    keys = getattr(spec.context, "_fields", spec.context)
    if not (isinstance(keys, list | tuple) and len(keys) == spec.num_children and all(isinstance(key, str) for key in keys)):
        keys = [str(index) if prefix else f"output_{index}" for index in range(spec.num_children)]
    return [path for key, child in zip(keys, spec.children(), strict=True) for path in _paths(child, f"{prefix}_{key}" if prefix else key)]


def _distinct(names: Sequence[str], taken: set[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        base = re.sub(r"\W", "_", name)
        candidate, count = base, 1
        while candidate in taken or candidate in found:
            candidate, count = f"{base}_out" if count == 1 else f"{base}_out{count}", count + 1
        found.append(candidate)
    return found


def _parameters(program: Program) -> tuple[str, ...]:
    signature = program.exported.module_call_graph[0].signature if program.exported.module_call_graph else None
    return tuple(getattr(signature, "forward_arg_names", None) or ())
