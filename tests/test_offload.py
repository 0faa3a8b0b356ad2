"""Weights that are away: the same scores, in less memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import LoadError
from optin_fx.execution import execution
from optin_fx.interpreter import Runner
from optin_fx.offload import OnDisk, away, on_disk


class Net(nn.Module):
    """Weights of more than 64 KB, two of them tied."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.head = nn.Linear(150, 200), nn.Linear(200, 150), nn.Linear(150, 200), nn.Linear(200, 5)
        self.fc3.weight = self.fc1.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.fc3(self.fc2(torch.tanh(self.fc1(x))))))


@pytest.fixture(scope="module")
def program() -> ofx.Program:
    torch.manual_seed(0)
    return ofx.trace(Net(), (torch.randn(3, 150),))


METHODS = ["trajectory", "trajectory-sketch", "fisher", "taylor", "wanda", "activation", "magnitude"]


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_the_same(program: ofx.Program, tmp_path: Path, method: str) -> None:
    data = [torch.randn(4, 150)]
    expected = ofx.score(program, method, data=data)
    there = on_disk(program, tmp_path / "weights.safetensors")
    assert there.fingerprint == program.fingerprint
    assert [t.device.type for t in there.tensors.values()].count("meta") == 2  # a tie is one tensor
    with execution(offload=True):
        found = [ofx.score(there, method, data=data), ofx.score(program, method, data=data)]
    for scores in found:
        assert scores.provenance["weights"] == expected.provenance["weights"]
        for name in expected:
            assert torch.allclose(scores[name], expected[name], rtol=1e-6)


def test_a_backward_pass_keeps_no_weight(program: ofx.Program, tmp_path: Path) -> None:
    there = on_disk(program, tmp_path / "weights.safetensors")
    reads: list[str] = []
    read = OnDisk.read

    class Counting(OnDisk):
        def read(self, name: str) -> torch.Tensor:
            reads.append(name)
            return read(self, name)

    counted = away(program, Counting(tmp_path / "weights.safetensors"))
    gate = {g.name: torch.ones(3, g.extent, requires_grad=True) for g in ofx.group(there).free}
    runner = Runner(counted, gates=gate)
    with torch.enable_grad():
        (out,) = runner(ofx.Batch(program.args))
    forward = len(reads)
    torch.autograd.grad(out.sum(), list(gate.values()))
    assert forward == 3
    assert len(reads) > forward


def test_missing_files_and_weights_are_refused(program: ofx.Program, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(LoadError, match="not a file of weights"):
        OnDisk(tmp_path / "none.safetensors")
    save_file({"other": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(LoadError, match=r"the file has no weight 'fc"):
        ofx.score(away(program, OnDisk(tmp_path / "other.safetensors")), "wanda", data=[torch.randn(4, 150)])


PEAK = """
    import sys, torch
    from torch import nn
    import optin_fx as ofx
    from optin_fx.offload import OnDisk, away

    LAYERS, WIDTH = 18, 2048  # 18 x 16 MB

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(WIDTH, WIDTH)
        def forward(self, x):
            return torch.tanh(self.fc(x))

    def skeleton():  # the graph alone: weights are empty, and no memory is taken for them
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(16, WIDTH), *[Block() for _ in range(LAYERS)], nn.Linear(WIDTH, 4))
        return model.to_empty(device="cpu").eval()

    def peak():
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

    torch.manual_seed(1)
    x = torch.randn(4, 16)
    if sys.argv[1] == "write":
        from safetensors.torch import save_file
        torch.manual_seed(0)
        model = skeleton()
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(std=0.03)
        save_file(dict(model.state_dict()), sys.argv[2])
        scores = ofx.score(ofx.trace(model, (x,)), sys.argv[4], data=[x])
    else:
        exported = torch.export.export(skeleton(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        program = away(ofx.trace(exported, (x,)), OnDisk(sys.argv[2]))
        before = peak()
        scores = ofx.score(program, sys.argv[4], data=[x])
        print(peak() - before)
    scores.save(sys.argv[3])
"""


@pytest.mark.parametrize("method", ["trajectory-sketch", "wanda"])
def test_a_model_three_times_larger_than_the_memory(tmp_path: Path, method: str) -> None:
    """288 MB of weights in less than 96 MB above what the interpreter and the graph take."""

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", textwrap.dedent(PEAK), *arguments, method]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("write", "weights.safetensors", "whole.safetensors")
    assert (tmp_path / "weights.safetensors").stat().st_size > 3 * 96e6
    assert float(run("away", "weights.safetensors", "away.safetensors")) < 96
    whole, found = (ofx.Scores.load(tmp_path / name) for name in ("whole.safetensors", "away.safetensors"))
    for name, other in zip(whole, found, strict=True):
        assert torch.allclose(whole[name], found[other], rtol=1e-4)
