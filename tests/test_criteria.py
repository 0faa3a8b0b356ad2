"""The criteria that read collected statistics, each against its formula written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import optin_fx as ofx
from optin_fx.analysis import analyse
from optin_fx.errors import DataError, PipelineError, ScoreError
from optin_fx.statistics import collect


class Net(nn.Module):
    """A small text classifier: attention with heads, a feed-forward layer, padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc1, self.fc2, self.head = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        allowed = (attention_mask != 0)[:, None, None, :]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2))
        x = x + self.fc2(F.gelu(self.fc1(x)))
        weights = attention_mask.unsqueeze(-1).to(x)
        return self.head((x * weights).sum(1) / weights.sum(1))


@pytest.fixture(scope="module")
def text() -> tuple[ofx.Program, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    batches = []
    for n in (3, 4):
        mask = (torch.arange(5)[None] < torch.randint(2, 6, (n, 1))).long()
        batches.append({"input_ids": torch.randint(0, 20, (n, 5)), "attention_mask": mask})
    return ofx.trace(Net(), kwargs=batches[0]), batches


def read_by(program: ofx.Program, parameter: str, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """What the linear layer of a parameter reads, without padding: [tokens, features]."""

    class Record(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            if n.target is torch.ops.aten.linear.default and str(n.args[1].target) == parameter:  # type: ignore[union-attr]
                found.append(self.env[n.args[0]])  # type: ignore[index]
            return super().run_node(n)

    rows = []
    for batch in batches:
        found: list[torch.Tensor] = []
        with torch.no_grad():
            Record(program.graph_module).run(*batch.values())
        rows.append(found[0][batch["attention_mask"] != 0])
    return torch.cat(rows).double()


def test_moments_leave_padding_out(text: tuple[ofx.Program, list[dict[str, torch.Tensor]]]) -> None:
    program, batches = text
    statistics = collect(program, [ofx.Batch((), b) for b in batches], gram=True)
    (moments,) = [m for m in statistics.consumers if _weight_of(program, m.consumer.node) == "fc2.weight"]
    rows = read_by(program, "fc2.weight", batches)
    assert moments.count == len(rows) == sum(int(b["attention_mask"].sum()) for b in batches)
    assert torch.allclose(moments.mean, rows.mean(0), rtol=1e-5)
    assert torch.allclose(moments.variance, rows.var(0, correction=0), rtol=1e-4)
    assert moments.gram is not None
    assert torch.allclose(moments.gram, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    assert torch.allclose(moments.weight, program.tensors["fc2.weight"].double().square().sum(0), rtol=1e-5)


def _weight_of(program: ofx.Program, node: str) -> str:
    call = analyse(program).applied[node].call
    return next((str(o.node.target) for o in call.operands if o.node.op == "get_attr"), "")


@pytest.mark.parametrize("moment", ["mean", "energy", "variance"])
def test_activation_sums_moments_over_a_heads_positions(text: tuple[ofx.Program, list[dict[str, torch.Tensor]]], moment: str) -> None:
    program, batches = text
    scores = ofx.score(program, "activation", data=batches, moment=moment, weighted=True, normalise="none")
    rows = read_by(program, "out.weight", batches)
    along = {"mean": rows.abs().mean(0), "energy": rows.square().mean(0), "variance": rows.var(0, correction=0)}[moment]
    expected = (along * program.tensors["out.weight"].double().square().sum(0)).detach().reshape(2, 4).sum(1)
    assert torch.allclose(scores["qkv:head"], expected, rtol=1e-4)


def test_wanda_is_the_change_of_the_consumers_output(text: tuple[ofx.Program, list[dict[str, torch.Tensor]]]) -> None:
    """With p=2, of each neuron alone: mean squared change of the outputs when it is gated off."""
    program, batches = text
    scores = ofx.score(program, "wanda", data=batches, normalise="none")
    rows, weight = read_by(program, "fc2.weight", batches), program.tensors["fc2.weight"].double().detach()
    expected = [float((rows[:, j, None] * weight[:, j]).square().sum(1).mean()) for j in range(6)]
    assert torch.allclose(scores["fc1:neuron"], torch.tensor(expected, dtype=torch.float64), rtol=1e-5)
    once = ofx.score(program, "wanda", data=batches, normalise="none", p=1)
    assert torch.allclose(once["fc1:neuron"], torch.tensor(expected, dtype=torch.float64).sqrt(), rtol=1e-5)
    assert not scores.additive


def test_a_convolution_with_groups_weighs_its_own_channels() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(5, 3, 4, 4)
    program = ofx.trace(net, (x,))
    (moments,) = [m for m in collect(program, [ofx.Batch((x,))]).consumers if m.consumer.node == "conv2d_1"]
    assert torch.allclose(moments.weight, net[2].weight.double().square().reshape(2, 2, 4, 9).sum((1, 3)).flatten().detach(), rtol=1e-5)
    assert torch.allclose(moments.square, net[1](net[0](x)).double().square().mean((0, 2, 3)).detach(), rtol=1e-5)


def gradients_by_hand(x: torch.Tensor, y: torch.Tensor, model: nn.Sequential) -> torch.Tensor:
    """Per-sample gate gradients of the first hidden layer, sample by sample."""
    found = []
    for xi, yi in zip(x, y, strict=True):
        gate = torch.ones(6, requires_grad=True)
        loss = F.cross_entropy(model[2](torch.relu(model[0](xi)) * gate)[None], yi[None])
        found.append(torch.autograd.grad(loss, gate)[0].double())
    return torch.stack(found)


@pytest.fixture(scope="module")
def plain() -> tuple[nn.Sequential, ofx.Program, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(7, 4)
    return model, ofx.trace(model, (x,)), x, torch.randint(0, 3, (7,))


def test_taylor_with_labels(plain: tuple[nn.Sequential, ofx.Program, torch.Tensor, torch.Tensor]) -> None:
    model, program, x, y = plain
    data = [ofx.Batch((x[:4],), {}, y[:4]), ofx.Batch((x[4:],), {}, y[4:])]
    expected = gradients_by_hand(x, y, model)
    over_samples, over_mean = (ofx.score(program, "taylor", data=data, over=over)["0:neuron"] for over in ("samples", "mean"))
    assert torch.allclose(over_samples, expected.abs().mean(0), rtol=1e-5)
    assert torch.allclose(over_mean, expected.mean(0).abs(), rtol=1e-5)


def test_taylor_of_the_models_own_answers(plain: tuple[nn.Sequential, ofx.Program, torch.Tensor, torch.Tensor]) -> None:
    model, program, x, _ = plain
    expected = gradients_by_hand(x, model(x).argmax(-1), model)
    assert torch.allclose(ofx.score(program, "taylor", data=[x])["0:neuron"], expected.abs().mean(0), rtol=1e-5)


def cross_entropy(outputs: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs[0], labels, reduction="sum")


def not_a_scalar(outputs: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs[0], labels, reduction="none")


def test_a_loss_of_ones_own_by_callable_and_by_name(plain: tuple[nn.Sequential, ofx.Program, torch.Tensor, torch.Tensor]) -> None:
    model, program, x, y = plain
    data = [ofx.Batch((x,), {}, y)]
    expected = 0.5 * gradients_by_hand(x, y, model).square().mean(0)
    by_callable = ofx.score(program, "fisher", data=data, loss=cross_entropy)
    by_name = ofx.score(program, f"fisher{{loss={__name__}:cross_entropy}}", data=data)
    assert torch.allclose(by_callable["0:neuron"], expected, rtol=1e-5)
    assert torch.equal(by_callable["0:neuron"], by_name["0:neuron"])
    assert by_callable.method == by_name.method
    with pytest.raises(ScoreError, match=r"the objective 'loss' has shape \(7,\)"):
        ofx.score(program, "fisher", data=data, loss=not_a_scalar)


@pytest.mark.parametrize("method", ["fisher{labels=given}", "taylor{labels=given}", f"fisher{{loss={__name__}:cross_entropy}}"])
def test_missing_labels_are_refused(plain: tuple[nn.Sequential, ofx.Program, torch.Tensor, torch.Tensor], method: str) -> None:
    _, program, x, y = plain
    with pytest.raises(DataError) as caught:
        ofx.score(program, method, data=[ofx.Batch((x,), {}, y), ofx.Batch((x,))])
    assert caught.value.at == "batch 1"
    assert "was asked to use labels, and a batch has none" in caught.value.what


def test_labels_for_other_outputs_are_refused(plain: tuple[nn.Sequential, ofx.Program, torch.Tensor, torch.Tensor]) -> None:
    _, program, x, y = plain
    with pytest.raises(DataError, match="there are 2 labels for 1 outputs"):
        ofx.score(program, "fisher", data=[ofx.Batch((x,), {}, (y, y))])


def test_data_that_runs_out_is_refused(plain: tuple[nn.Sequential, ofx.Program, torch.Tensor, torch.Tensor]) -> None:
    _, program, x, _ = plain
    first = ofx.score(program, "activation", data=[x[:4], x[4:]], samples=5)
    assert torch.allclose(first["0:neuron"], ofx.score(program, "activation", data=[x[:5]])["0:neuron"])
    with pytest.raises(DataError) as caught:
        ofx.score(program, "activation", data=[x], samples=8)
    assert caught.value.what == "the calibration data runs out after 7 samples"
    assert caught.value.so == "score-activation was asked for 8"


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("aggregate", ["norm", "sum", "mean", "max", "product"])
def test_magnitude_aggregates_over_tied_tensors(p: int, aggregate: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    program = ofx.trace(net, (torch.rand(2, 4),))
    first, second = net[0].weight.double().abs().detach() ** p, net[2].weight.double().abs().detach() ** p
    norms = torch.stack([first.sum(1), second.sum(0)]) ** (1 / p)
    whole = (first.sum(1) + second.sum(0)) ** (1 / p)
    expected = {
        "norm": whole, "sum": norms.sum(0), "mean": norms.mean(0), "max": norms.amax(0), "product": (norms[0] * norms[1]).sqrt()
    }[aggregate]  # fmt: skip
    found = ofx.score(program, "magnitude", p=p, aggregate=aggregate, normalise="none")["0:neuron"]
    assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong", ["magnitude{p=3}", "magnitude{aggregate=median}", "activation{moment=third}", "taylor{over=all}", "wanda{p=0}"]
)
def test_wrong_options_are_refused(plain: tuple[nn.Sequential, ofx.Program, torch.Tensor, torch.Tensor], wrong: str) -> None:
    with pytest.raises(PipelineError, match="refuses its options"):
        ofx.score(plain[1], wrong, data=[plain[2]])


class Shuffled(nn.Module):
    """Convolutions whose channels are taken apart and flattened in between: views that are copies where channels are innermost."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.out = nn.Linear(12 * 36, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x).relu()
        x = x.view(x.shape[0], 2, 8, 6, 6).transpose(1, 2).reshape(x.shape[0], 16, 6, 6)
        return self.out(torch.flatten(self.two(x).relu(), 1))


@pytest.mark.parametrize("criterion", ["trajectory-sketch", "trajectory", "reconstruction", "joint", "wanda", "taylor", "fisher"])
def test_where_channels_lie_in_memory_changes_nothing(criterion: str) -> None:
    torch.manual_seed(0)
    program = ofx.trace(Shuffled(), (torch.randn(2, 3, 6, 6),))
    data = [torch.randn(8, 3, 6, 6) for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 3] * 2)
    inner = [x.contiguous(memory_format=torch.channels_last) for x in data]
    expected, found = (ofx.score(program, criterion, [ofx.Batch((x,), {}, labels) for x in batches]) for batches in (data, inner))
    for name, values in expected.values.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-6 * float(values.abs().max()))
    plan = ofx.search(program, expected, "flops <= 50%")
    with torch.no_grad():
        one, other = (ofx.rewrite(program, plan, batches)(data[0]) for batches in (data, inner))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
