"""`ExportedProgram` in, smaller `ExportedProgram` out: in front of ExecuTorch's `to_edge`, of OpenVINO's and of Torch-TensorRT's."""

from __future__ import annotations

from dataclasses import dataclass

from torch.export import ExportedProgram

from optin_fx.program import trace
from optin_fx.toolchains.step import PruneStep


@dataclass(frozen=True)
class PruneExported(PruneStep):
    """A function over exported programs, to be put before whatever compiles them:

        to_edge(PruneExported(budget="flops <= 50%")(torch.export.export(model, args)))

    The result is called as the program was, keeps its dynamic dims, and shares the tensors that did not shrink.
    """

    def __call__(self, exported: ExportedProgram) -> ExportedProgram:
        """The smaller program.

        Raises:
            OptinError: see `PruneStep.smaller`.
        """
        return self.smaller(trace(exported))[0].exported
