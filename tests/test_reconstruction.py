"""Closed-form reconstruction: exact where it can be, never worse on held-out data, errors accounted for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.branches import branch_of, branch_scale
from optin_fx.compensation import Compensation, Refitted, solve
from optin_fx.data import batches_of
from optin_fx.lockstep import Lockstep
from optin_fx.moments import Moments, Refit, offset_only, ridge
from optin_fx.reconstruction import reconstruct
from optin_fx.refitting import Aim
from optin_fx.rows import chosen_rows
from optin_fx.verifying import agreement


def test_ridge_is_the_normal_equations() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(400, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    y = x @ w.T + 2.0 + 0.1 * torch.randn(400, 3, dtype=torch.float64)
    moments = Moments(6, 3)
    moments.add(x[:150], y[:150])
    moments.add(x[150:], y[150:])
    prior = torch.zeros(3, 6, dtype=torch.float64)
    solved = ridge(moments, prior, 0.0)
    design = torch.cat([x, torch.ones(400, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(design, y).solution
    assert torch.allclose(solved.weight.T, expected[:-1], atol=1e-8)
    assert torch.allclose(solved.bias, expected[-1], atol=1e-8)
    error = (y - x @ solved.weight.T - solved.bias).square().sum(1).mean()
    assert moments.residual(solved.weight, solved.bias) == pytest.approx(float(error))
    assert torch.allclose(ridge(moments, w, 1e9).weight, w, atol=1e-6)  # a strong ridge keeps the old weights
    shifted = offset_only(moments, w)
    assert torch.allclose(shifted.bias, (y - x @ w.T).mean(0))


def test_an_only_batch_counts_as_if_it_had_come_in_several() -> None:
    """Also where more rows are there than enter the moments of one batch, 4,096, and none of a held-out sample is fitted on."""
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 4, 1))
    x = torch.randn(64, 3, 16, 16)
    program = ofx.trace(model, (x[:2],))
    plan = ofx.random_plan(program, 0.5, seed=1)
    whole, parts = (ofx.rewrite(program, plan, data) for data in ([x], list(x.split(16))))
    with torch.no_grad():
        assert torch.equal(whole(x), parts(x))


def test_rows_of_a_sample_stay_together() -> None:
    index = chosen_rows(1000, None, torch.zeros(10, 100, 3), 250, torch.Generator().manual_seed(0))
    assert len(index.unique()) == 250
    assert torch.equal(index, index.sort().values)


class Redundant(nn.Module):
    """Two layers whose hidden units come in equal pairs, so that half of them can go for free."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        make = {
            "linear": lambda i, o: nn.Linear(i, o),
            "linear without bias": lambda i, o: nn.Linear(i, o, bias=False),
            "conv": lambda i, o: nn.Conv2d(i, o, 3, padding=1, stride=2),
            "conv1d": lambda i, o: nn.Conv1d(i, o, 3, padding=1),
            "pointwise": lambda i, o: nn.Conv2d(i, o, 1),
            "same, dilated": lambda i, o: nn.Conv2d(i, o, (3, 2), padding="same", dilation=(2, 1)),
            "conv3d": lambda i, o: nn.Conv3d(i, o, 2, padding=1),
            "transposed": lambda i, o: nn.ConvTranspose2d(i, o, 3, stride=2, padding=1, output_padding=1) if o == 5 else nn.Conv2d(i, o, 1),
        }[kind]
        self.one, self.two = make(6, 12), make(12, 5)
        with torch.no_grad():
            self.one.weight[6:] = self.one.weight[:6]
            if self.one.bias is not None:
                self.one.bias[6:] = self.one.bias[:6]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu())


SHAPES = {"linear": (6,), "linear without bias": (6,), "conv": (6, 9, 9), "conv1d": (6, 20), "pointwise": (6, 5, 5)}
SHAPES |= {"same, dilated": (6, 7, 8), "conv3d": (6, 3, 4, 4), "transposed": (6, 4, 5)}


@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_redundant_units_are_made_up_for(kind: str, mode: str) -> None:
    model = Redundant(kind)
    data = [torch.randn(32, *SHAPES[kind]) for _ in range(8)]
    program = ofx.trace(model, (data[0],))
    plan = ofx.make_plan(program, {ofx.group(program).free[0].name: range(6)})
    module, report = reconstruct(program, plan, batches_of(program, data, needed_for="test"), Compensation(mode=mode, ratios=(1e-9, 1e-3)))
    fresh = torch.randn(16, *SHAPES[kind])
    with torch.no_grad():
        assert agreement(module(fresh), program(fresh)).max_rel < 1e-3
        assert agreement(ofx.rewrite(program, plan)(fresh), program(fresh)).max_rel > 0.05  # slicing alone is far off
    assert [item.level for item in report] == ["affine"]


