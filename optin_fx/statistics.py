"""What a calibration run tells about every unit, collected once; most criteria are a few lines on top of it.

For every consumer (an operand that a contraction sums over, gated): mean, mean magnitude and mean square of what it reads, position by
position along the summed dim, and how heavily its other operand weighs each position. Optionally the Gram matrix along that dim. What is
padding does not count. Gate gradients, the other half, are in `optin_fx.gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from optin_fx.analysis import Consumer, analyse
from optin_fx.data import Batch
from optin_fx.dims import Axis
from optin_fx.execution import accumulate
from optin_fx.finite import refuse_non_finite
from optin_fx.groups import group, leaf_names
from optin_fx.interpreter import Runner, batch_dim, consumers_by_node
from optin_fx.masks import token_weights
from optin_fx.moments import gram_matrix
from optin_fx.program import Program
from optin_fx.rulebook import Term
from optin_fx.units import unit_of_position


@dataclass(frozen=True)
class ConsumerMoments:
    """Moments of what one consumer reads, over rows (tokens, positions), by position `[size]` along the dim that it sums over.

    Attributes:
        consumer: the place.
        count: rows.
        mean: of x. absolute: of |x|. square: of x^2.
        weight: mean over rows of the squared norm of what the position is multiplied with: of the weight's column, `|W_:j|^2`, or,
            where the other operand is an activation too (queries and keys), of its mean square.
        gram: mean of x x^T, `[size, size]`, where it was asked for.
    """

    consumer: Consumer
    count: float
    mean: torch.Tensor
    absolute: torch.Tensor
    square: torch.Tensor
    weight: torch.Tensor
    gram: torch.Tensor | None = None

    @property
    def variance(self) -> torch.Tensor:
        """Of x, `[size]`."""
        return (self.square - self.mean.square()).clamp_min(0)


@dataclass(frozen=True)
class Statistics:
    """Moments at every consumer of a program's prunable units."""

    program: Program
    consumers: tuple[ConsumerMoments, ...]

    def per_unit(self, value: Callable[[ConsumerMoments], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Sum over the consumers and positions of each unit of `value(moments)`, which is `[size]`. Returns `[extent]` by group.

        Units that nothing sums over, such as experts, which are chosen among, have no moments: they are all alike, 1.
        """
        analysis = analyse(self.program)
        names = leaf_names(analysis)
        sums = {g.name: torch.zeros(g.extent, dtype=torch.float64) for g in group(self.program).free}
        for moments in self.consumers:
            consumer, along = moments.consumer, value(moments)
            axis = analysis.axes[analysis.applied[consumer.node].call.operands[consumer.operand].node.name][consumer.dim]
            for leaf in consumer.leaves:
                units = unit_of_position(axis, leaf)
                sums[names[leaf]].index_add_(0, units[units >= 0], along[units >= 0])
        read = {names[leaf] for moments in self.consumers for leaf in moments.consumer.leaves}
        return {name: total if name in read else torch.ones_like(total) for name, total in sums.items()}


def collect(program: Program, batches: Sequence[Batch], *, gram: bool = False, at: Callable[[Consumer], bool] | None = None) -> Statistics:
    """Run the batches once and gather moments at every consumer. Cost: one forward pass over the data.

    Args:
        gram: also the Gram matrices; their memory is the square of the consumers' widths.
        at: only at consumers of which this is true.

    Raises:
        ScoreError: an output is not finite; names the node that made it so.
    """
    table = [c for consumers in consumers_by_node(analyse(program)).values() for c in consumers if at is None or at(c)]
    wanted = set(map(_key, table))

    def step(number: int, batch: Batch) -> dict[str, torch.Tensor]:
        sums: dict[str, torch.Tensor] = {}
        runner = Runner(program, observe=partial(_observe, program, batch, sums, wanted, gram))
        with torch.no_grad():
            refuse_non_finite(program, batch, runner(batch), number)
        return sums

    sums = accumulate("moments with gram" if gram else "moments", batches, step)
    return Statistics(program, tuple(_moments(consumer, sums) for consumer in table))


def _key(consumer: Consumer) -> str:
    return f"{consumer.node}/{consumer.operand}/{consumer.dim}"


def _observe(
    program: Program,
    batch: Batch,
    sums: dict[str, torch.Tensor],
    wanted: Container[str],
    gram: bool,
    consumer: Consumer,
    value: torch.Tensor,
    operand_of: Callable[[int], torch.Tensor],
) -> None:
    if _key(consumer) not in wanted:
        return
    analysis = analyse(program)
    axes = analysis.axes[analysis.applied[consumer.node].call.operands[consumer.operand].node.name]
    x = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    mask = token_weights(program, batch, axes, value.shape) if batch_dim(analysis, axes) == (0, 1) else None
    ones = torch.ones((), dtype=x.dtype, device=x.device) if mask is None else mask.to(x)
    rest = [d for d in range(x.dim()) if d != consumer.dim]
    kept = x * ones
    sums[f"{_key(consumer)}/count"] = ones.expand([1 if d == consumer.dim else s for d, s in enumerate(x.shape)]).sum(dtype=torch.float64)
    sums[f"{_key(consumer)}/mean"] = kept.sum(rest, dtype=torch.float64)
    sums[f"{_key(consumer)}/absolute"] = kept.abs().sum(rest, dtype=torch.float64)
    sums[f"{_key(consumer)}/square"] = kept.square().sum(rest, dtype=torch.float64)
    sums[f"{_key(consumer)}/weight"] = _weight(program, consumer, operand_of).double().cpu() * sums[f"{_key(consumer)}/count"].cpu()
    if gram:
        matrix = kept.movedim(consumer.dim, -1).reshape(-1, x.shape[consumer.dim])
        sums[f"{_key(consumer)}/gram"] = gram_matrix(matrix, matrix)


def _weight(program: Program, consumer: Consumer, operand_of: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """What `ConsumerMoments.weight` says, for one batch. `[size]`."""
    applied = analyse(program).applied[consumer.node]
    own = list((applied.operands[consumer.operand] or ())[consumer.dim].names())
    read = operand_of(consumer.operand)
    for number, dims in enumerate(applied.operands):
        names = [name for term in dims or () for name in term.names()]
        if number == consumer.operand or not set(own) & set(names) or any(term.sign == "+" for term in dims or ()):
            continue
        squares = _split(operand_of(number).detach(), dims or (), applied.factors).float().square()
        others = [d for d, name in enumerate(names) if name not in own]
        if others:
            computed = applied.call.operands[number].node.op != "get_attr"
            squares = squares.mean(others) if computed else squares.sum(others)
        order = [name for name in names if name in own]
        squares = squares.permute([order.index(name) for name in own if name in order])
        shape = [applied.factors[name].root().size if name in order else 1 for name in own]
        whole = [applied.factors[name].root().size for name in own]
        return squares.reshape(shape).expand(whole).flatten()
    return torch.ones(read.shape[consumer.dim])


def _split(value: torch.Tensor, dims: Sequence[Term], factors: Mapping[str, Axis]) -> torch.Tensor:
    """A tensor with a dim for every factor."""
    shape: list[int] = []
    for term, extent in zip(dims, value.shape, strict=True):
        shape += [extent] if not term.parts else [factors[name].root().size for name in term.names()]
    return value.reshape(shape)


def _moments(consumer: Consumer, sums: Mapping[str, torch.Tensor]) -> ConsumerMoments:
    found = {name: sums[f"{_key(consumer)}/{name}"] for name in ("mean", "absolute", "square", "weight")}
    count = sums[f"{_key(consumer)}/count"]
    gram = sums.get(f"{_key(consumer)}/gram")
    means = {name: value / count for name, value in found.items()}
    return ConsumerMoments(consumer, float(count), **means, gram=None if gram is None else gram / count)
