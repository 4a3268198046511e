"""Attention with a mean over the queries in C++: ``csrc/cpu/attention_pool.cpp``; backward in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from orthokernels import _native
from orthokernels.backends.cpu.volumes import array, wrong_kind


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, looked_at: Tensor, log_sum: Tensor) -> None:
    """Write the pooled tokens, w and the logarithms of the softmax's denominators."""
    tokens = (array(part.flatten(0, 1).contiguous()) for part in (q, k, v))
    written = (array(part.flatten(0, 1)) for part in (out, looked_at, log_sum))
    _native.attention_pool(*tokens, scale, *written, threads=torch.get_num_threads())


def backward(gain: Tensor, q: Tensor, k: Tensor, log_sum: Tensor, scale: float, dq: Tensor, dk: Tensor) -> None:
    """Write dq and dk; ``gain`` is g of the formulas, (N, heads, T)."""
    # A softmax of its own: the kernel's logarithms belong to scores that were rounded otherwise.
    p = (scale * q @ k.transpose(2, 3)).softmax(dim=3)
    r = (p * gain[:, :, None]).sum(dim=3, keepdim=True)
    ds = p * (gain[:, :, None] - r) * (scale / q.shape[2])
    dq.copy_(ds @ k)
    dk.copy_(ds.transpose(2, 3) @ q)


def can_run(x: Tensor) -> str | None:
    """Why the kernel can not take tokens, or None."""
    return wrong_kind(x)
