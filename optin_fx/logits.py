"""Attention logits after query-key dims are gone: the dims that stay mixed so that the logits are what they were.

Where a pruned axis is contracted between two computed tensors (`q k^T`), no weight stands there that could be solved for. But if one side
comes straight from a projection, a matrix between the sides is as good as new weights of that projection: `q A k^T = (q A) k^T`. It is
solved for per head (`optin_fx.bilinear`), with an offset on the projection's side, and written into the projection's weight and bias.
Logits before a softmax over keys count up to a constant per query. Rotary embeddings and norms of queries and keys lie between the
projection and the product and do not let a matrix through, so such a product is left alone, and says so. (After CORP, arXiv 2602.05243,
which solves for all pairs of tokens of all samples at once and makes the matrix symmetric, which the logits do not ask for.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from optin_fx.analysis import Consumer
from optin_fx.applied import Applied
from optin_fx.arguments import argument
from optin_fx.bilinear import BilinearMoments
from optin_fx.compensation import Refitted
from optin_fx.dims import SYMBOLIC, leaves, positions
from optin_fx.heads import Heads
from optin_fx.interpreter import batch_dim
from optin_fx.linearity import op_name
from optin_fx.masks import token_weights
from optin_fx.plan import Cut
from optin_fx.projections import Origin, Projections
from optin_fx.refitting import Setting

_SOFTMAX = ("softmax", "_softmax", "_safe_softmax")
_BEFORE_SOFTMAX = ("add", "add_", "sub", "masked_fill", "where", "view", "reshape", "to", "dropout")
"""What may lie between a product and its softmax, besides one factor, without making a constant per row matter."""


@dataclass(frozen=True)
class Side:
    """One operand of a product.

    Attributes:
        number: of the operand. dense, sliced: the nodes that it is in the two programs.
        order: its dims: those that both operands have, its own, the contracted one; `lead` counts the first.
    """

    number: int
    dense: fx.Node
    sliced: fx.Node
    order: tuple[int, ...]
    lead: int

    def rows(self, value: torch.Tensor) -> torch.Tensor:
        """`[pairs of matrices, own dims, contracted dim]`."""
        value = value.permute(self.order)
        return value.reshape(value.shape[: self.lead].numel(), -1, value.shape[-1])

    def restored(self, rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The inverse, for a tensor of the shape that `like` has."""
        value = rows.reshape([like.shape[d] for d in self.order])
        return value.permute([self.order.index(d) for d in range(like.dim())])


@dataclass(frozen=True)
class Product:
    """A contraction of two computed tensors over a pruned axis, that can be refitted.

    Attributes:
        node, partner: in the sliced and in the dense program.
        changed, other: the side whose projection takes the matrix, and the one that stays.
        origin: of the changed side. heads: its heads' features in the projection.
        keys: the side that a softmax behind the product runs over, if one does.
    """

    node: fx.Node
    partner: fx.Node
    changed: Side
    other: Side
    origin: Origin
    heads: Heads
    keys: Side | None


def products_due(cut: Cut) -> dict[str, Consumer]:
    """Contractions of computed tensors over a pruned axis, by node."""
    found: dict[str, Consumer] = {}
    for consumer in cut.analysis.consumers():
        applied = cut.analysis.applied[consumer.node]
        computed = [o.node.op != "get_attr" for o in applied.call.operands]
        if applied.line.macs and all(computed) and len(computed) >= 2 and any(leaf in cut.kept for leaf in consumer.leaves):
            found.setdefault(consumer.node, consumer)
    return found


