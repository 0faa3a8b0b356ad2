"""Losses whose gate gradients criteria read: of labels, of a user's own function, or of the model's own answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F

from optin_fx.data import Batch
from optin_fx.errors import DataError
from optin_fx.gradients import Objective
from optin_fx.interpreter import Runner
from optin_fx.models import find_object
from optin_fx.outputs import OutputTerm, output_terms
from optin_fx.program import Program

Loss = Callable[[list[torch.Tensor], object], torch.Tensor]
"""`loss(outputs, labels)`: a scalar, summed over samples; outputs are the model's flat outputs."""


def use_labels(batches: Sequence[Batch], labels: str, *, demanded: bool, needed_for: str) -> bool:
    """Whether a criterion reads the batches' labels.

    Args:
        labels: "auto" if all batches have them, "given" always, anything else never.
        demanded: a loss was given, which reads labels.

    Raises:
        DataError: labels are needed, and a batch has none.
    """
    missing = [number for number, batch in enumerate(batches) if batch.labels is None]
    if (labels == "given" or demanded) and missing:
        raise DataError(
            f"{needed_for} was asked to use labels, and a batch has none",
            at=f"batch {missing[0]}",
            fix="add a 'labels' entry to every batch, or leave out labels=given and the loss",
        )
    return demanded or (labels in ("auto", "given") and not missing)


def found_loss(loss: Loss | str | None) -> Loss | None:
    """The user's loss: a callable, or the text `package.module:function`.

    Raises:
        LoadError: the text names nothing.
    """
    return find_object(loss) if isinstance(loss, str) else loss


def of_labels(program: Program, loss: Loss | None) -> Objective:
    """The user's loss, or else the cross-entropy of logits and the squared error of features."""
    terms = output_terms(program)

    def objective(
        runner: Runner, outputs: list[torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> Iterable[tuple[str, torch.Tensor]]:
        yield "loss", sum_of_cross_entropies(outputs, terms, batch.labels) if loss is None else loss(outputs, batch.labels)

    return objective


def of_draws(program: Program, draws: int) -> Objective:
    """Log-likelihoods of labels drawn from the model's own outputs; see `OutputTerm.log_likelihood`."""
    terms = output_terms(program)

    def objective(
        runner: Runner, outputs: list[torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> Iterable[tuple[str, torch.Tensor]]:
        for _ in range(draws):
            yield "loss", torch.stack([term.log_likelihood(outputs[term.index], generator) for term in terms]).sum()

    return objective


def of_own_answers(program: Program) -> Objective:
    """The cross-entropy of the model's own most likely classes; of features, half their squared norm."""
    terms = output_terms(program)

    def objective(
        runner: Runner, outputs: list[torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> Iterable[tuple[str, torch.Tensor]]:
        total = torch.zeros((), device=outputs[terms[0].index].device)
        for term in terms:
            value = outputs[term.index].movedim(term.classes, -1).float()
            if term.kind == "logits":
                total = total - F.log_softmax(value, -1).amax(-1).sum()
            else:
                total = total + 0.5 * value.square().sum()
        yield "loss", total

    return objective


def sum_of_cross_entropies(outputs: list[torch.Tensor], terms: Sequence[OutputTerm], labels: object) -> torch.Tensor:
    """Cross-entropy summed over samples (and tokens) for logits, half the squared error for features. Labels of -100 do not count.

    Raises:
        DataError: there are fewer labels than outputs that count, or more.
    """
    several = labels if isinstance(labels, (tuple, list)) else [labels]
    if len(several) != len(terms):
        raise DataError(
            f"there are {len(several)} labels for {len(terms)} outputs",
            at=f"outputs {', '.join(term.name for term in terms)}",
            fix="give a tuple with the labels of each, or a loss of your own",
        )
    total = torch.zeros((), device=outputs[terms[0].index].device)
    for term, target in zip(terms, several, strict=True):
        value = outputs[term.index].movedim(term.classes, -1).float()
        target = torch.as_tensor(target, device=value.device)
        if term.kind == "logits":
            total = total + F.cross_entropy(value.reshape(-1, value.shape[-1]), target.reshape(-1).long(), reduction="sum")
        else:
            total = total + 0.5 * (value.flatten() - target.flatten().to(value.dtype)).square().sum()
    return total
