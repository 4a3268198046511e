"""Noising in C++: ``csrc/cpu/add_noise.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from orthokernels import _native
from orthokernels.backends.cpu.volumes import array, by_sample, wrong_kind


def forward(x0: Tensor, shares: Tensor, noise: Tensor | None, seed: Tensor | None, step: int, found: Tensor) -> None:
    """Write the noisy volumes; all volumes share one layout."""
    _native.add_noise(
        by_sample(x0), array(shares), by_sample(found), noise=None if noise is None else by_sample(noise),
        seed=None if seed is None else int(seed), step=step & 0xFFFFFFFF, threads=torch.get_num_threads(),
    )  # fmt: skip


def can_run(x: Tensor) -> str | None:
    """Why the kernel can not take a volume, or None."""
    return wrong_kind(x)
