"""Volumes drawn from noise on the native engine: DDIM of the published schedule, without PyTorch."""

from __future__ import annotations

import math

import numpy as np

from orthokernels import _native
from orthokernels.models.native.layers import Array
from orthokernels.models.native.noising import alpha_bar
from orthokernels.models.native.unet import UNetPlan
from orthokernels.models.weights_folder import TIMESTEPS


def ddim_sample(plan: UNetPlan, noise: Array, *, steps: int = 50, threads: int = 1) -> Array:
    """The volume that a denoiser makes of noise, as ``GaussianDiffusion.sample`` with ``eta=0`` and clipping.

    Args:
        plan: with the feature "final".
        noise: unit noise [channels, D, H, W], float32.
        steps: timesteps to visit, spread evenly.
        threads: that share the work; the result does not depend on them.

    Raises:
        ValueError: a number of steps out of range.
    """
    if not 1 <= steps <= TIMESTEPS:
        raise ValueError(f"steps must lie in 1 to {TIMESTEPS}, not {steps}")
    x = np.ascontiguousarray(noise, dtype=np.float32)
    visited = [round(place) for place in np.linspace(TIMESTEPS - 1, 0, steps).tolist()]
    for timestep, target in zip(visited, [*visited[1:], -1], strict=True):
        plan.set_timestep(timestep)
        output = np.ascontiguousarray(plan.run(x, threads=threads)["final"])
        found = np.empty_like(x)
        _native.denoise_step(
            x.reshape(1, -1), output.reshape(1, -1), _coefficients(timestep, target), found.reshape(1, -1), clip=1.0,
            threads=threads,
        )  # fmt: skip
        x = found
    return x


def _coefficients(timestep: int, target: int) -> Array:
    """Of ``ops.denoise_step``, from a timestep to an earlier one; -1 is the clean volume."""
    here, before = alpha_bar()[timestep], alpha_bar()[target] if target >= 0 else 1.0
    alpha, sigma = math.sqrt(here), math.sqrt(1 - here)
    # The direction back to x (Song et al., eq. 12) is that of the noise which fits the clipped x0.
    direction = math.sqrt(1 - before)
    row = (1 / alpha, -sigma / alpha, direction / sigma, 0.0, math.sqrt(before) - direction * alpha / sigma, 0.0, 0.0)
    return np.array(row, np.float32)
