"""A sampler's step in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from orthokernels.backends.torch.philox import normal


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
    dtype = torch.promote_types(x.dtype, torch.float32)
    noise = None
    if seed is not None:
        noise = normal(x.numel(), seed, step).to(dtype).as_strided(x.shape, x.stride())  # numbered by place in memory
    own = None if previous is None else previous.to(dtype)
    result, clean = stepped(x.to(dtype), output.to(dtype), coefficients, own, clip, threshold, noise)
    found.copy_(result)
    if x0 is not None:
        x0.copy_(clean)


def stepped(
    x: Tensor,
    output: Tensor,
    coefficients: Tensor,
    previous: Tensor | None,
    clip: float | None,
    threshold: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The next volume and x0, by the formulas of ``ops.denoise_step``."""
    x0_x, x0_output, next_x, next_output, next_x0, next_previous, next_noise = coefficients.to(x.dtype).unbind()
    x0 = x0_x * x + x0_output * output
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
    if threshold is not None:
        s = threshold.view(-1, *[1] * (x.ndim - 1))
        x0 = torch.minimum(torch.maximum(x0, -s), s) / s
    found = next_x * x + next_output * output + next_x0 * x0
    if previous is not None:
        found = found + next_previous * previous
    return (found if noise is None else found + next_noise * noise), x0
