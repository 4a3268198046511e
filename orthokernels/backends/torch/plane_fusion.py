"""Planes resampled and mixed in plain PyTorch; its gradients are the definition's own, by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forward(volumes: Sequence[Tensor | None], gates: Tensor, to_plane: Tensor, out: Tensor, weights: Tensor) -> None:
    """Write the result and the planes' weights."""
    from orthokernels.ops.plane_fusion import mixed

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
    from orthokernels.ops.plane_fusion import mixed

    with torch.enable_grad():
        leaves = [None if v is None else v.detach().to(weights.dtype).requires_grad_() for v in volumes]
        gate = gates.detach().to(weights.dtype).requires_grad_()
        result, _ = mixed(leaves, gate, to_plane)
        present = [leaf for leaf in leaves if leaf is not None]
        found = torch.autograd.grad(result, [*present, gate], dout.to(weights.dtype))
    wanted = [gradient for gradient in gradients if gradient is not None]
    for gradient, value in zip([*wanted, dgates], found, strict=True):
        gradient.copy_(value)
