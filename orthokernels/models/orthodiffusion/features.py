"""Features of a volume: one noisy pass through the denoiser at a fixed timestep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from orthokernels.models import noise
from orthokernels.models.orthodiffusion.diffusion import GaussianDiffusion


class Network(Protocol):
    """What computes feature maps: a ``UNet``, or a ``NativeUNet``."""

    def features(self, x: Tensor, timesteps: Tensor, names: Iterable[str]) -> dict[str, Tensor]: ...


def feature_noise(shape: tuple[int, ...], *, seed: int, draw: int = 0, sample: int = 0) -> Tensor:
    """Unit noise for one sample, float32 on the CPU: the same on every device, in every batch, and in every engine."""
    return torch.from_numpy(noise.feature_noise(shape, seed=seed, draw=draw, sample=sample))


def features(
    unet: Network,
    diffusion: GaussianDiffusion,
    x0: Tensor,
    names: Iterable[str] = ("mid_2",),
    *,
    timestep: int = 100,
    seed: int = 0,
    draws: int = 1,
    first_sample: int = 0,
) -> dict[str, Tensor]:
    """Named feature maps of clean volumes, noised to ``timestep``.

    Args:
        x0: [batch, channel, depth, height, width], values in [-1, 1].
        names: of ``unet.feature_names``.
        timestep: how much noise; the published default is 100.
        seed: of the noise. Sample n of the batch gets the noise of sample ``first_sample + n``, however the volumes
            are batched. The published code leaves this to chance.
        draws: noise draws to average the maps over.

    Returns:
        Each name with its map, [batch, channels, depth', height', width'].
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    names = tuple(names)
    timesteps = torch.full((x0.shape[0],), timestep, device=x0.device)
    total: dict[str, Tensor] = {}
    for draw in range(draws):
        drawn = torch.stack(
            [
                feature_noise(tuple(x0.shape[1:]), seed=seed, draw=draw, sample=first_sample + n)
                for n in range(x0.shape[0])
            ]
        )
        noisy = diffusion.add_noise(x0, timesteps, drawn.to(x0))
        for name, found in unet.features(noisy, timesteps, names).items():
            total[name] = found if draw == 0 else total[name] + found
    return {name: found / draws for name, found in total.items()} if draws > 1 else total
