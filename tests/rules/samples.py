"""Sample calls of every overload that has a rule: random shapes and arguments, small enough to run many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from square import Draw, aten
from torch import Tensor
from torch._ops import OpOverload

Sample = tuple[list[Any], dict[str, Any]]
Maker = Callable[[Draw], "Sample | None"]
SAMPLES: dict[OpOverload, list[Maker]] = {}


def sample(*ops: OpOverload) -> Callable[[Maker], Maker]:
    """`None` as the answer means: these arguments are not a call of the op, draw again."""

    def add(maker: Maker) -> Maker:
        for op in ops:
            SAMPLES.setdefault(op, []).append(maker)
        return maker

    return add


# -- entry by entry ------------------------------------------------------------------------------------------------------


@sample(aten.alias.default, aten.clone.default, aten.contiguous.default, aten.detach.default, aten.detach_.default,
        aten.lift_fresh_copy.default, aten._to_copy.default, aten.zeros_like.default, aten.ones_like.default, aten.empty_like.default,
        aten.rand_like.default, aten.randn_like.default, aten.zero_.default, aten.neg.default, aten.relu.default, aten.relu_.default,
        aten.gelu.default, aten.exp.default)  # fmt: skip
def unary(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape(0))], {}


@sample(aten.bernoulli.default)
def probabilities(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape()).sigmoid()], {}


@sample(aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alpha_dropout.default)
def dropout(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape(2)), 0.5, draw.flag()], {}


@sample(aten.native_dropout.default)
def native_dropout(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape()), 0.5, draw.flag()], {}


@sample(aten.full_like.default, aten.fill_.Scalar)
def filled(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape()), 1.5], {}


@sample(aten.to.dtype)
def to_dtype(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape()), draw.pick([torch.float32, torch.int64])], {}


@sample(aten.to.device)
def to_device(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape()), torch.device("cpu"), torch.float32], {}


@sample(aten.to.dtype_layout)
def to_layout(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape())], {"dtype": torch.float32}


@sample(aten.to.other, aten.type_as.default)
def like_other(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape()), draw.index(3, *draw.shape(0))], {}


@sample(aten.copy_.default, aten.add.Tensor, aten.mul_.Tensor, aten.sub.Tensor, aten.maximum.default)
def two(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.broadcastable(shape)], {}


@sample(aten.where.self)
def three(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.broadcastable(shape) > 0, draw.broadcastable(shape), draw.tensor(*shape)], {}


@sample(aten.masked_fill.Scalar, aten.masked_fill_.Scalar)
def masked_fill(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.broadcastable(shape) > 0, -2.0], {}


@sample(aten.prelu.default)
def slopes(draw: Draw) -> Sample:
    shape = draw.shape(2)
    return [draw.tensor(*shape), draw.tensor(draw.pick([1, shape[1]]))], {}


@sample(aten.__and__.Tensor, aten.__or__.Tensor, aten.__xor__.Tensor, aten.__iand__.Tensor, aten.__ior__.Tensor)
def bits(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.index(8, *shape), draw.index(8, *[n if draw.flag() else 1 for n in shape])], {}


@sample(aten.__and__.Scalar, aten.__or__.Scalar, aten.__lshift__.Scalar, aten.__rshift__.Scalar)
def bits_with_number(draw: Draw) -> Sample:
    return [draw.index(8, *draw.shape()), 1], {}


# -- contractions --------------------------------------------------------------------------------------------------------


@sample(aten.linear.default)
def linear(draw: Draw) -> Sample:
    i, o = draw.size(), draw.size()
    return [draw.tensor(*draw.shape(0, 3), i), draw.tensor(o, i), *([draw.tensor(o)] if draw.flag() else [])], {}


@sample(aten.mm.default)
def mm(draw: Draw) -> Sample:
    m, k, n = draw.size(), draw.size(), draw.size()
    return [draw.tensor(m, k), draw.tensor(k, n)], {}


@sample(aten.bmm.default)
def bmm(draw: Draw) -> Sample:
    b, m, k, n = (draw.size() for _ in range(4))
    return [draw.tensor(b, m, k), draw.tensor(b, k, n)], {}


@sample(aten.addmm.default)
def addmm(draw: Draw) -> Sample:
    m, k, n = draw.size(), draw.size(), draw.size()
    return [draw.broadcastable([m, n]), draw.tensor(m, k), draw.tensor(k, n)], {"beta": 2} if draw.flag() else {}


@sample(aten.baddbmm.default)
def baddbmm(draw: Draw) -> Sample:
    b, m, k, n = (draw.size() for _ in range(4))
    return [draw.broadcastable([b, m, n]), draw.tensor(b, m, k), draw.tensor(b, k, n)], {}


@sample(aten.mv.default)
def mv(draw: Draw) -> Sample:
    m, k = draw.size(), draw.size()
    return [draw.tensor(m, k), draw.tensor(k)], {}


@sample(aten.dot.default)
def dot(draw: Draw) -> Sample:
    k = draw.size()
    return [draw.tensor(k), draw.tensor(k)], {}


@sample(aten.outer.default, aten.ger.default)
def outer(draw: Draw) -> Sample:
    return [draw.tensor(draw.size()), draw.tensor(draw.size())], {}


@sample(aten.matmul.default)
def matmul(draw: Draw) -> Sample:
    lead, (m, k, n) = draw.shape(0, 2), (draw.size() for _ in range(3))

    def own() -> list[int]:
        return [s if draw.flag() else 1 for s in lead][draw.integer(0, len(lead)) :]

    left = [k] if draw.integer(0, 4) == 0 else [*own(), m, k]
    right = [k] if draw.integer(0, 4) == 0 else [*own(), k, n]
    return [draw.tensor(*left), draw.tensor(*right)], {}


@sample(aten.einsum.default)
def einsum(draw: Draw) -> Sample:
    equation = draw.pick(
        ["bhqd,bhkd->bhqk", "bi,oi->bo", "ij,jk", "bhwc,hkc->bhwk", "nd->dn", "ab,cd->ac", "ii,i->i", "...i,i->...", "abc,ab->abc"]
    )
    extent = {letter: draw.size() for letter in "abcdhijknoqw"}
    terms = equation.split("->")[0].split(",")
    shapes = [[extent[c] for c in term.replace("...", "ab")] for term in terms]
    return [equation, [draw.tensor(*shape) for shape in shapes]], {}


@sample(aten.scaled_dot_product_attention.default)
def attention(draw: Draw) -> Sample:
    q, k, d, e, h, g = draw.size(), draw.size(2), draw.size(), draw.size(), draw.size(), draw.pick([1, 1, 2, 3])
    lead = draw.shape(0, 2)
    heads = draw.flag()
    grouped = heads and g > 1
    query = [*lead, *([h * g if grouped else h] if heads else [draw.size()]), q, d]
    key = [*lead, h if heads else query[-3], k]
    kwargs: dict[str, Any] = {"enable_gqa": True} if grouped else {}
    if draw.flag():
        kwargs["scale"] = 0.3
    mask = draw.broadcastable([*query[:-1], k]) if draw.flag() else None
    if mask is not None and mask.dim() < 2:
        mask = None
    return [draw.tensor(*query), draw.tensor(*key, d), draw.tensor(*key, e), mask], kwargs


@sample(aten.scaled_dot_product_attention.default)
def attention_with_one_key_head(draw: Draw) -> Sample:
    b, h, q, k, d, e = (draw.size(2) for _ in range(6))
    return [draw.tensor(b, h, q, d), draw.tensor(draw.pick([1, b]), 1, k, d), draw.tensor(b, draw.pick([1, h]), k, e)], {}


# -- convolutions --------------------------------------------------------------------------------------------------------


def convolution(rank: int, *, padding: bool, transposed: bool) -> Maker:
    def maker(draw: Draw) -> Sample:
        groups, i, o = draw.pick([1, 1, 2, 3]), draw.size(1, 3), draw.size(1, 3)
        kernel = [draw.size(1, 2) for _ in range(rank)]
        batch = [] if draw.integer(0, 3) == 0 else [draw.size()]
        image = [draw.size(2, 4) for _ in range(rank)]
        weight = [groups * i, o] if transposed else [groups * o, i]
        bias = draw.tensor(groups * o) if draw.flag() else None
        stride, dilation = [draw.size(1, 2)] * rank, [1] * rank
        tail: list[Any] = [stride, [0] * rank, [0] * rank, groups] if transposed else [stride, [draw.size(0, 1)] * rank, dilation, groups]
        if padding:
            tail = [[1] * rank, draw.pick(["same", "valid"]), dilation, groups]
        return [draw.tensor(*batch, groups * i, *image), draw.tensor(*weight, *kernel), bias, *tail], {}

    return maker


for _rank, (_plain, _padded, _transposed) in enumerate(
    [
        (aten.conv1d.default, aten.conv1d.padding, aten.conv_transpose1d.default),
        (aten.conv2d.default, aten.conv2d.padding, aten.conv_transpose2d.input),
        (aten.conv3d.default, aten.conv3d.padding, aten.conv_transpose3d.input),
    ],
    start=1,
):
    sample(_plain)(convolution(_rank, padding=False, transposed=False))
    sample(_padded)(convolution(_rank, padding=True, transposed=False))
    sample(_transposed)(convolution(_rank, padding=False, transposed=True))


# -- normalisations and softmax ------------------------------------------------------------------------------------------


@sample(aten.layer_norm.default, aten.native_layer_norm.default)
def layer_norm(draw: Draw) -> Sample:
    shape = draw.shape(1, 4)
    last = shape[draw.integer(0, len(shape) - 1) :]
    weight = draw.tensor(*last) if draw.flag() else None
    bias = draw.tensor(*last) if weight is not None and draw.flag() else None
    return [draw.tensor(*shape), last, weight, bias, 1e-5], {}


@sample(aten.rms_norm.default)
def rms_norm(draw: Draw) -> Sample:
    shape = draw.shape(1, 4)
    last = shape[draw.integer(0, len(shape) - 1) :]
    return [draw.tensor(*shape), last, draw.tensor(*last) if draw.flag() else None, 1e-6], {}


def _channels(draw: Draw) -> tuple[Tensor, list[Tensor | None]]:
    shape = [draw.size(2), draw.size(), *draw.shape(0, 2)]
    affine = [draw.tensor(shape[1]), draw.tensor(shape[1])] if draw.flag() else [None, None]
    return draw.tensor(*shape), [*affine, draw.tensor(shape[1]), draw.tensor(shape[1]).abs() + 0.5]


@sample(aten.batch_norm.default)
def batch_norm(draw: Draw) -> Sample:
    x, tensors = _channels(draw)
    return [x, *tensors, draw.flag() and x[:, 0].numel() > 1, 0.0, 1e-5, False], {}


@sample(aten.batch_norm.default)
def standardised_weight(draw: Draw) -> Sample:
    x = draw.tensor(draw.size(2), draw.size(), *draw.shape(0, 2))
    weight, bias = draw.tensor(x.shape[1]), draw.tensor(x.shape[1])
    affine = [weight if draw.flag() else None, bias if draw.flag() else None]
    return [x, *affine, None, None, True, 0.0, 1e-5, False], {}


@sample(aten._native_batch_norm_legit_no_training.default)
def native_batch_norm(draw: Draw) -> Sample:
    x, tensors = _channels(draw)
    return [x, *tensors, 0.1, 1e-5], {}


@sample(aten.instance_norm.default)
def instance_norm(draw: Draw) -> Sample:
    x = draw.tensor(draw.size(), draw.size(), draw.size(2), draw.size(2))
    affine = [draw.tensor(x.shape[1]), draw.tensor(x.shape[1])] if draw.flag() else [None, None]
    return [x, *affine, None, None, True, 0.1, 1e-5, False], {}


@sample(aten.group_norm.default)
def group_norm(draw: Draw) -> Sample:
    groups, width = draw.size(), draw.size()
    affine = [draw.tensor(groups * width), draw.tensor(groups * width)] if draw.flag() else [None, None]
    return [draw.tensor(draw.size(), groups * width, draw.size(2), *draw.shape(0, 1)), groups, *affine], {}


@sample(aten.softmax.int, aten.log_softmax.int)
def softmax(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape))], {}


@sample(aten._softmax.default, aten._log_softmax.default)
def private_softmax(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape)), False], {}


@sample(aten.diff.default)
def differences(draw: Draw) -> Sample:
    shape = draw.shape(1, 3)
    dim = draw.dim(len(shape))
    shape[dim] += 1
    more = [draw.tensor(*shape) if draw.flag() else None for _ in range(2)]
    return [draw.tensor(*shape), 1, dim, *more], {}


@sample(aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default, aten.cummax.default, aten.cummin.default)
def running(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape))], {}


@sample(aten.glu.default)
def glu(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    shape[dim] *= 2
    return [draw.tensor(*shape), dim], {}


# -- reductions ----------------------------------------------------------------------------------------------------------


def _dims(draw: Draw, rank: int) -> list[int]:
    return sorted({draw.integer(0, rank - 1) for _ in range(draw.integer(1, rank))})


@sample(aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.logsumexp.default)
def reduced(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), _dims(draw, len(shape)), draw.flag()], {}


@sample(aten.var.dim, aten.std.dim)
def spread(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), _dims(draw, len(shape)), False, draw.flag()], {}


@sample(aten.var.correction, aten.std.correction, aten.var_mean.correction)
def corrected(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.pick([None, _dims(draw, len(shape))])], {"correction": 0, "keepdim": draw.flag()}


@sample(aten.sum.default, aten.mean.default, aten.max.default, aten.min.default, aten.prod.default, aten.any.default, aten.all.default)
def to_one_number(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape())], {}


@sample(
    aten.max.dim, aten.min.dim, aten.median.dim, aten.prod.dim_int, aten.any.dim, aten.all.dim, aten.argmax.default, aten.argmin.default
)
def along_one(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape)), draw.flag()], {}


@sample(aten.argmax.default, aten.argmin.default)
def over_all(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape())], {}


@sample(aten.count_nonzero.dim_IntList)
def counted(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.index(2, *shape), _dims(draw, len(shape))], {}


@sample(aten.norm.ScalarOpt_dim, aten.linalg_vector_norm.default)
def norm(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), 2, _dims(draw, len(shape)), draw.flag()], {}


@sample(aten.topk.default)
def topk(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    return [draw.tensor(*shape), draw.integer(1, shape[dim]), dim], {}


@sample(aten.sort.default, aten.argsort.default)
def sort(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape))], {}


@sample(aten.sort.stable, aten.argsort.stable)
def stable_sort(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape)], {"stable": True, "dim": draw.dim(len(shape))}


# -- pooling and sampling ------------------------------------------------------------------------------------------------


def window(rank: int, *tail: Any) -> Maker:
    def maker(draw: Draw) -> Sample:
        lead = draw.shape(1, 2)
        return [draw.tensor(*lead, *[draw.size(2, 4) for _ in range(rank)]), *tail], {}

    return maker


for _rank in (1, 2, 3):
    for _name in ("max_pool{}d", "avg_pool{}d"):
        sample(getattr(aten, _name.format(_rank)).default)(window(_rank, [2] * _rank))
    for _name in ("adaptive_avg_pool{}d", "adaptive_max_pool{}d"):
        sample(getattr(aten, _name.format(_rank)).default)(window(_rank, [2] * _rank))
sample(aten.max_pool1d_with_indices.default)(window(1, [2]))
sample(aten.max_pool2d_with_indices.default)(window(2, [2, 2]))
sample(aten.reflection_pad2d.default, aten.replication_pad2d.default)(window(2, [1, 0, 1, 1]))


def resized(rank: int, *tail: Any) -> Maker:
    def maker(draw: Draw) -> Sample:
        return [draw.tensor(draw.size(), draw.size(), *[draw.size(2, 4) for _ in range(rank)]), *tail], {}

    return maker


sample(aten.upsample_linear1d.vec)(resized(1, None, False, [2.0]))
sample(aten.upsample_nearest1d.vec)(resized(1, [5], None))
for _op in (aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec, aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec):
    sample(_op)(resized(2, [5, 6], True, None))
sample(aten.upsample_nearest2d.vec)(resized(2, None, [2.0, 2.0]))
sample(aten.upsample_nearest2d.default)(resized(2, [5, 3]))
sample(aten.upsample_bilinear2d.default)(resized(2, [5, 3], False))
sample(aten.upsample_trilinear3d.vec)(resized(3, [4, 4, 4], False, None))
sample(aten.upsample_nearest3d.vec)(resized(3, [4, 4, 4], None))


@sample(aten.grid_sampler.default, aten.grid_sampler_2d.default)
def sampler(draw: Draw) -> Sample:
    b = draw.size()
    return [draw.tensor(b, draw.size(), 3, 4), draw.tensor(b, draw.size(), draw.size(), 2).tanh(), 0, 0, False], {}
