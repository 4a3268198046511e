"""The running mean of the weights, as the published training keeps it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from orthokernels.training.config import EmaConfig


class Ema:
    """A copy of a module that follows it.

    Every ``every`` steps, counted from 0, it becomes the module before step ``start``, and moves towards it by
    1 - ``decay`` from then on.
    """

    def __init__(self, module: nn.Module, config: EmaConfig) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.config = config

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """To be called after the optimiser's step number ``step``."""
        if step % self.config.every:
            return
        own: list[Tensor] = list(self.module.parameters())
        new: list[Tensor] = list(module.parameters())
        weight = 1.0 if step < self.config.start else 1.0 - self.config.decay
        if weight == 1.0:
            torch._foreach_copy_(own, new)
        else:
            torch._foreach_lerp_(own, new, weight)
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)
