"""Which line of the user's code an op comes from, read off the stack traces that torch.export records."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = f"{Path(torch.__file__).parent.as_posix()}/"


def user_line(stack_trace: object) -> str | None:
    """`file:line` of the innermost frame outside of torch: the user's forward, rather than the `F.linear` inside `nn.Linear`.

    A trace with no such frame gives its innermost one; text without frames gives None.
    """
    frames = _FRAME.findall(str(stack_trace or ""))
    own = [frame for frame in frames if not _is_torch(frame[0].replace("\\", "/"))]
    return ":".join((own or frames)[-1]) if frames else None


def _is_torch(file: str) -> bool:
    # a program may have been traced on another machine, where torch lay elsewhere; torch's own passes write relative paths
    return file.startswith((_TORCH, "torch/")) or "-packages/torch/" in file