def test_a_bias_is_added_where_there_is_none() -> None:
    """Units that are constant are folded into a new bias."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 4, bias=False)
            with torch.no_grad():
                self.one.weight[4:] = 0.0
                self.one.bias[4:] = 3.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).relu())

    data = [torch.randn(64, 6) for _ in range(4)]
    result = ofx.prune(Constant(), (data[0],), data=data, score="magnitude", budget="flops <= 100%", min_keep=0.1)
    program = result.dense
    plan = ofx.make_plan(program, {ofx.group(program).free[0].name: range(4)})
    module, _ = reconstruct(program, plan, batches_of(program, data, needed_for="test"), Compensation(level="bias"))
    assert "two.bias" in dict(module.named_parameters())
    assert agreement(module(data[0]).detach(), program(data[0])).max_rel < 1e-5


def test_sequential_refit_beats_none_on_held_out_data() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24), nn.LayerNorm(24)]
    model = nn.Sequential(*layers)
    data = [torch.randn(64, 24) for _ in range(12)]
    program = ofx.trace(model, (data[0],))
    plan = ofx.search(program, ofx.score(program, "magnitude"), "flops <= 60%")
    batches = batches_of(program, data[:8], needed_for="test")
    errors = {}
    for level in ("none", "bias", "affine"):
        module, _ = reconstruct(program, plan, batches, Compensation(level=level))
        with torch.no_grad():
            errors[level] = sum(float((module(x) - program(x)).square().mean()) for x in data[8:])
    assert errors["affine"] < 0.8 * errors["none"]
    assert errors["bias"] <= errors["none"] * 1.01


def test_shared_weights_are_left_alone_and_said_so() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(self.two(self.one(x).relu())).relu())

    data = [torch.randn(32, 8) for _ in range(4)]
    program = ofx.trace(Shared(), (data[0],))
    plan = ofx.random_plan(program, 0.5, seed=1)
    module, report = reconstruct(program, plan, batches_of(program, data, needed_for="test"))
    assert {item.note for item in report} == {"its weight has other users"}
    with torch.no_grad():
        assert agreement(module(data[0]), ofx.rewrite(program, plan)(data[0])).equal


class Stream(nn.Module):
    """Two residual branches, the second through BatchNorm and a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 1)
        self.a, self.b = nn.Conv2d(8, 24, 3, padding=1), nn.Conv2d(24, 8, 1)
        self.c, self.d, self.norm = nn.Conv2d(8, 24, 3, padding=1), nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.uniform_(self.norm.running_var, 0.1, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.b(self.a(x).relu())
        return x + self.norm(self.d(self.c(x).relu())) * self.scale


def _errors(options: dict[str, Compensation]) -> dict[str, float]:
    model = Stream().eval()
    data = [torch.randn(16, 3, 6, 6) for _ in range(10)]
    program = ofx.trace(model, (data[0],))
    plan = ofx.search(program, ofx.score(program, "magnitude"), "flops <= 40%", kinds=("filter",))
    batches = batches_of(program, data[:8], needed_for="test")
    found = {}
    for name, option in options.items():
        module, _ = reconstruct(program, plan, batches, option)
        with torch.no_grad():
            found[name] = sum(float((module(x) - program(x)).square().mean()) for x in data[8:])
    return found


def test_levels_each_improve_on_the_one_before() -> None:
    errors = _errors({level: Compensation(level=level) for level in ("none", "bias", "scale", "affine")})
    assert errors["affine"] < 0.8 * errors["scale"] < errors["bias"] < errors["none"]


def test_correcting_the_stream_beats_correcting_the_branch() -> None:
    errors = _errors({target: Compensation(target=target) for target in ("residual", "dense", "own")})
    assert errors["residual"] < min(errors["dense"], errors["own"])


class Block(nn.Module):
    """A branch, then queries, keys and values of what is left of the stream, and a head."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.up, self.down, self.norm = nn.Linear(12, 24), nn.Linear(24, 64), nn.Linear(64, 24), nn.LayerNorm(24)
        self.q, self.between, self.k, self.v = nn.Linear(24, 16), between, nn.Linear(24, 16, bias=False), nn.Linear(24, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.norm(x + self.down(self.up(x).relu()))
        q = self.q(x)
        x = self.between(x)
        return self.head(nn.functional.scaled_dot_product_attention(q, self.k(x), self.v(x)))


def _refits(between: nn.Module, **options: str) -> tuple[float, dict[str, Refitted], nn.Module]:
    """How far the output is off on other data, what became of each weight, and the smaller module."""
    model = Block(between).eval()
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(16, 6, 12, generator=generator) for _ in range(10)]
    program = ofx.trace(model, (data[0],))
    plan = ofx.search(program, ofx.score(program, "magnitude"), "flops <= 70%", kinds=("neuron",))
    module, report = reconstruct(program, plan, batches_of(program, data[:8], needed_for="test"), Compensation(**options))  # type: ignore[arg-type]
    with torch.no_grad():
        error = sum(float((module(x) - program(x)).square().mean()) for x in data[8:])
    return error, {item.weight: item for item in report}, module


def test_layers_behind_make_up_for_what_they_can_tell() -> None:
    alone, one, _ = _refits(nn.Identity(), layers="consumers")
    together, all_, _ = _refits(nn.Identity())
    assert list(one) == ["down.weight"]
    assert list(all_) == ["down.weight", "q.weight", "k.weight", "v.weight", "head.weight"]  # not what lies before the cut
    assert all(all_[name].after < 0.8 * all_[name].before for name in ("q.weight", "k.weight", "v.weight"))
    assert together < 0.8 * alone


@pytest.mark.parametrize("options", [{"target": "own"}, {"mode": "parallel"}])
def test_layers_behind_have_nothing_to_make_up_for(options: dict[str, str]) -> None:
    assert list(_refits(nn.Identity(), **options)[1]) == ["down.weight"]


def test_layers_that_read_the_same_are_refitted_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    visits = []
    visit = Lockstep.visit
    monkeypatch.setattr(Lockstep, "visit", lambda self, node, see: (visits.append(node.name), visit(self, node, see))[1])
    together = _refits(nn.Identity())
    assert len(visits) == 3  # down; q, k and v; head
    monkeypatch.setattr(Aim, "reads_with", lambda self, other: False)
    alone = _refits(nn.Identity())
    assert len(visits) == 3 + 5
    assert list(map(str, together[1].values())) == list(map(str, alone[1].values()))
    for name, value in together[2].state_dict().items():
        assert torch.allclose(value, alone[2].state_dict()[name], atol=1e-6), name


def test_what_is_written_in_between_is_not_read_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries read the stream as it was, keys and values what a ReLU left in its place."""
    there = _refits(nn.ReLU(inplace=True))
    apart = _refits(nn.ReLU())
    assert list(map(str, there[1].values())) == list(map(str, apart[1].values()))
    assert there[0] == pytest.approx(apart[0], rel=1e-6)


def test_the_scale_of_a_branch_is_its_derivative() -> None:
    program = ofx.trace(Stream().eval(), (torch.randn(2, 3, 6, 6),))
    node = next(
        n for n in program.graph_module.graph.nodes if n.target is torch.ops.aten.conv2d.default and "d.weight" in str(n.args[1].target)
    )
    branch = branch_of(node)
    assert branch is not None
    scale = branch_scale(program.graph_module, branch)
    model = Stream().eval()
    slope = torch.func.jvp(lambda y: model.norm(y) * model.scale, (torch.zeros(1, 8, 1, 1),), (torch.ones(1, 8, 1, 1),))[1]
    assert scale is not None
    assert torch.allclose(scale, slope.flatten())


def test_rows_that_the_output_sees_are_fitted_best() -> None:
    """A model that reads one token of eight: errors there count."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.head = nn.Linear(8, 48), nn.Linear(48, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.two((self.one(x) * 2).sin())[:, 0])

    data = [torch.cat([torch.randn(32, 1, 8), 2 + 3 * torch.randn(32, 7, 8)], 1) for _ in range(12)]
    program = ofx.trace(First(), (data[0],))
    plan = ofx.search(program, ofx.score(program, "magnitude"), "flops <= 50%")
    errors = {}
    for rows_by in ("uniform", "gradient"):
        module, _ = reconstruct(program, plan, batches_of(program, data[:10], needed_for="test"), Compensation(rows_by=rows_by, floor=0.01))
        with torch.no_grad():
            errors[rows_by] = sum(float((module(x) - program(x)).square().mean()) for x in data[10:])
    assert errors["gradient"] < 0.95 * errors["uniform"]


def test_a_runaway_scale_is_refused_and_said_so() -> None:
    """Two units that all but cancel: their factors would leave [-10, 10]."""
    torch.manual_seed(0)
    x = torch.randn(600, 3, dtype=torch.float64)
    x[:, 1] = x[:, 0] + 1e-3 * torch.randn(600)
    y = 30 * (x[:, :1] - x[:, 1:2]) + x[:, 2:]
    fit, held = Moments(3, 1), Moments(3, 1)
    fit.add(x[:400], y[:400])
    held.add(x[400:], y[400:])
    prior = Refit(torch.ones(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    found = solve(fit, held, prior, torch.arange(3), Compensation(level="scale", ratios=(1e-12,)))
    assert found.level in ("bias", "none")
    assert found.note == "scales beyond 10 refused"
