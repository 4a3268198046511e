"""A sampler's step in C++: ``csrc/cpu/denoise_step.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from orthokernels import _native
from orthokernels.backends.cpu.volumes import Array, array, by_sample, optional, wrong_kind


def forward(
    x: Tensor,
    output: Tensor,
    coefficients: Tensor,
    previous: Tensor | None,
    threshold: Tensor | None,
    seed: Tensor | None,
    step: int,
    clip: float | None,
    found: Tensor,
    x0: Tensor | None,
) -> None:
    """Write the next volume, and x0 where it is wanted; all volumes share one layout."""
    _native.denoise_step(
        by_sample(x), by_sample(output.float()), array(coefficients.contiguous()), by_sample(found),
        previous=_or_none(previous), threshold=optional(threshold), seed=None if seed is None else int(seed),
        step=step & 0xFFFFFFFF, clip=clip, x0=_or_none(x0), threads=torch.get_num_threads(),
    )  # fmt: skip


def _or_none(volume: Tensor | None) -> Array | None:
    return None if volume is None else by_sample(volume)


def can_run(x: Tensor) -> str | None:
    """Why the kernel can not take a volume, or None."""
    return wrong_kind(x)
