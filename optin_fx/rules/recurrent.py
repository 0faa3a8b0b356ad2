"""Recurrent layers: what comes in may shrink; the state, which every step reads and writes through stacked gates, stays."""

from __future__ import annotations

import torch

from optin_fx.rulebook import Call, Line, line, rule

aten = torch.ops.aten


@rule(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
def recurrent(call: Call) -> Line:
    """`n0 n1 i, ..., g i, g h, ... -> n0 n1 h`: only the width `i` of the first layer's input is free."""
    lead = "n0! n1!" if len(call.operands[0].shape) == 3 else "n0!"
    states = 2 if call.op is aten.lstm.input else 1
    directions = 2 if call["bidirectional"] else 1
    per_direction = 4 if call["has_biases"] else 2
    parts = [f"{lead} i"]
    for k, operand in enumerate(call.operands[1:]):
        own = [f"p{k}_{j}!" for j in range(len(operand.shape))]
        place = k - states
        if 0 <= place < directions * per_direction and place % per_direction == 0:  # input weights of the first layer
            own[-1] = "i"
        parts.append(" ".join(own))
    outputs = [f"{lead} y!"] + [" ".join(f"q{k}_{j}!" for j in range(len(s))) for k, s in enumerate(call.results[1:])]
    return line(f"{', '.join(parts)} -> {', '.join(outputs)}", why=f"the state of a recurrence ({call.op.overloadpacket.__name__})")
