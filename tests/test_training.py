"""Training what was pruned: modes, gradients, an optimiser that lowers the loss, statistics that move; as a program and written back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import optin_fx as ofx
from optin_fx.writeback import apply_to


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout2d(0.2))
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.body(x)
        return self.head(self.drop(x.mean((2, 3))))


def images() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(32) % 4
    x = 0.3 * torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    x[:, 0] += labels[:, None, None] - 1.5
    return x, labels


def learn(module: nn.Module, steps: int, call: object = None, rate: float = 0.02) -> tuple[float, float]:
    """Loss in eval mode before and after some steps of Adam in train mode."""
    x, labels = images()
    run = call or (lambda: module(x))
    optimiser = torch.optim.Adam(module.parameters(), rate)

    def loss() -> torch.Tensor:
        return F.cross_entropy(run(), labels)  # type: ignore[operator]

    with torch.no_grad():
        before = loss().item()
    module.train()
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    module.eval()
    with torch.no_grad():
        return before, loss().item()


@pytest.fixture
def pruned() -> tuple[ConvNet, ofx.Program, ofx.Plan]:
    torch.manual_seed(0)
    model = ConvNet()
    program = ofx.trace(model, (images()[0][:2],))
    return model, program, ofx.random_plan(program, 0.6, seed=0)


def test_modes(pruned: tuple[ConvNet, ofx.Program, ofx.Plan]) -> None:
    _, program, plan = pruned
    small, (x, _) = ofx.rewrite(program, plan), images()
    module = small.module()
    assert not module.training
    assert torch.equal(module(x), small(x))
    assert torch.equal(module(x), module(x))
    assert not torch.equal(module.train()(x), module(x))  # dropout draws anew
    assert module.training
    again = copy.deepcopy(module).eval()
    assert torch.equal(again(x), again(x))
    assert not torch.equal(module(x), module(x)), "a copy was switched, not this one"
    assert torch.equal(small(x), small(x)), "the program itself stays in eval mode"


def test_the_statistics_move_as_those_of_the_eager_module(pruned: tuple[ConvNet, ofx.Program, ofx.Plan]) -> None:
    model, program, plan = pruned
    module, (x, _) = ofx.rewrite(program, plan).module(), images()
    assert apply_to(model, program, plan)
    before = module.get_buffer("stem.1.running_mean").clone()
    module.train()(x)
    model.train()(x)
    moved = module.get_buffer("stem.1.running_mean")
    assert not torch.equal(moved, before)
    torch.testing.assert_close(moved, model.stem[1].running_mean)
    torch.testing.assert_close(module.get_buffer("stem.1.running_var"), model.stem[1].running_var)


def test_a_pruned_network_learns(pruned: tuple[ConvNet, ofx.Program, ofx.Plan]) -> None:
    model, program, plan = pruned
    small = ofx.rewrite(program, plan)
    module = small.module()
    before, after = learn(module, 30)
    assert after < 0.5 * before
    assert all(p.grad is not None for p in module.parameters())
    x, _ = images()
    torch.testing.assert_close(small(x), module(x), msg="training a program's module trains the program")
    assert apply_to(model, program, plan)
    before, after = learn(model, 30)
    assert after < 0.5 * before


def test_dropout_that_the_model_wants_always_stays_on() -> None:
    class MonteCarlo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 32), nn.Linear(32, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(F.dropout(self.up(x), 0.5, training=True))

    module = ofx.trace(MonteCarlo(), (torch.randn(2, 4),)).module().eval()
    x = torch.randn(3, 4)
    assert not torch.equal(module(x), module(x))


def test_bert_learns() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=4, hidden_dropout_prob=0.2))
    ids = torch.randint(5, 60, (32, 7))
    ids[:, 1] = images()[1]  # the label stands in the text
    program = ofx.trace(model, (), {"input_ids": ids})
    plan = ofx.random_plan(program, 0.6, seed=0)
    module = ofx.rewrite(program, plan).module()
    assert not torch.equal(module.train()(input_ids=ids).logits, module(input_ids=ids).logits)
    before, after = learn(module.eval(), 25, lambda: module(input_ids=ids).logits, rate=0.005)
    assert after < 0.7 * before
    followed = {g.name: range(g.extent // 2) for g in ofx.group(program).free if g.kind in ("head", "neuron")}
    assert apply_to(model.eval(), program, ofx.make_plan(program, followed))
    before, after = learn(model, 25, lambda: model(input_ids=ids).logits, rate=0.005)
    assert after < 0.7 * before
