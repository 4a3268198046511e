"""Attention over a volume's tokens in C++: ``csrc/cpu/attention3d.cpp``; backward in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from orthokernels import _native
from orthokernels.backends.cpu.volumes import array, optional, wrong_kind
from orthokernels.backends.torch.attention3d import backward

__all__ = ["backward", "can_run", "forward"]


def forward(
    q: Tensor, k: Tensor, v: Tensor, grid: list[int], bias: Tensor | None, window: list[int], scale: float,
    out: Tensor, log_sum: Tensor,
) -> None:  # fmt: skip
    """Write the attended tokens and the logarithms of the softmax's denominators."""
    own_q, own_k, own_v = (array(part.transpose(2, 3).flatten(0, 1).contiguous()) for part in (q, k, v))
    made = torch.empty(out.transpose(2, 3).shape, dtype=out.dtype, device=out.device)
    _native.attention3d(
        own_q, own_k, own_v, grid, window, scale, array(made.flatten(0, 1)), array(log_sum.flatten(0, 1)),
        bias=optional(bias), threads=torch.get_num_threads(),
    )  # fmt: skip
    out.copy_(made.transpose(2, 3))


def can_run(x: Tensor) -> str | None:
    """Why the kernel can not take tokens, or None."""
    return wrong_kind(x)
