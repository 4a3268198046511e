"""A clean volume noised to a timestep of the published schedule, without PyTorch."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from orthokernels.models.native.layers import Array
from orthokernels.models.noise import feature_noise
from orthokernels.models.weights_folder import TIMESTEPS


@functools.cache
def alpha_bar() -> NDArray[np.float64]:
    """The signal's share of the variance at each timestep, as ``models.orthodiffusion.diffusion`` has it."""
    points = np.linspace(0, TIMESTEPS + 1, TIMESTEPS + 1)
    curve = np.cos((points / (TIMESTEPS + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.cumprod(1 - (1 - curve[1:] / curve[:-1]).clip(0, 0.999))


def noised(x0: Array, timestep: int, *, seed: int, draw: int, sample: int) -> Array:
    """A volume [channels, D, H, W] with the noise of ``feature_noise`` (DDPM eq. 4)."""
    share = alpha_bar()[timestep]
    noise = feature_noise(x0.shape, seed=seed, draw=draw, sample=sample)
    return np.float32(math.sqrt(share)) * x0 + np.float32(math.sqrt(1 - share)) * noise