def sides_of(cut: Cut, consumer: Consumer, node: fx.Node) -> tuple[Side, Side] | str:
    """The two operands of a product, or why it cannot be refitted."""
    applied = cut.analysis.applied[consumer.node]
    contracted = (applied.operands[consumer.operand] or ())[consumer.dim].names()
    numbers = [i for i, dims in enumerate(applied.operands) if any(set(contracted) & set(term.names()) for term in dims or ())]
    dims = [applied.operands[i] or () for i in numbers]
    if len(numbers) != 2 or len(contracted) != 1 or any(term.sign for side in dims for term in side):
        return "its operands' dims do not pair up one by one"
    names = [[term.name for term in side] for side in dims]
    shared = [name for name in names[0] if name in names[1] and name not in contracted]
    found = []
    for number, own in zip(numbers, names, strict=True):
        operand = applied.call.operands[number]
        order = [*shared, *(name for name in own if name not in shared and name not in contracted), *contracted]
        axes = cut.analysis.axes[operand.node.name]
        where = batch_dim(cut.analysis, axes)
        if not shared or own.index(shared[0]) != 0 or where is None or where[0] != 0:
            return "its matrices are not those of one sample each"
        for axis in axes:
            if axis.root().size >= SYMBOLIC and any(leaf in cut.kept for leaf in leaves(axis)):
                return "heads that are cut lie in one dim with the batch"
        sliced = argument(node, operand.name, operand.index)
        found.append(Side(number, operand.node, sliced, tuple(own.index(name) for name in order), len(shared)))
    return found[0], found[1]


def product_of(cut: Cut, consumer: Consumer, node: fx.Node, partner: fx.Node, projections: Projections) -> Product | str:
    """A product that can be refitted, or why it cannot."""
    sides = sides_of(cut, consumer, node)
    if isinstance(sides, str):
        return sides
    reasons = []
    for changed, other in (sides, sides[::-1]):
        origin = projections.origins.get(changed.sliced.name)
        if origin is None:
            reasons.append(projections.refusal(changed.sliced))
            continue
        heads = Heads.of(changed.rows(origin.features), projections.samples)
        if isinstance(heads, str):
            reasons.append(heads)
        elif sum(reading.layer == origin.layer.weight_name and bool(reading.features & heads.all) for reading in projections.readings) != 1:
            reasons.append("its projection has other readers")
        else:
            return Product(
                node, partner, changed, other, origin, heads, _keys(cut.analysis.applied[consumer.node], partner, sides, projections)
            )
    return reasons[0]


