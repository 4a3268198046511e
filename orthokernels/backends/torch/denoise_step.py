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
    from orthokernels.ops.denoise_step import reference

    dtype = torch.promote_types(x.dtype, torch.float32)
    noise = None
    if seed is not None:
        noise = normal(x.numel(), seed, step).to(dtype).as_strided(x.shape, x.stride())  # numbered by place in memory
    own = None if previous is None else previous.to(dtype)
    result, clean = reference(
        x.to(dtype), output.to(dtype), coefficients, previous=own, clip=clip, threshold=threshold, noise=noise
    )
    found.copy_(result)
    if x0 is not None:
        x0.copy_(clean)
