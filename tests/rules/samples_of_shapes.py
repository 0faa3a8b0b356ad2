"""Sample calls of ops that move entries: views, joins, look-ups, tensors made from nothing."""

from __future__ import annotations

import torch
from samples import Sample, sample
from square import Draw, aten


def _split_somewhere(draw: Draw, extents: list[int]) -> list[int]:
    """Merge some neighbours and split some extents."""
    out: list[int] = []
    for n in extents:
        if out and draw.flag():
            out[-1] *= n
        else:
            out.append(n)
    found: list[int] = []
    for n in out:
        divisor = draw.pick([d for d in range(1, n + 1) if n % d == 0])
        found += [divisor, n // divisor] if draw.flag() else [n]
    return found


@sample(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def reshape(draw: Draw) -> Sample:
    before = [draw.pick([1, 2, 3, 4, 6]) for _ in range(draw.integer(1, 4))]
    after = _split_somewhere(draw, before)
    if draw.flag():
        after[draw.integer(0, len(after) - 1)] = -1
    return [draw.tensor(*before), after], {}


@sample(aten.view_as.default, aten.reshape_as.default)
def reshape_as(draw: Draw) -> Sample:
    before = [draw.pick([1, 2, 3, 4, 6]) for _ in range(draw.integer(1, 3))]
    return [draw.tensor(*before), draw.tensor(*_split_somewhere(draw, before))], {}


@sample(aten.flatten.using_ints)
def flatten(draw: Draw) -> Sample:
    shape = draw.shape()
    start = draw.integer(0, len(shape) - 1)
    return [draw.tensor(*shape), start, draw.integer(start, len(shape) - 1)], {}


@sample(aten.ravel.default)
def ravel(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape())], {}


@sample(aten.unflatten.int)
def unflatten(draw: Draw) -> Sample:
    shape, (a, b) = draw.shape(), (draw.size(), draw.size())
    dim = draw.dim(len(shape))
    shape[dim] = a * b
    return [draw.tensor(*shape), dim, draw.pick([[a, b], [-1, b], [a, -1]])], {}


@sample(aten.permute.default)
def permute(draw: Draw) -> Sample:
    shape = draw.shape()
    order = torch.randperm(len(shape), generator=draw.generator).tolist()
    return [draw.tensor(*shape), order], {}


@sample(aten.transpose.int, aten.swapaxes.default, aten.transpose_.default)
def transpose(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape)), draw.dim(len(shape))], {}


@sample(aten.t.default)
def t(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape(1, 2))], {}


@sample(aten.numpy_T.default)
def reverse(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape(2, 2))], {}


@sample(aten.mT.default)
def last_two(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape(2, 4))], {}


@sample(aten.movedim.int)
def movedim(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape)), draw.dim(len(shape))], {}


@sample(aten.movedim.intlist)
def movedims(draw: Draw) -> Sample:
    shape = draw.shape(2)
    return [draw.tensor(*shape), draw.pick([[0, 1], [1, 0]]), draw.pick([[-1, 0], [1, 0], [0, -1]])], {}


@sample(aten.unsqueeze.default, aten.unsqueeze_.default)
def unsqueeze(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape) + 1)], {}


@sample(aten.squeeze.default, aten.squeeze_.default)
def squeeze(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape())], {}


@sample(aten.squeeze.dim, aten.squeeze_.dim)
def squeeze_dim(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape))], {}


@sample(aten.squeeze.dims, aten.squeeze_.dims)
def squeeze_dims(draw: Draw) -> Sample:
    shape = draw.shape(2)
    return [draw.tensor(*shape), [0, -1]], {}


@sample(aten.expand.default)
def expand(draw: Draw) -> Sample:
    shape = [draw.pick([1, 3]) for _ in range(draw.integer(1, 3))]
    out = [draw.size() for _ in range(draw.integer(0, 2))] + [draw.pick([n, -1]) if n > 1 else draw.size() for n in shape]
    return [draw.tensor(*shape), out], {}


