"""Sample calls of the overloads that only some architectures use: recurrences, patches, writes by position."""

from __future__ import annotations

import torch
from samples import Sample, sample
from square import Draw, aten
from torch import nn


@sample(aten.where.ScalarOther)
def where_tensor_or_number(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape) > 0, draw.tensor(*shape), 0.5], {}


@sample(aten.where.ScalarSelf)
def where_number_or_tensor(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape) > 0, 0.5, draw.tensor(*shape)], {}


@sample(aten.where.Scalar)
def where_two_numbers(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape()) > 0, 0.5, 2.0], {}


@sample(aten.masked_fill_.Scalar)
def masked_fill(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.broadcastable(shape) > 0, 0.5], {}


@sample(aten.masked_fill_.Tensor)
def masked_fill_by_tensor(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.broadcastable(shape) > 0, torch.tensor(0.5)], {}


@sample(aten.hardswish.default, aten.hardswish_.default, aten.real.default)
def one_operand(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape())], {}


@sample(aten.multiply.Tensor, aten.floor_divide.default)
def two_operands(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.tensor(*shape).abs() + 1], {}


@sample(aten.multiply.Scalar)
def times_number(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape()), 1.5], {}


@sample(aten._weight_norm.default)
def weight_norm(draw: Draw) -> Sample:
    shape = draw.shape(2)
    dim = draw.dim(len(shape))
    dim += len(shape) if dim < 0 else 0
    return [draw.tensor(*shape), draw.tensor(*(n if i == dim else 1 for i, n in enumerate(shape))), dim], {}


@sample(aten.fft_fftn.default, aten.fft_ifftn.default)
def fourier(draw: Draw) -> Sample:
    shape = draw.shape(2)
    return [draw.tensor(*shape), None, [draw.dim(len(shape))]], {}


@sample(aten.fft_fft.default, aten.fft_ifft.default)
def fourier_along(draw: Draw) -> Sample:
    shape = draw.shape()
    return [draw.tensor(*shape), None, draw.dim(len(shape))], {}


@sample(aten.bilinear.default)
def bilinear(draw: Draw) -> Sample:
    i, j, o, lead = draw.size(), draw.size(), draw.size(), draw.shape(0, 2)
    bias = draw.tensor(o) if draw.flag() else None
    return [draw.tensor(*lead, i), draw.tensor(*lead, j), draw.tensor(o, i, j), bias], {}


@sample(aten.embedding_bag.padding_idx)
def bags(draw: Draw) -> Sample:
    rows, count = draw.size(2), draw.size(2, 6)
    mode = draw.integer(0, 1)
    args = [draw.tensor(rows, draw.size()), draw.index(rows, count), torch.tensor([0, count // 2])]
    return [*args, False, mode, False, None, False, None], {}


@sample(aten.embedding_bag.default)
def bags_without_padding(draw: Draw) -> Sample:
    rows, count = draw.size(2), draw.size(2, 6)
    return [draw.tensor(rows, draw.size()), draw.index(rows, count), torch.tensor([0, count // 2])], {}


@sample(aten.unfold.default)
def windows(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    size = draw.integer(1, shape[dim])
    return [draw.tensor(*shape), dim, size, draw.integer(1, 3)], {}


@sample(aten.im2col.default)
def patches(draw: Draw) -> Sample:
    lead = [draw.size(), draw.size()] if draw.flag() else [draw.size()]
    return [draw.tensor(*lead, 5, 4), [2, 3], [1, 1], [draw.integer(0, 1)] * 2, [draw.integer(1, 2)] * 2], {}


@sample(aten.col2im.default)
def image(draw: Draw) -> Sample:
    lead = [draw.size()] if draw.flag() else []
    return [draw.tensor(*lead, 6 * draw.size(), 8), [5, 4], [2, 3], [1, 1], [0, 0], [1, 1]], {}


@sample(aten.index_put.default, aten.index_put_.default)
def index_put(draw: Draw) -> Sample:
    shape, count = draw.shape(2), draw.size()
    indexed = draw.integer(1, len(shape))
    indices = [draw.index(shape[i], count) for i in range(indexed)]
    return [draw.tensor(*shape), indices, draw.tensor(count, *shape[indexed:]), True], {}


@sample(aten.scatter.src, aten.scatter_.src, aten.scatter_add.default, aten.scatter_add_.default)
def scatter(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    return [draw.tensor(*shape), dim, draw.index(shape[dim], *shape), draw.tensor(*shape)], {}


@sample(aten.scatter.value, aten.scatter_.value)
def scatter_number(draw: Draw) -> Sample:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    return [draw.tensor(*shape), dim, draw.index(shape[dim], *shape), 0.5], {}


@sample(aten.histc.default)
def histogram(draw: Draw) -> Sample:
    return [draw.tensor(*draw.shape()), 5, -1, 1], {}


@sample(aten.bincount.default)
def counts(draw: Draw) -> Sample:
    return [draw.index(4, draw.size())], {}


def _weights(draw: Draw, kind: type[nn.RNNBase]) -> tuple[nn.RNNBase, torch.Tensor]:
    inputs, layers = draw.size(), draw.integer(1, 2)
    rnn = kind(
        inputs, draw.size(2), layers, batch_first=draw.flag(), bidirectional=draw.flag(), bias=draw.flag(), dtype=torch.float64
    ).eval()
    return rnn, draw.tensor(2, 2, inputs)


@sample(aten.lstm.input)
def lstm(draw: Draw) -> Sample:
    rnn, x = _weights(draw, nn.LSTM)
    state = torch.zeros(rnn.num_layers * (2 if rnn.bidirectional else 1), 2, rnn.hidden_size, dtype=torch.float64)
    weights = [draw.tensor(*w.shape) for w in rnn._flat_weights]
    return [x, [state, state.clone()], weights, rnn.bias, rnn.num_layers, 0.0, False, rnn.bidirectional, rnn.batch_first], {}


@sample(aten.gru.input)
def gru(draw: Draw) -> Sample:
    return _one_state(draw, nn.GRU)


@sample(aten.rnn_tanh.input, aten.rnn_relu.input)
def rnn(draw: Draw) -> Sample:
    return _one_state(draw, nn.RNN)


def _one_state(draw: Draw, kind: type[nn.RNNBase]) -> Sample:
    rnn, x = _weights(draw, kind)
    state = torch.zeros(rnn.num_layers * (2 if rnn.bidirectional else 1), 2, rnn.hidden_size, dtype=torch.float64)
    weights = [draw.tensor(*w.shape) for w in rnn._flat_weights]
    return [x, state, weights, rnn.bias, rnn.num_layers, 0.0, False, rnn.bidirectional, rnn.batch_first], {}


@sample(aten.tile.default)
def tile_last(draw: Draw) -> Sample:
    shape = draw.shape(2)
    return [draw.tensor(*shape), [draw.integer(1, 3)]], {}


@sample(aten.reshape.default)
def dealt_anew(draw: Draw) -> Sample:
    a, b, lead = draw.integer(2, 4), draw.integer(2, 4), draw.size()
    return [draw.tensor(lead, a, b, draw.size()), [lead, b, a, -1]], {}
