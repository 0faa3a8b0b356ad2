"""The pruner as a step of another toolchain: over exported programs, over graph modules, in torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import optin_fx as ofx
from optin_fx.errors import PlanError, TraceError
from optin_fx.toolchains import PruneAndCompile, PruneExported, PruneGraph


class Block(nn.Module):
    """A residual block with a buffer, called with a dict, whose graph asks for the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, 64), nn.Linear(64, 8), nn.LayerNorm(8)
        self.register_buffer("scale", torch.rand(64) + 0.5)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        x = batch["x"]
        hidden = (self.up(x) * self.scale).view(x.shape[0], 4, 16).relu().flatten(1)
        return {"y": self.norm(x + self.down(hidden)), "none": None}


@pytest.fixture
def block() -> nn.Module:
    torch.manual_seed(0)
    return Block().eval()


def call(rows: int = 3) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows))}


def by_magnitude(program: ofx.Program) -> ofx.Plan:
    return ofx.search(program, ofx.score(program, "magnitude"), budget="flops <= 50%")


def test_an_exported_program_shrinks_and_is_called_as_before(block: nn.Module) -> None:
    exported = torch.export.export(block, (call(),), dynamic_shapes={"batch": {"x": {0: torch.export.Dim("rows")}}})
    small = PruneExported(budget="flops <= 50%")(exported)
    assert isinstance(small, torch.export.ExportedProgram)
    masked = ofx.mask(ofx.trace(exported), by_magnitude(ofx.trace(exported)))
    torch.testing.assert_close(small.module()(call(5))["y"], masked(call(5))["y"])
    assert sum(tensor.numel() for tensor in small.parameters()) < 0.6 * sum(tensor.numel() for tensor in exported.parameters())


def test_a_plan_decides_alone(block: nn.Module) -> None:
    exported = torch.export.export(block, (call(),))
    plan = ofx.random_plan(ofx.trace(exported), 0.5, seed=3)
    small = ofx.trace(PruneExported(plan=plan, budget="nonsense")(exported))
    torch.testing.assert_close(small(call())["y"], ofx.mask(ofx.trace(exported), plan)(call())["y"])
    with pytest.raises(PlanError, match="the plan belongs to another model"):
        PruneExported(plan=plan)(torch.export.export(nn.Linear(3, 3), (torch.randn(2, 3),)))


def test_with_data_what_stays_is_refitted(block: nn.Module) -> None:
    exported = torch.export.export(block, (call(64),), dynamic_shapes={"batch": {"x": {0: torch.export.Dim("rows")}}})
    data = [((call(rows),), {}) for rows in range(64, 68)]
    batches = [ofx.Batch(*args) for args in data]
    expected = ofx.trace(exported)(call(50))["y"]

    def gap(step: PruneExported) -> float:
        return (ofx.trace(step(exported))(call(50))["y"] - expected).norm().item()

    assert gap(PruneExported(data=batches)) < 0.9 * gap(PruneExported())
    plan = by_magnitude(ofx.trace(exported))
    assert gap(PruneExported(plan=plan, data=batches)) < 0.9 * gap(PruneExported(plan=plan))


@pytest.mark.parametrize("make", ["exported", "make_fx"])
def test_a_graph_module_with_shapes_needs_no_inputs(block: nn.Module, make: str) -> None:
    x = call()["x"]
    graph_module: fx.GraphModule = torch.export.export(_Plain(block), (x,)).module() if make == "exported" else make_fx(_Plain(block))(x)
    before = graph_module(x)
    result = PruneGraph(budget="flops <= 50%")(graph_module)
    assert result.modified
    assert result.graph_module(x).shape == before.shape
    assert (result.graph_module(x) - before).abs().max() > 1e-3
    assert torch.equal(graph_module(x), before)  # the graph that was given is left as it was
    unchanged = PruneGraph(budget="flops <= 100%")(graph_module)
    assert not unchanged.modified
    torch.testing.assert_close(unchanged.graph_module(x), before)


def test_a_graph_module_without_shapes_asks_for_inputs() -> None:
    graph = fx.Graph()
    graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
    layers = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 4))
    graph_module = fx.GraphModule({"layer": layers}, graph)
    with pytest.raises(TraceError) as error:
        PruneGraph()(graph_module)
    assert str(error.value) == (
        "the graph does not say what its input x is\n  so  it cannot be traced\n"
        "  fix give PruneGraph example inputs: PruneGraph(inputs=(...))"
    )
    result = PruneGraph(inputs=(torch.randn(2, 4),))(graph_module)
    assert sum(p.numel() for p in result.graph_module.parameters()) < 0.6 * sum(p.numel() for p in layers.parameters())


class _Plain(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block({"x": x})["y"]


@pytest.mark.parametrize("dynamic", [None, False, True])
def test_in_torch_compile_every_size_follows_one_plan(block: nn.Module, dynamic: bool | None) -> None:
    torch.compiler.reset()
    backend = PruneAndCompile(budget="flops <= 50%", inner="eager")
    compiled = torch.compile(block, backend=backend, dynamic=dynamic)
    program = ofx.trace(block, (call(),))
    masked = ofx.mask(program, by_magnitude(program))
    with torch.no_grad():
        for rows in (3, 5, 3, 8):
            found = compiled(call(rows))
            assert found["none"] is None
            torch.testing.assert_close(found["y"], masked(call(rows))["y"])
    assert len(backend.plans) == 1


def test_in_torch_compile_gradients_are_refused(block: nn.Module) -> None:
    torch.compiler.reset()
    with pytest.raises(TraceError) as error:
        torch.compile(block, backend=PruneAndCompile(inner="eager"))(call())
    assert str(error.value) == (
        "the compiled model would be trained\n  so  gradients would go to weights that the smaller graph has left behind\n"
        "  fix call it inside torch.no_grad(); to train a smaller model, use ofx.prune(...).module()"
    )


def test_in_torch_compile_numbers_may_change() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 4))

        def forward(self, x: torch.Tensor, times: int, plus: float) -> torch.Tensor:
            return self.layers(x) * times + plus

    torch.compiler.reset()
    compiled = torch.compile(Scaled().eval(), backend=PruneAndCompile(inner="eager"), dynamic=True)
    x = torch.randn(2, 4)
    with torch.no_grad():
        once = compiled(x, 1, 0.0)
        torch.testing.assert_close(compiled(x, 7, 0.5), 7 * once + 0.5)
        torch.testing.assert_close(compiled(x, 7, 1.5), 7 * once + 1.5)