class LogitRefitting:
    """Of one product; see the module's text."""

    def __init__(self, setting: Setting, product: Product) -> None:
        self.setting, self.product = setting, product
        self.fit, self.held = BilinearMoments(), BilinearMoments()
        self.generator = torch.Generator().manual_seed(0)

    def see(self, number: int) -> None:
        """Take the values of a batch in."""
        x, u = self._rows(self.product.changed, number, offset=True)
        y, v = self._rows(self.product.other, number, offset=False)
        chosen = torch.arange(x.shape[1])
        most = max(1, self.setting.options.rows // x.shape[2])
        if len(chosen) > most:
            chosen = torch.randperm(len(chosen), generator=self.generator)[:most]
        sides = [side[:, chosen] for side in (x, y, u, v)]
        for held_out, part in self.setting.shares(number, len(chosen)):
            (self.held if held_out else self.fit).add(*(side[:, part] for side in sides))

    def finish(self) -> Refitted:
        """Solve, write the projection's new weight and bias, and change the queries or keys that wait."""
        product, prior = self.product, self._prior()
        ratio, before, after, variance = self._chosen(prior)
        helps = after < before
        shares = (float(before.sum()) / variance, float(torch.minimum(before, after).sum()) / variance)
        name = product.origin.layer.weight_name
        if not bool(helps.any()):
            return Refitted(product.node.name, name, "none", 0.0, *shares)
        solved = (self.fit + self.held).system().solve(prior, ratio, prior)
        self._write(torch.where(helps[:, None, None], solved, prior))
        note = "" if bool(helps.all()) else f"{int(helps.sum())} of {len(helps)} heads"
        return Refitted(product.node.name, name, "affine", ratio, *shares, note)

    def _chosen(self, prior: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor, float]:
        """The ridge of least error on held-out samples; the heads' errors there without and with it, and the logits' energy."""
        fit, held = self.fit.system(), self.held.system()
        before = after = held.error(prior)
        best, found = 0.0, prior
        for ratio in sorted(self.setting.options.ratios, reverse=True):  # each begins where the one before ended
            found = fit.solve(prior, ratio, found, tolerance=1e-4)
            error = held.error(found)
            if float(error.sum()) < float(after.sum()):
                best, after = ratio, error
        return best, before, after, max(float(held.energy.sum()), 1e-30)

    def _prior(self) -> torch.Tensor:
        """The dims that stay as they are, and no offset: `[heads, width + 1, width]`."""
        count, width = self.product.heads.features.shape
        return torch.cat([torch.eye(width), torch.zeros(1, width)]).double().expand(count, -1, -1)

    def _rows(self, side: Side, number: int, *, offset: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """One side in the sliced and in the dense program, `[heads, matrices, rows, width]`; padding is zero, keys are centred."""
        both, heads = self.setting.both, self.product.heads
        dense, value = both.dense.value(side.dense), both.sliced.value(side.sliced)
        kept = self._kept(side, dense)
        if self.setting.options.mode == "parallel":
            value = kept[1]
        now, was = side.rows(value), side.rows(kept[0])
        if offset:
            now = torch.cat([now, torch.ones_like(now[..., :1])], -1)
        now, was = (heads.split(rows.float()) for rows in (now, was))
        weights = self._weights(side, number, value)
        if side is self.product.keys:
            share = (
                torch.full_like(now[..., :1], 1 / now.shape[2]) if weights is None else weights / weights.sum(2, keepdim=True).clamp_min(1)
            )
            now, was = now - (share * now).sum(2, keepdim=True), was - (share * was).sum(2, keepdim=True)
        return (now, was) if weights is None else (now * weights, was * weights)

    def _kept(self, side: Side, dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The dense operand without the heads that went, and without the dims that went, either."""
        cut, contracted = self.setting.cut, side.order[-1]
        for d, axis in enumerate(cut.analysis.axes[side.dense.name]):
            index = positions(axis, cut.units) if d != contracted else None
            dense = dense if index is None else dense.index_select(d, index)
        index = positions(cut.analysis.axes[side.dense.name][contracted], cut.units)
        return dense, dense if index is None else dense.index_select(contracted, index)

    def _weights(self, side: Side, number: int, value: torch.Tensor) -> torch.Tensor | None:
        """Ones for tokens and zeros for padding, `[heads, matrices, rows, 1]`."""
        cut, contracted = self.setting.cut, side.order[-1]
        axes = cut.analysis.axes[side.dense.name]
        found = token_weights(cut.analysis.program, self.setting.batches[number], axes, value.shape)
        if found is None:
            return None
        whole = found.to(torch.float32).expand([1 if d == contracted else n for d, n in enumerate(value.shape)])
        return self.product.heads.split(side.rows(whole))

    def _write(self, matrices: torch.Tensor) -> None:
        """The projection's outputs, and those that wait, times the matrices `[heads, width + 1, width]`, plus their last rows."""
        origin, heads = self.product.origin, self.product.heads
        weight, bias = origin.layer.matrix()
        mixing, offset = matrices[:, :-1].mT, matrices[:, -1]
        at = heads.features
        weight[at] = mixing @ weight[at]
        bias[at] = (mixing @ bias[at][..., None])[..., 0] + offset / origin.scale
        origin.layer.put(weight, bias)
        side = self.product.changed

        def change(value: torch.Tensor) -> torch.Tensor:
            rows = side.rows(value)
            own, shift = (heads.spread(m.to(rows), len(rows)) for m in (mixing, offset))
            return side.restored(rows @ own.mT + shift[:, None], value)

        self.setting.both.amend(side.sliced, change)


def _keys(applied: Applied, node: fx.Node, sides: tuple[Side, Side], projections: Projections) -> Side | None:
    """The side along which a softmax runs: keys."""
    if op_name(node) == "scaled_dot_product_attention":
        return sides[1]
    last, width = applied.line.results[0][-1].name, node.meta["val"].shape[-1]
    while len(node.users) == 1:
        node = next(iter(node.users))
        if op_name(node) in _SOFTMAX:
            along = node.args[1] in (-1, node.meta["val"].dim() - 1)
            own = [side for side in sides if any(term.name == last for term in applied.operands[side.number] or ())]
            return own[0] if along and len(own) == 1 else None
        passes = op_name(node) in _BEFORE_SOFTMAX or projections.factor(node) is not None
        if not passes or node.meta["val"].shape[-1] != width:
            return None
    return None