@sample(aten.broadcast_to.default)
def broadcast_to(draw: Draw) -> Sample:
    shape = [draw.pick([1, 3]) for _ in range(draw.integer(1, 3))]
    return [draw.tensor(*shape), [draw.size() for _ in range(draw.integer(0, 2))] + [n if n > 1 else draw.size() for n in shape]], {}


@sample(aten.expand_as.default)
def expand_as(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.broadcastable(shape), draw.tensor(*shape)], {}


@sample(aten.repeat.default)
def repeat(draw: Draw) -> Sample:
    shape = draw.shape(1, 3)
    return [draw.tensor(*shape), [draw.size(1, 3) for _ in range(len(shape) + draw.integer(0, 1))]], {}


@sample(aten.tile.default)
def tile(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape(1, 3)), [draw.size(1, 3) for _ in range(draw.integer(1, 4))]], {}


@sample(aten.repeat_interleave.self_int)
def repeat_interleave(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.size(1, 3), draw.pick([None, draw.dim(len(shape))])], {}


@sample(aten.pixel_shuffle.default)
def pixel_shuffle(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape(1, 1), 4 * draw.size(), draw.size(), draw.size()), 2], {}


@sample(aten.pixel_unshuffle.default)
def pixel_unshuffle(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape(1, 1), draw.size(), 2 * draw.size(), 2 * draw.size()), 2], {}


@sample(aten.channel_shuffle.default)
def channel_shuffle(draw: Draw) -> Sample:
    groups = draw.size(2)
    return [draw.tensor(draw.size(), groups * draw.size(), draw.size(), draw.size()), groups], {}


# -- joins and cuts ------------------------------------------------------------------------------------------------------


@sample(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    parts = []
    for _ in range(draw.integer(1, 4)):
        shape[dim] = draw.size()
        parts.append(draw.tensor(*shape))
    if draw.integer(0, 3) == 0:
        parts.insert(draw.integer(0, len(parts)), draw.tensor(0))
    return [parts, dim], {}


@sample(aten.stack.default)
def stack(draw: Draw) -> Sample:
    shape = draw.shape()
    return [[draw.tensor(*shape) for _ in range(draw.integer(1, 3))], draw.dim(len(shape) + 1)], {}


@sample(aten.unbind.int)
def unbind(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape))], {}


