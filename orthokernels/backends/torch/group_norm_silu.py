"""Group normalisation, FiLM and SiLU in plain PyTorch, line by line as the formulas of ``ops.group_norm_silu``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    x: Tensor,
    skip: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    scale_shift: Tensor | None,
    silu: bool,
    eps: float,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    h = _shifted(x, skip, shift, mean.dtype)
    variance, centre = torch.var_mean(h.unflatten(1, (groups, -1)), dim=(2, 3), correction=0)
    mean.copy_(centre)
    rstd.copy_((variance + eps).rsqrt())
    _, z, _ = _normalised(h, groups, weight, bias, scale_shift, mean, rstd)
    y.copy_((F.silu(z) if silu else z).view(y.shape))


def backward(
    dy: Tensor,
    x: Tensor,
    skip: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    scale_shift: Tensor | None,
    silu: bool,
    mean: Tensor,
    rstd: Tensor,
    dx: Tensor,
    dskip: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write dx and dskip; returns dweight and dbias [N, C] of each sample, dshift [N, C], dscale_shift [N, 2 C]."""
    h = _shifted(x, skip, shift, mean.dtype)
    xhat, z, scale = _normalised(h, groups, weight, bias, scale_shift, mean, rstd)
    dz = dy.flatten(2).to(h.dtype)
    if silu:
        share = z.sigmoid()
        dz = dz * share * (1 + z * (1 - share))
    slope = scale if weight is None else scale * weight[:, None]
    sum_dz, sum_both, sum_xhat = dz.sum(2), (dz * xhat).sum(2), xhat.sum(2)  # [N, C]
    m, t = (_group_mean(slope[..., 0] * sums, groups, h.shape[2]) for sums in (sum_dz, sum_both))  # [N, C]
    per_channel = rstd.repeat_interleave(h.shape[1] // groups, dim=1)  # [N, C]
    gradient = per_channel[..., None] * (slope * dz - m[..., None] - xhat * t[..., None])
    gradient = gradient.view(dy.shape)
    dx.copy_(gradient[:, : x.shape[1]])
    if dskip is not None:
        dskip.copy_(gradient[:, x.shape[1] :])
    dshift = per_channel * (slope[..., 0] * sum_dz - h.shape[2] * m - sum_xhat * t)
    weight_, bias_ = (torch.ones_like(m), torch.zeros_like(m)) if weight is None or bias is None else (weight, bias)
    dscale = weight_ * sum_both + bias_ * sum_dz
    return scale[..., 0] * sum_both, scale[..., 0] * sum_dz, dshift, torch.cat([dscale, sum_dz], dim=1)


def _shifted(x: Tensor, skip: Tensor | None, shift: Tensor | None, dtype: torch.dtype) -> Tensor:
    """h [N, C, L]."""
    h = (x if skip is None else torch.cat([x, skip], dim=1)).flatten(2).to(dtype)
    return h if shift is None else h + shift.to(dtype)[..., None]


def _normalised(
    h: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, scale_shift: Tensor | None, mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """xhat and z [N, C, L], and 1 + scale [N, C, 1]."""
    grouped = h.unflatten(1, (groups, -1))
    xhat = ((grouped - mean[..., None, None]) * rstd[..., None, None]).flatten(1, 2)
    z = xhat if weight is None or bias is None else xhat * weight.to(h.dtype)[:, None] + bias.to(h.dtype)[:, None]
    if scale_shift is None:
        return xhat, z, h.new_ones((h.shape[0], h.shape[1], 1))
    scale, offset = scale_shift.to(h.dtype)[..., None].chunk(2, dim=1)
    return xhat, z * (1 + scale) + offset, 1 + scale


def _group_mean(sums: Tensor, groups: int, voxels: int) -> Tensor:
    """Mean over a group's voxels out of its channels' sums [N, C], given back to each channel."""
    width = sums.shape[1] // groups
    return (sums.unflatten(1, (groups, width)).sum(2) / (width * voxels)).repeat_interleave(width, dim=1)
