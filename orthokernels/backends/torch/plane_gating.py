"""The planes' logits mixed by a gate, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    logits: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, mixed: Tensor, gates: Tensor
) -> None:
    """Write the mixed logits and the planes' weights."""
    by_label, _, own = _gates(logits, weight1, bias1, weight2, bias2)
    mixed.copy_((own * by_label).sum(dim=2))
    gates.copy_(own.transpose(1, 2))


def backward(
    dmixed: Tensor, dgates: Tensor, logits: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    dlogits: Tensor, dweight1: Tensor, dbias1: Tensor, dweight2: Tensor, dbias2: Tensor,
) -> None:  # fmt: skip
    """Write all gradients, by the formulas of ``ops.plane_gating``."""
    by_label, inside, own = _gates(logits, weight1, bias1, weight2, bias2)
    dmixed = dmixed.to(own.dtype)[..., None]
    each = dmixed * by_label + dgates.to(own.dtype).transpose(1, 2)
    ds = own * (each - (own * each).sum(dim=2, keepdim=True))
    du = (ds @ weight2.to(own.dtype)) * (inside > 0)
    dlogits.copy_((dmixed * own + du @ weight1.to(own.dtype)).transpose(1, 2))
    rows = [part.flatten(0, 1) for part in (by_label, inside.relu(), ds, du)]
    dweight1.copy_(rows[3].T @ rows[0])
    dbias1.copy_(rows[3].sum(dim=0))
    dweight2.copy_(rows[2].T @ rows[1])
    dbias2.copy_(rows[2].sum(dim=0))


def _gates(
    logits: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, what the hidden units are of, and the weights, by label: (N, labels, P or hidden)."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    by_label = logits.to(dtype).transpose(1, 2)
    inside = by_label @ weight1.to(dtype).T + bias1.to(dtype)
    return by_label, inside, (inside.relu() @ weight2.to(dtype).T + bias2.to(dtype)).softmax(dim=2)
