"""Two graphs side by side, with what waits in memory or on disk: the same values, within the limit."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.compensation import Compensation
from optin_fx.data import batches_of
from optin_fx.errors import SaveError
from optin_fx.execution import execution
from optin_fx.lockstep import Lockstep
from optin_fx.reconstruction import reconstruct
from optin_fx.rewriting import sliced
from optin_fx.shelf import Shelf, bytes_of

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_shelf_gives_back_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shelf = Shelf(limit=1000)
    for number in range(4):  # 400 bytes each: two stay in memory
        whole = torch.arange(100, dtype=torch.float32) + number
        shelf.put(number, {"whole": whole, "part": whole[10:20].unflatten(0, (2, 5)).T, "others": (number, [None, whole > 5])})
    assert shelf.held == 2 * 500
    assert len(list(tmp_path.rglob("*.pt"))) == 2
    for number in range(4):
        assert torch.equal(shelf.look(number)["whole"], torch.arange(100) + number)
    assert shelf.held == 2 * 500
    for number in range(4):
        found = shelf.take(number)
        assert torch.equal(found["whole"], torch.arange(100) + number)
        assert torch.equal(found["part"], (torch.arange(10, 20) + number).reshape(2, 5).T)
        assert found["part"].stride() == (1, 5)
        assert found["others"][0] == number
        found["part"][0, 0] = -1  # one memory still
        assert found["whole"][10] == -1
    assert shelf.held == 0
    shelf.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(torch, "save", full)
    shelf = Shelf(limit=2 << 20)
    shelf.put(0, torch.zeros(1 << 18))
    with pytest.raises(SaveError) as caught:
        shelf.put(1, torch.zeros(1 << 19))
    (folder,) = tmp_path.iterdir()
    assert str(caught.value).splitlines() == [
        "cannot write the values of a batch: No space left on device",
        f"  at  {folder}/1.pt",
        "  so  they cannot wait",
        "  fix let the environment's TMPDIR name a folder with room, or allow more memory with execution(memory_limit=...)",
    ]
    shelf.close()


def test_memory_counts_once_and_whole() -> None:
    whole = torch.zeros(100)
    assert bytes_of([whole, whole[:3], {"a": whole.reshape(10, 10), "b": 3}, torch.zeros(5, dtype=torch.int64)]) == 440


class Writes(nn.Module):
    """Writes in place through views, reads a weight's view late, and has two results of one op."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = nn.Linear(8, 24), nn.Linear(12, 16), nn.Linear(16, 24)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        both = self.one(x)
        left, right = both[:, :12], both[:, 12:]
        left.relu_()
        late = self.two(left)
        late += 1.0
        out = self.three(late.tanh_())
        most, where = out.max(-1)
        return both * out + right.sum(1, keepdim=True) + out @ self.three.weight.view(24, 16).sum(1, keepdim=True), most, where


@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_both_graphs_compute_what_they_compute_alone(limit: int) -> None:
    data = [torch.randn(4, 8) for _ in range(3)]
    program = ofx.trace(Writes(), (data[0],))
    plan = ofx.random_plan(program, 0.6, seed=0)
    assert plan.kept
    small = sliced(program, plan)
    compared = 0
    with Lockstep(small, program, batches_of(program, data, needed_for="test"), limit) as both, torch.no_grad():

        def see(number: int) -> None:
            nonlocal compared
            for stream in (both.dense, both.sliced):
                results = next(node for node in stream.module.graph.nodes if node.op == "output").args[0]
                for node, value in zip(results, stream.module(data[number]), strict=True):
                    assert torch.equal(stream.value(node), value)
                    compared += 1

        for node in small.graph.nodes:
            both.visit(node, see if node.op == "output" else lambda number: None)
    assert compared == 2 * 3 * len(data)


def test_views_of_weights_may_depend_on_sizes() -> None:
    """Position embeddings as long as the input: the length is no weight, and is not there any more when the view is read again."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Parameter(torch.randn(16, 8))
            self.one, self.two = nn.Linear(8, 24), nn.Linear(24, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            table = self.table[: x.shape[1]]
            return self.two(self.one(x + table).relu()) + table

    model, length = Positions(), torch.export.Dim("length", min=2, max=16)
    data = [torch.randn(8, n, 8) for n in (5, 7, 9)]
    program = ofx.trace(model, (data[0],), dynamic_shapes=({1: length},))
    module, report = reconstruct(program, ofx.random_plan(program, 0.5, seed=0), batches_of(program, data, needed_for="test"))
    assert [item.level for item in report] == ["affine"]
    assert module(data[2]).shape == data[2].shape


@pytest.mark.parametrize("options", [Compensation(), Compensation(mode="parallel", target="own"), Compensation(norms=True)])
def test_a_limit_does_not_change_a_bit(options: Compensation) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.ReLU())
    model = nn.Sequential(model, nn.Conv2d(24, 8, 1), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    data = [torch.randn(8, 3, 8, 8) for _ in range(5)]
    program = ofx.trace(model, (data[0],))
    plan, batches = ofx.random_plan(program, 0.4, seed=1), batches_of(program, data, needed_for="test")
    free, report = reconstruct(program, plan, batches, options)
    with execution(memory_limit=50_000):
        tight, same = reconstruct(program, plan, batches, options)
    assert any(item.level == "affine" for item in report)
    assert list(map(str, report)) == list(map(str, same))
    for name, value in free.state_dict().items():
        assert torch.equal(value, tight.state_dict()[name]), name


PEAK = """
    import sys, torch
    from torch import nn
    import optin_fx as ofx
    from optin_fx.data import batches_of
    from optin_fx.execution import execution
    from optin_fx.reconstruction import reconstruct

    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(2) for layer in (nn.Linear(64, 64), nn.Tanh())], nn.Linear(64, 2))
    data = [torch.randn(32, 512, 64) for _ in range(40)]  # 8 MB of values each, in both programs
    program = ofx.trace(model, (data[0],))
    batches = batches_of(program, data, needed_for="peak")
    reconstruct(program, ofx.random_plan(program, 0.9), batches[:2])  # what loads on first use
    # ru_maxrss would begin with that of the process that started this one
    peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
    before = peak()
    for limit in sys.argv[1:]:
        with execution(memory_limit=limit):
            reconstruct(program, ofx.random_plan(program, 0.9), batches)
        print((peak() - before) / 1024)
"""


def test_a_limit_on_memory_limits_memory() -> None:
    """Without a limit all 40 batches wait in memory. The limit counts tensors; what the allocator does not give back is not among them."""

    command = [sys.executable, "-c", textwrap.dedent(PEAK), "60 MB", "10 GB"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    limited, free = map(float, done.stdout.split())
    assert limited < 120
    assert free > 240
