"""Planes resampled and mixed in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def forward(volumes: Sequence[Tensor | None], gates: Tensor, to_plane: Tensor, out: Tensor, weights: Tensor) -> None:
    """Write the result and the planes' weights."""
    result, own = mixed(volumes, gates.to(weights.dtype), to_plane)
    out.copy_(result)
    weights.copy_(own)


def backward(
    dout: Tensor,
    weights: Tensor,
    volumes: Sequence[Tensor | None],
    gates: Tensor,
    to_plane: Tensor,
    to_result: Tensor,
    boxes: list[int],
    gradients: Sequence[Tensor | None],
    dgates: Tensor,
) -> None:
    """Write the gradients of the volumes that are there, and of the gates, by the formulas of ``ops.plane_fusion``."""
    groups, *sides = gates.shape[2:]
    by_group = dout.to(weights.dtype).unflatten(1, (groups, -1))
    u = torch.zeros_like(weights)
    for n, (volume, gradient) in enumerate(zip(volumes, gradients, strict=True)):
        if volume is None or gradient is None:
            continue
        own = to_plane[n].to(weights.dtype)
        u[:, n] = (sampled(volume.to(weights.dtype), own, sides)[0].unflatten(1, (groups, -1)) * by_group).sum(dim=2)
        inside, corners = _seen(volume.shape[2:], own, sides)
        given = (weights[:, n, :, None] * by_group).flatten(1, 2) * inside
        found = torch.zeros(volume.shape, dtype=weights.dtype, device=volume.device).flatten(2)
        for place, share in corners:  # in a fixed order on a GPU too
            torch.ops.aten.index_put_(found, [None, None, place], share * given, accumulate=True)
        gradient.copy_(found.view(volume.shape))
    dgates.copy_(weights * (u - (weights * u).sum(dim=1, keepdim=True)))


def mixed(volumes: Sequence[Tensor | None], gates: Tensor, to_plane: Tensor) -> tuple[Tensor, Tensor]:
    """The result and the planes' weights (N, 3, groups, D, H, W), differentiable, on the gates' dtype."""
    groups, *sides = gates.shape[2:]
    samples: list[Tensor | None] = []
    inside: list[Tensor] = []
    for n, volume in enumerate(volumes):
        if volume is None:
            samples.append(None)
            inside.append(torch.zeros(sides, dtype=torch.bool, device=gates.device))
            continue
        found, own = sampled(volume.to(gates.dtype), to_plane[n].to(gates.dtype), sides)
        samples.append(found)
        inside.append(own)
    has = torch.stack(inside)[None, :, None]  # [1, 3, 1, D, H, W]
    weights = gates.masked_fill(~has, -torch.inf).softmax(dim=1)
    weights = torch.where(has, weights, 0.0)  # where no plane is, the softmax is of nothing
    total = None
    for n, sample in enumerate(samples):
        if sample is None:
            continue
        part = (weights[:, n, :, None] * sample.unflatten(1, (groups, -1))).flatten(1, 2)
        total = part if total is None else total + part
    assert total is not None
    return total, weights


def sampled(volume: Tensor, to_plane: Tensor, sides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A volume at the result's voxels (N, C, D, H, W), and which of them lie inside it (D, H, W)."""
    inside, corners = _seen(volume.shape[2:], to_plane, sides)
    flat = volume.flatten(2)
    found = torch.zeros((), dtype=volume.dtype, device=volume.device)
    for place, share in corners:
        found = found + share * flat[:, :, place]
    return found * inside, inside


def _seen(
    own: Sequence[int], to_plane: Tensor, sides: Sequence[int]
) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor]]]:  # fmt: skip
    """Which of the result's voxels lie inside a volume of its own sides; places and shares of the eight around each."""
    axes = [torch.arange(side, dtype=to_plane.dtype, device=to_plane.device) for side in sides]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # [3, D, H, W]
    c = torch.einsum("ij,j...->i...", to_plane[:, :3], x) + to_plane[:, 3].view(3, 1, 1, 1)
    last = torch.tensor(own, device=c.device).view(3, 1, 1, 1) - 1
    inside = ((c >= -0.5) & (c <= last + 0.5)).all(dim=0)
    c = torch.minimum(c.clamp(min=0), last.to(c.dtype))
    low = torch.minimum(c.floor().long(), (last - 1).clamp(min=0))
    return inside, _corners(own, low, c - low)


def _corners(own: Sequence[int], low: Tensor, share: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    last = torch.tensor(own, device=low.device).view(3, 1, 1, 1) - 1
    for corner in range(8):
        step = torch.tensor([corner >> 2, corner >> 1 & 1, corner & 1], device=low.device).view(3, 1, 1, 1)
        d, h, w = torch.minimum(low + step, last)
        yield (d * own[1] + h) * own[2] + w, torch.where(step == 1, share, 1 - share).prod(dim=0)
