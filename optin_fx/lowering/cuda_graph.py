"""An engine's run on fixed inputs as one CUDA graph: the kernels without the work of launching them one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from optin_fx.errors import LoweringError
from optin_fx.lowering.engine import Engine

WARM_UP = 3  # runs before the capture, in which kernels are compiled and chosen


def captured(engine: Engine, inputs: Sequence[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    """Capture `engine.run(inputs)`; what comes back replays it into the same output tensors.

    Raises:
        LoweringError: the engine is not one whose run can be captured.
    """
    if not engine.capturable:
        raise LoweringError(
            f"a run of {engine.target} cannot be captured as a CUDA graph",
            so="nothing was measured",
            fix="leave cuda_graphs out, or use eager:cuda, inductor:cuda, aotinductor:cuda, tensorrt or tensorrt-rtx",
        )
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            engine.run(inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = engine.run(inputs)

    def replay() -> list[torch.Tensor]:
        graph.replay()
        return outputs

    return replay
