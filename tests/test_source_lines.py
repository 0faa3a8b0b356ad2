"""The user's own line in a stack trace of torch.export."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.source_lines import user_line

USER = '  File "/home/me/net.py", line 7, in forward\n    return self.fc(x)\n'
TORCH = f'  File "{torch.__path__[0]}/nn/modules/linear.py", line 134, in forward\n    return F.linear(...)\n'
ELSEWHERE = '  File "/opt/py/lib/python3.12/dist-packages/torch/nn/modules/conv.py", line 565, in forward\n    return self._conv(...)\n'
LIBRARY = '  File "/opt/py/lib/python3.12/site-packages/torchvision/ops/misc.py", line 3, in forward\n    return conv(x)\n'


@pytest.mark.parametrize(
    ("trace", "line"),
    [
        (USER, "/home/me/net.py:7"),
        (USER + TORCH, "/home/me/net.py:7"),
        (USER + ELSEWHERE, "/home/me/net.py:7"),
        (USER + TORCH + LIBRARY + TORCH, "/opt/py/lib/python3.12/site-packages/torchvision/ops/misc.py:3"),
        (ELSEWHERE, "/opt/py/lib/python3.12/dist-packages/torch/nn/modules/conv.py:565"),
        ('  File "torch/fx/passes/runtime_assert.py", line 24, in insert\n' + USER, "/home/me/net.py:7"),
        ("nothing", None),
        (None, None),
    ],
)
def test_the_innermost_frame_outside_of_torch(trace: str | None, line: str | None) -> None:
    assert user_line(trace) == line


def test_a_layer_of_torch_is_where_the_model_calls_it() -> None:
    """Also in a program that was rewritten, and in one that was saved."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
            self.norm = nn.LayerNorm(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(x)
            return self.norm(x).sum(-1)

    program = ofx.trace(Net(), (torch.randn(2, 4),))
    first = Net.forward.__code__.co_firstlineno
    for which in (program, ofx.rewrite(program, ofx.random_plan(program, seed=0))):
        text = ofx.group(which).explain("norm.weight")
        assert f"normalised together (layer_norm) at %layer_norm, test_source_lines.py:{first + 2}" in text
