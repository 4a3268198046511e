"""Planes resampled and mixed in plain PyTorch; its gradients are the definition's own, by autograd."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Write the gradients of the volumes that are there, and of the gates."""
    with torch.enable_grad():
        leaves = [None if v is None else v.detach().to(weights.dtype).requires_grad_() for v in volumes]
        gate = gates.detach().to(weights.dtype).requires_grad_()
        result, _ = mixed(leaves, gate, to_plane)
        present = [leaf for leaf in leaves if leaf is not None]
        found = torch.autograd.grad(result, [*present, gate], dout.to(weights.dtype))
    wanted = [gradient for gradient in gradients if gradient is not None]
    for gradient, value in zip([*wanted, dgates], found, strict=True):
        gradient.copy_(value)


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
    axes = [torch.arange(side, dtype=volume.dtype, device=volume.device) for side in sides]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # [3, D, H, W]
    c = torch.einsum("ij,j...->i...", to_plane[:, :3], x) + to_plane[:, 3].view(3, 1, 1, 1)
    last = torch.tensor(volume.shape[2:], device=volume.device).view(3, 1, 1, 1) - 1
    inside = ((c >= -0.5) & (c <= last + 0.5)).all(dim=0)
    c = torch.minimum(c.clamp(min=0), last.to(c.dtype))
    low = torch.minimum(c.floor().long(), (last - 1).clamp(min=0))
    share = c - low
    flat = volume.flatten(2)
    found = torch.zeros((), dtype=volume.dtype, device=volume.device)
    for corner in range(8):
        step = torch.tensor([corner >> 2, corner >> 1 & 1, corner & 1], device=volume.device).view(3, 1, 1, 1)
        weight = torch.where(step == 1, share, 1 - share).prod(dim=0)
        d, h, w = torch.minimum(low + step, last)
        found = found + weight * flat[:, :, (d * volume.shape[3] + h) * volume.shape[4] + w]
    return found * inside, inside
