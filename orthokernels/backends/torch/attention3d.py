"""Attention over a volume's tokens in plain PyTorch; the scores exist here, a matrix a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forward(
    q: Tensor, k: Tensor, v: Tensor, grid: list[int], bias: Tensor | None, window: list[int], scale: float,
    out: Tensor, log_sum: Tensor,
) -> None:  # fmt: skip
    """Write the attended tokens and the logarithms of the softmax's denominators."""
    scores = _scores(q, k, grid, bias, window, scale, log_sum)
    log_sum.copy_(scores.logsumexp(dim=3))
    p = (scores - log_sum[..., None]).exp()
    out.copy_(v.to(p.dtype) @ p.transpose(2, 3))


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, log_sum: Tensor, met: Tensor, grid: list[int], bias: Tensor | None,
    window: list[int], scale: float, dq: Tensor, dk: Tensor, dv: Tensor, dbias: Tensor | None,
) -> None:  # fmt: skip
    """Write all gradients; ``met`` is r of the formulas, (N, heads, T)."""
    p = (_scores(q, k, grid, bias, window, scale, log_sum) - log_sum[..., None]).exp()
    dout = dout.to(p.dtype)
    ds = p * (dout.transpose(2, 3) @ v.to(p.dtype) - met[..., None])
    dv.copy_(dout @ p)
    dq.copy_(scale * k.to(p.dtype) @ ds.transpose(2, 3))
    dk.copy_(scale * q.to(p.dtype) @ ds)
    if dbias is not None:
        places = relative_places(grid, q.device).flatten()
        table = ds.new_zeros(dbias.shape).flatten(1)
        dbias.copy_(table.index_add_(1, places, ds.sum(dim=0).flatten(1)).view(dbias.shape))


def _scores(
    q: Tensor, k: Tensor, grid: list[int], bias: Tensor | None, window: list[int], scale: float, like: Tensor
) -> Tensor:
    scores = scale * q.to(like.dtype).transpose(2, 3) @ k.to(like.dtype)
    if bias is not None:
        scores = scores + bias_matrix(bias, grid).to(like.dtype)
    if window != grid:
        scores = scores.masked_fill(~seen_by(grid, window, q.device), -torch.inf)
    return scores


def bias_matrix(bias: Tensor, grid: Sequence[int]) -> Tensor:
    """The bias of every pair, [heads, T queries, T keys], from the table by relative position."""
    return bias.flatten(1)[:, relative_places(grid, bias.device)]


def relative_places(grid: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Where in the flattened table each pair's bias is, int64 [T queries, T keys]."""
    D, H, W = grid
    d, h, w = torch.meshgrid(*(torch.arange(side, device=device) for side in (D, H, W)), indexing="ij")
    code = ((d * (2 * H - 1) + h) * (2 * W - 1) + w).flatten()
    return code[:, None] - code[None, :] + ((D - 1) * (2 * H - 1) + H - 1) * (2 * W - 1) + W - 1


def seen_by(grid: Sequence[int], window: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Which keys each query sees, bool [T queries, T keys]."""
    seen = torch.ones(1, 1, dtype=torch.bool, device=device)
    for side, places in zip(grid, window, strict=True):
        at = torch.arange(side, device=device)
        first = (at - places // 2).clamp(0, side - places)[:, None]
        own = (at >= first) & (at < first + places)
        seen = (seen[:, None, :, None] & own[None, :, None, :]).flatten(2).flatten(0, 1)
    return seen
