"""The convolution in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, exact: bool, y: Tensor, *, keep: bool = True
) -> None:
    """Write y; PyTorch's sums are always of plain products, and there is nothing to ``keep``."""
    y.copy_(F.conv3d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2))


def weight_gradient(dy: Tensor, x: Tensor, stride: int, exact: bool, dw: Tensor) -> None:
    """Write dw (K, C, k, k, k)."""
    padding = [dw.shape[-1] // 2] * 3
    dw.copy_(
        torch.ops.aten.convolution_backward(
            dy, x, dw, None, [stride] * 3, padding, [1, 1, 1], False, [0, 0, 0], 1, [False, True, False]
        )[1]
    )
