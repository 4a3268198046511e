"""Attention with a mean over the queries in plain PyTorch; the scores exist here, a matrix a head."""

from __future__ import annotations

from torch import Tensor


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, looked_at: Tensor, log_sum: Tensor) -> None:
    """Write the pooled tokens, w and the logarithms of the softmax's denominators."""
    scores = _scores(q, k, scale, log_sum)
    log_sum.copy_(scores.logsumexp(dim=3))
    looked_at.copy_((scores - log_sum[..., None]).exp().mean(dim=2))
    out.copy_((looked_at[:, :, None] @ v.to(looked_at.dtype))[:, :, 0])


def backward(gain: Tensor, q: Tensor, k: Tensor, log_sum: Tensor, scale: float, dq: Tensor, dk: Tensor) -> None:
    """Write dq and dk; ``gain`` is g of the formulas, (N, heads, T)."""
    p = (_scores(q, k, scale, log_sum) - log_sum[..., None]).exp()
    r = (p * gain[:, :, None]).sum(dim=3, keepdim=True)
    ds = p * (gain[:, :, None] - r) * (scale / q.shape[2])
    dq.copy_(ds @ k.to(ds.dtype))
    dk.copy_(ds.transpose(2, 3) @ q.to(ds.dtype))


def _scores(q: Tensor, k: Tensor, scale: float, like: Tensor) -> Tensor:
    return scale * q.to(like.dtype) @ k.to(like.dtype).transpose(2, 3)
