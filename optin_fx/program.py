"""`Program`: a traced model with its example inputs, the noun that every stage takes and returns."""

from __future__ import annotations

import copy
import hashlib
import inspect
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from optin_fx.attributes import attribute, share_memory_as, unique_storages
from optin_fx.caches import cache_leaves, register_caches
from optin_fx.containers import class_names, in_lists, register_by_name, register_containers
from optin_fx.errors import LoadError, PlanError, TraceError
from optin_fx.files import saving
from optin_fx.inline import inline_grad_regions
from optin_fx.training import switchable

EXTRA_FILE = "optin_fx.json"


class Program:
    """A model as an FX graph of ATen ops, with its weights and one set of example inputs.

    Attributes:
        exported: the `torch.export.ExportedProgram`.
        args, kwargs: example inputs, called as the model is. Costs are counted at their sizes.
        provenance: JSON-able facts about how the program came to be (plan, scores, versions).
        allow: codes of pins that are waived, see `allowing`.
    """

    allow: frozenset[str] = frozenset()

    def __init__(
        self,
        exported: ExportedProgram,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.exported = exported
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.provenance = dict(provenance or {})

    # -- running -------------------------------------------------------------------------------------------------

    def module(self) -> nn.Module:
        """The program as a callable, trainable `torch.fx.GraphModule`, in eval mode; its parameters are the program's own.

        `train()` switches dropout and BatchNorm on, `eval()` off again; see `optin_fx.training` for what an eval graph cannot know.
        """
        return switchable(self._unlifted())

    @cached_property
    def graph_module(self) -> fx.GraphModule:
        """`module()` with its no-grad regions inlined, made once. To read and to run: passes copy its graph to edit it."""
        return inline_grad_regions(self._unlifted())

    def _unlifted(self) -> fx.GraphModule:
        module = self.exported.module(check_guards=False)
        assert isinstance(module, fx.GraphModule)
        return module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program without gradients, called as the model is."""
        with torch.no_grad():
            return self.graph_module(*args, **kwargs)

    def allowing(self, *codes: str) -> Program:
        """This program with some pins waived: what then is free, scored, searched and cut, is inexact or has a price.

        Args:
            codes: `normalised`: widths that a LayerNorm, GroupNorm or variance looks at. What is cut leaves the statistics, too, so the
                smaller program is not the masked one, whose statistics count every entry; `verify` says by how much.
                `averaged`: residual streams under RMSNorm. Exact, since the mean goes on to divide by the dense width; but modules of
                the user's divide by the width that they find, so they cannot be written back.

        Raises:
            PlanError: no such code.
        """
        unknown = set(codes) - {"normalised", "averaged"}
        if unknown:
            raise PlanError(f"nothing is pinned as {sorted(unknown)[0]!r}", fix="allow 'normalised' or 'averaged'")
        result = Program(self.exported, self.args, self.kwargs, provenance=self.provenance)
        result.__dict__["graph_module"] = self.graph_module
        result.allow = frozenset(codes)
        return result

    # -- facts ---------------------------------------------------------------------------------------------------

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Every parameter, buffer and lifted constant by its name in `graph_module`."""
        module = self.graph_module
        names = {str(node.target): None for node in module.graph.nodes if node.op == "get_attr"}
        found = {name: attribute(module, name) for name in names}
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU for a program without any."""
        return next((tensor.device for tensor in self.tensors.values()), torch.device("cpu"))

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """Placeholder names of the user's inputs, in call order."""
        return tuple(str(spec.arg.name) for spec in self.exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT)

    @cached_property
    def state_outputs(self) -> frozenset[int]:
        """Places in the flat outputs that lie in a cache: state for the next call, not results (see `optin_fx.caches`)."""
        return cache_leaves(self.exported.call_spec.out_spec)

    @cached_property
    def state_inputs(self) -> frozenset[str]:
        """Names of the placeholders that lie in a cache."""
        places = cache_leaves(self.exported.call_spec.in_spec)
        return frozenset(node.name for place, node in enumerate(self.placeholders) if place in places)

    @property
    def placeholders(self) -> list[fx.Node]:
        """The graph's inputs, in the order of the flat example inputs."""
        return [node for node in self.graph_module.graph.nodes if node.op == "placeholder"]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the graph's structure and of parameter names and shapes (not of their values)."""
        digest = hashlib.sha256()
        for node in self.graph_module.graph.nodes:
            digest.update(f"{node.op} {node.target}\n".encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        nodes = len(self.graph_module.graph.nodes)
        params = sum(p.numel() for p in unique_storages(self.tensors.values()))
        return f"Program({nodes} nodes, {params:,} parameters, inputs {', '.join(self.input_names)})"

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write a `.pt2` that `ofx.load` and `torch.export.load` both read.

        Raises:
            SaveError: the place cannot be written.
        """
        path = Path(path)
        inputs, outputs = self.exported.call_spec.in_spec, self.exported.call_spec.out_spec
        facts = {"format": 1, "provenance": self.provenance, "containers": class_names(inputs, outputs)}
        examples = io.BytesIO()
        torch.save(pytree.tree_leaves((self.args, self.kwargs)), examples)
        exported = self.exported
        if class_names(inputs):  # torch would pickle the user's objects, and refuse to read them
            exported = copy.copy(exported)
            exported._example_inputs = None
        with saving("the program", path):
            path.open("ab").close()  # torch's own writer says less about why it cannot
            torch.export.save(
                exported,
                path,
                extra_files={EXTRA_FILE: json.dumps(facts), "optin_fx_examples.hex": examples.getvalue().hex()},
            )
        return path


def trace(
    model: nn.Module | ExportedProgram | Program,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Program:
    """Trace a model to a `Program` with `torch.export` (non-strict), on a deep copy in eval mode.

    Args:
        model: an `nn.Module`, or an `ExportedProgram` that you made yourself.
        args, kwargs: example inputs. A leading batch of one is doubled for tracing, so that it can stay dynamic.
        dynamic_shapes: as for `torch.export.export`. `None` makes dim 0 of every tensor input one dynamic
            "batch" where the model allows it, and static where it does not; `{}` makes everything static.

    Raises:
        TraceError: torch.export refused the model; the message carries torch's reason.
    """
    if isinstance(model, Program):
        return model
    kwargs = dict(kwargs or {})
    if isinstance(model, ExportedProgram):
        if not args and not kwargs and model.example_inputs is not None:
            args, kwargs = model.example_inputs
        return Program(model, args, kwargs)
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"cannot trace a {type(model).__name__}",
            fix="pass an nn.Module or a torch.export.ExportedProgram",
        )
    if isinstance(args, torch.Tensor):
        args = (args,)
    if not args and not kwargs:
        raise TraceError("no example inputs", so="the model cannot be traced", fix="pass args and kwargs as the model is called")
    # A fresh copy, never run: some models cache constants at their first forward, and export would bake those in.
    fresh = share_memory_as(model, copy.deepcopy(model)).eval()
    register_caches()
    register_containers((args, kwargs))
    # classes of outputs are seen when the model returns them, before torch takes them apart
    fresh.register_forward_hook(lambda _module, _args, output: register_containers(output))
    example_args, example_kwargs = tuple(args), kwargs
    refusals: list[Exception] = []
    attempts = [dynamic_shapes]
    if dynamic_shapes is None:
        if _rows(args, kwargs) == {1}:
            args, kwargs = pytree.tree_map_only(torch.Tensor, at_least_two_rows, (tuple(args), kwargs))
        dims = (torch.export.Dim("batch"), torch.export.Dim.AUTO)
        attempts = [_batch_dynamic(fresh, tuple(args), dict(kwargs), dim) for dim in dims] + [None]
    elif not dynamic_shapes:
        attempts = [None]
    for shapes in attempts:
        if shapes is None and dynamic_shapes is None:
            args, kwargs = example_args, example_kwargs
        try:
            exported = torch.export.export(fresh, tuple(args), kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # noqa: BLE001  torch.export raises many types; all mean "refused", and the reason is passed on
            refusals.append(error)
            continue
        return Program(exported, example_args, example_kwargs)
    reason = str(refusals[-1]).strip().splitlines() or [type(refusals[-1]).__name__]
    raise TraceError(
        f"torch.export refused {type(model).__name__}: {reason[0][:300]}",
        at=_user_line(refusals[-1]),
        so="there is no graph to prune",
        fix="make torch.export.export(model.eval(), args, kwargs, strict=False) work first; common cures are "
        "use_cache=False for decoders, returning tensors only, and torch.cond in place of data-dependent ifs",
    ) from refusals[-1]


def load(path: str | Path) -> Program:
    """Read a `.pt2` written by `Program.save` (or by `torch.export.save`).

    Raises:
        LoadError: the file is missing, truncated, or not an exported program.
    """
    path = Path(path)
    if not path.is_file():
        raise LoadError("no such file", at=str(path), fix="check the path; programs end in .pt2")
    try:
        with zipfile.ZipFile(path) as archive:
            texts = {Path(name).name: name for name in archive.namelist()}
            facts = json.loads(archive.read(texts[EXTRA_FILE])) if EXTRA_FILE in texts else {}
            examples = archive.read(texts["optin_fx_examples.hex"]) if "optin_fx_examples.hex" in texts else None
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise LoadError(
            f"not a readable .pt2: {error}",
            at=str(path),
            fix="the file is truncated or of another kind; write it again with program.save(path)",
        ) from error
    register_by_name(facts.get("containers", facts.get("pytree_modules", ())))
    try:
        exported = torch.export.load(path)
    except Exception as error:  # the reader of torch raises many types on foreign archives
        raise LoadError(
            f"torch.export cannot read it: {str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__}",
            at=str(path),
            fix="write the file with program.save(path) or torch.export.save, with this version of torch or an older one",
        ) from error
    if examples is not None:
        leaves = torch.load(io.BytesIO(bytes.fromhex(examples.decode())), weights_only=True)
        assert exported.call_spec.in_spec is not None
        args, kwargs = pytree.tree_unflatten(leaves, exported.call_spec.in_spec)
        return Program(exported, args, kwargs, provenance=facts.get("provenance"))
    args, kwargs = exported.example_inputs or ((), {})
    return Program(exported, args, kwargs)


def at_least_two_rows(tensor: torch.Tensor) -> torch.Tensor:
    # torch.export specialises extents of 0 and 1, so a batch of one could not stay dynamic
    return torch.cat([tensor, tensor]) if tensor.dim() and tensor.shape[0] == 1 else tensor


def _rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[int]:
    return {t.shape[0] for t in pytree.tree_leaves((tuple(args), dict(kwargs))) if isinstance(t, torch.Tensor) and t.dim()}


def _batch_dynamic(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dim: Any) -> Any:
    if len(_rows(args, kwargs)) != 1:
        dim = torch.export.Dim.AUTO

    def marked(inputs: Any) -> Any:
        leaves, spec = pytree.tree_flatten(inputs)
        return in_lists(spec, iter([{0: dim} if isinstance(leaf, torch.Tensor) and leaf.dim() else None for leaf in leaves]))

    signature = inspect.signature(model.forward)
    if not kwargs and not any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        return marked(args)
    named = signature.bind_partial(*args).arguments if args else {}  # *args is one entry, a tuple
    return marked({**named, **kwargs})


def _user_line(error: BaseException) -> str | None:
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [(file, line) for file, line in frames if "/torch/" not in file and "optin_fx" not in file]
    return f"{own[-1][0]}:{own[-1][1]}" if own else None
