"""torch-pruning 1.6.1 (Fang et al., DepGraph, CVPR 2023) on the tasks' eager models, under our count of FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from tasks import Task, call, pick
from tasks import task as task_called
from torch import Tensor, nn

import optin_fx as ofx
from optin_fx.budget import parse_budget
from optin_fx.costs import cost_model
from optin_fx.data import Batch, rows, take
from optin_fx.errors import BudgetError, DataError, PipelineError
from optin_fx.pipeline import Pass, State

# Its attention support needs to be told where heads are, and the sizes that forward() reads have to be mended by hand:
# class name -> (projections that hold heads, attribute of the number of heads).
ATTENTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "BertSelfAttention": (("query", "key", "value"), "num_attention_heads"),
    "DistilBertSelfAttention": (("q_lin", "k_lin", "v_lin"), "n_heads"),
    "Attention": (("qkv",), "num_heads"),
}
IMPORTANCES = ("magnitude", "taylor", "hessian")


@dataclass(frozen=True)
class TorchPruning(Pass):
    """`torch_pruning.BasePruner`, once, at the largest ratio that meets the budget (bisection to 1 in 500).

    Ratios are the same for channels and for whole heads; head dims stay. Residual widths of transformers are left alone, as
    everywhere in this comparison: without training, their loss is final. Importances are the library's own with its default reductions.
    Its `GroupHessianImportance.accumulate_grad` keeps the last sample only (it looks a parameter up by name in a table keyed by
    parameters), so the mean over samples is handed to it. Gradients: labels of the task, or drawn from the model's own
    outputs where it has none.

    Attributes:
        task: name of the task, whose eager model is pruned.
        importance: magnitude, taylor or hessian.
        spread: "local" gives all layers the same ratio, "global" ranks over all of them.
        budget: see `optin_fx.budget`.
        samples: inputs for the Hessian's per-sample gradients.
        seed: of drawn labels.
    """

    task: str = ""
    importance: str = "magnitude"
    spread: str = "local"
    budget: str = "flops <= 50%"
    samples: int = 128
    seed: int = 0

    reads: ClassVar[tuple[str, ...]] = ("program", "data")
    writes: ClassVar[tuple[str, ...]] = ("small",)

    def __post_init__(self) -> None:
        if self.importance not in IMPORTANCES or self.spread not in ("local", "global"):
            raise ValueError(f"importance is one of {', '.join(IMPORTANCES)}; spread is local or global")

    def apply(self, state: State) -> State:
        """Bisect the ratio; every candidate is pruned afresh, traced, and counted."""
        if not self.task:
            raise PipelineError("torch-pruning works on a task's eager model", fix="give task=NAME")
        chosen = task_called(self.task)
        allowed = [c.allowed for c in parse_budget(self.budget).bind(cost_model(state.program)).ceilings if c.limit.metric == "flops"]
        if not allowed:
            raise BudgetError("torch-pruning is compared at a number of FLOPs", at=self.budget, fix="give flops <= ...")
        gradients = {} if self.importance == "magnitude" else self._gradients(chosen, list(state.data or ()))
        args, kwargs = chosen.example()
        best: ofx.Program | None = None
        low, high = 0.0, 1.0
        for _ in range(9):
            middle = (low + high) / 2
            small = ofx.trace(self._pruned(chosen, middle, gradients), args, kwargs, chosen.dynamic_shapes())
            if ofx.cost(small).flops <= min(allowed):
                best, high = small, middle
            else:
                low = middle
        if best is None:
            raise BudgetError(f"torch-pruning does not reach {self.budget}", fix="raise the budget")
        return replace(state, small=best)

    def _pruned(self, chosen: Task, ratio: float, gradients: dict[str, Tensor]) -> nn.Module:
        import torch_pruning

        model = chosen.model()
        importance: Any = getattr(torch_pruning.importance, f"Group{self.importance.title()}Importance")()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(True)
            parameter.grad = gradients[name].clone() if name in gradients else None
        attentions = [m for m in model.modules() if type(m).__name__ in ATTENTIONS]
        heads = {getattr(m, p): getattr(m, ATTENTIONS[type(m).__name__][1]) for m in attentions for p in ATTENTIONS[type(m).__name__][0]}
        args, kwargs = chosen.example()
        pruner = torch_pruning.BasePruner(
            model,
            kwargs or args,
            importance=importance,
            global_pruning=self.spread == "global",
            pruning_ratio=ratio,
            head_pruning_ratio=min(ratio, 1 - 1.001 / max(heads.values(), default=1)),  # left alone, it takes the last head, too
            max_pruning_ratio=0.95,
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            ignored_layers=_kept_whole(model, attentions),
            output_transform=_tensors_summed,
        )
        pruner.step()
        for attention in attentions:
            _mend(attention, pruner)
        return model.eval()

    def _gradients(self, chosen: Task, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Mean gradients for Taylor, mean squared per-sample gradients for the Hessian, by parameter name."""
        model, generator = chosen.model(), torch.Generator().manual_seed(self.seed)
        singly = self.importance == "hessian"
        work = [take(b, i, i + 1) for b in batches for i in range(rows(b))][: self.samples] if singly else batches
        sums: dict[str, Tensor] = {}
        for batch in work:
            model.zero_grad(set_to_none=True)
            output = call(model, dict(batch.kwargs) or batch.args)
            labels = batch.labels if batch.labels is not None else _drawn(output, generator)
            chosen.loss(output, labels).backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    value = parameter.grad.square() if singly else parameter.grad
                    sums[name] = sums[name] + value if name in sums else value.clone()
        return {name: value / len(work) for name, value in sums.items()}


def _kept_whole(model: nn.Module, attentions: Sequence[nn.Module]) -> list[nn.Module]:
    """Layers whose outputs are classes or, in a transformer, the residual stream."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not attentions:
        return list(linears[-1:])
    width = next(m for m in model.modules() if isinstance(m, nn.LayerNorm)).normalized_shape[0]
    inside = {getattr(a, p) for a in attentions for p in ATTENTIONS[type(a).__name__][0]}
    narrow = [m for m in linears if m not in inside and m.out_features <= width]
    return [*narrow, *(m for m in model.modules() if isinstance(m, (nn.Embedding, nn.Conv2d, nn.LayerNorm)))]


def _mend(attention: nn.Module, pruner: Any) -> None:
    """Set the sizes that forward() reads."""
    projections, count = ATTENTIONS[type(attention).__name__]
    first = getattr(attention, projections[0])
    heads = pruner.num_heads[first]
    width = first.out_features // (3 if len(projections) == 1 else 1)
    setattr(attention, count, heads)
    for name, value in {
        "all_head_size": width,
        "attn_dim": width,
        "head_dim": width // heads,
        "attention_head_size": width // heads,
    }.items():
        if hasattr(attention, name):
            setattr(attention, name, value)


def _tensors_summed(output: Any) -> Tensor:
    from torch.utils import _pytree as pytree

    leaves = list(output.values()) if isinstance(output, Mapping) else pytree.tree_leaves(output)
    return torch.stack([leaf.sum() for leaf in leaves if isinstance(leaf, Tensor)]).sum()


def _drawn(output: Any, generator: torch.Generator) -> Tensor:
    try:
        (logits,) = pick(output, "logits")
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError("torch-pruning's gradients need a loss, and the model has no logits", fix="use importance=magnitude") from error
    return torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