@sample(aten.select.int, aten.select_copy.int)
def select(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    return [draw.tensor(*shape), dim, draw.integer(-shape[dim], shape[dim] - 1)], {}


@sample(aten.split.Tensor, aten.unsafe_split.Tensor)
def split(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    shape[dim] = draw.size(1, 8)
    return [draw.tensor(*shape), draw.size(1, 4), dim], {}


@sample(aten.split.sizes, aten.split_with_sizes.default)
def split_sizes(draw: Draw) -> Sample:
    shape, sizes = draw.shape(), [draw.size() for _ in range(draw.integer(1, 3))]
    dim = draw.dim(len(shape))
    shape[dim] = sum(sizes)
    return [draw.tensor(*shape), sizes, dim], {}


@sample(aten.chunk.default, aten.unsafe_chunk.default, aten.tensor_split.sections)
def chunk(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    shape[dim] = draw.size(3, 8)
    return [draw.tensor(*shape), draw.size(1, 3), dim], {}


@sample(aten.tensor_split.indices)
def tensor_split(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    shape[dim] = draw.size(3, 8)
    return [draw.tensor(*shape), sorted({draw.integer(1, shape[dim] - 1) for _ in range(2)}), dim], {}


@sample(aten.slice.Tensor)
def slice_(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    shape[dim] = n = draw.size(1, 8)
    start = draw.pick([None, draw.integer(-n, n)])
    end = draw.pick([None, draw.integer(-n, n), 2**63 - 1])
    return [draw.tensor(*shape), dim, start, end, draw.pick([1, 1, 1, 2])], {}


@sample(aten.narrow.default)
def narrow(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    shape[dim] = n = draw.size(1, 8)
    start = draw.integer(0, n - 1)
    return [draw.tensor(*shape), dim, start, draw.integer(1, n - start)], {}


@sample(aten.constant_pad_nd.default)
def constant_pad(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), [draw.integer(0, 2) for _ in range(2 * draw.integer(1, len(shape)))], draw.pick([0, 1.5])], {}


@sample(aten.pad.default)
def pad(draw: Draw) -> Sample:
    shape = [draw.size(), draw.size(), draw.size(3), draw.size(3)]
    mode = draw.pick(["constant", "reflect", "replicate", "circular"])
    widths = [draw.integer(-1 if mode == "constant" else 0, 2) for _ in range(4)]
    return [draw.tensor(*shape), widths, mode, 0.5 if mode == "constant" and draw.flag() else None], {}


# -- look-ups ------------------------------------------------------------------------------------------------------------


@sample(aten.embedding.default)
def embedding(draw: Draw) -> Sample:
    rows = draw.size(2)
    return [draw.tensor(rows, draw.size()), draw.index(rows, *draw.shape(0, 3))], {}


@sample(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(draw: Draw) -> Sample | None:
    shape = draw.shape()
    common = draw.shape(1, 2)
    given = [
        draw.index(n, *[s if draw.flag() else 1 for s in common][draw.integer(0, len(common) - 1) :]) if draw.flag() else None
        for n in shape
    ]
    return None if all(item is None for item in given) else ([draw.tensor(*shape), given], {})


@sample(aten.index_select.default)
def index_select(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    return [draw.tensor(*shape), dim, draw.index(shape[dim], draw.size())], {}


@sample(aten.gather.default)
def gather(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    where = [draw.integer(1, n) for n in shape]
    where[dim] = draw.size()
    return [draw.tensor(*shape), dim, draw.index(shape[dim], *where)], {}


@sample(aten.take_along_dim.default)
def take_along(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    where = [draw.pick([1, n]) for n in shape]
    where[dim] = draw.size()
    return [draw.tensor(*shape), draw.index(shape[dim], *where), dim], {}


@sample(aten.flip.default)
def flip(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), [draw.dim(len(shape))]], {}


@sample(aten.roll.default)
def roll(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), [1], draw.pick([[draw.dim(len(shape))], []])], {}


@sample(aten.triu.default, aten.tril.default)
def triangle(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape(2)), draw.integer(-1, 1)], {}


@sample(aten.one_hot.default)
def one_hot(draw: Draw) -> Sample:
    return [draw.index(4, *draw.shape()), 4], {}


@sample(aten.meshgrid.default)
def meshgrid(draw: Draw) -> Sample:
    return [[draw.tensor(draw.size()) for _ in range(draw.integer(1, 3))]], {}


@sample(aten.meshgrid.indexing)
def meshgrid_indexing(draw: Draw) -> Sample:
    return [[draw.tensor(draw.size()) for _ in range(draw.integer(1, 3))]], {"indexing": draw.pick(["ij", "xy"])}


# -- made from nothing ---------------------------------------------------------------------------------------------------


@sample(aten.zeros.default, aten.ones.default, aten.rand.default, aten.randn.default, aten.empty.memory_format)
def made(draw: Draw) -> Sample:
    return [draw.shape()], {}


@sample(aten.full.default)
def full(draw: Draw) -> Sample:
    return [draw.shape(), 1.5], {}


@sample(aten.new_zeros.default, aten.new_ones.default, aten.new_empty.default)
def new(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape()), draw.shape()], {}


@sample(aten.new_full.default)
def new_full(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape()), draw.shape(), 1.5], {}


@sample(aten.arange.default, aten.scalar_tensor.default)
def one_number(draw: Draw) -> Sample:
    return [draw.size()], {}


@sample(aten.arange.start)
def from_to(draw: Draw) -> Sample:
    return [1, 1 + draw.size()], {}


@sample(aten.arange.start_step)
def with_step(draw: Draw) -> Sample:
    return [0, 2 * draw.size(), 2], {}


@sample(aten.linspace.default)
def linspace(draw: Draw) -> Sample:
    return [0.0, 1.0, draw.size()], {}


@sample(aten.eye.default)
def eye(draw: Draw) -> Sample:
    return [draw.size()], {}


@sample(aten.eye.m, aten.tril_indices.default, aten.triu_indices.default)
def two_numbers(draw: Draw) -> Sample:
    return [draw.size(), draw.size()], {}
