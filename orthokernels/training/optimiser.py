"""Adam, its rate over the steps, and the gradient's norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orthokernels.training.config import OptimiserConfig


def make_optimiser(
    module: nn.Module, settings: OptimiserConfig, groups: Sequence[dict[str, Any]] | None, device: torch.device
) -> torch.optim.Optimizer:
    """Adam, or AdamW where weights decay.

    Args:
        groups: {"params": ..., "scale": factor of the rate}; None is every parameter that takes gradients, at scale 1.
    """
    groups = groups or [{"params": [p for p in module.parameters() if p.requires_grad]}]
    kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
    return kind(
        [{"scale": 1.0, **group} for group in groups],
        lr=settings.rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )


def set_rate(optimiser: torch.optim.Optimizer, settings: OptimiserConfig, step: int, steps: int) -> float:
    """Set each group's rate for a step; what is returned is the rate at scale 1."""
    rate = settings.rate
    if step < settings.warmup:
        rate *= (step + 1) / settings.warmup
    elif settings.schedule == "cosine":
        gone = (step - settings.warmup) / max(1, steps - settings.warmup)
        rate *= settings.last_rate + (1 - settings.last_rate) * (1 + math.cos(math.pi * gone)) / 2
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]
    return rate


def clip(module: nn.Module, largest: float | None) -> Tensor:
    """The gradient's norm before clipping to ``largest``."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if largest is not None:
        nn.utils.clip_grads_with_norm_(module.parameters(), largest, norm)
    return norm
