"""Noising in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from orthokernels.backends.torch.philox import normal


def forward(x0: Tensor, shares: Tensor, noise: Tensor | None, seed: Tensor | None, step: int, found: Tensor) -> None:
    """Write the noisy volumes; all volumes share one layout."""
    noise, x = drawn(x0, noise, seed, step)
    signal, share = by_sample(shares, x)
    found.copy_(signal * x + share * noise)


def drawn(x0: Tensor, noise: Tensor | None, seed: Tensor | None, step: int) -> tuple[Tensor, Tensor]:
    """The noise, numbered by place in memory where it is drawn, and x0, both in the arithmetic's dtype."""
    dtype = torch.promote_types(x0.dtype, torch.float32)
    if noise is None:
        assert seed is not None
        noise = normal(x0.numel(), seed, step).as_strided(x0.shape, x0.stride())
    return noise.to(dtype), x0.to(dtype)


def by_sample(numbers: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers a sample, (N, 2), each shaped to be multiplied with volumes like x."""
    first, second = numbers.to(x.dtype).unbind(1)
    shape = (-1, *[1] * (x.ndim - 1))
    return first.view(shape), second.view(shape)
