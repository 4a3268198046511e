"""Others' 3D diffusion models under ``accelerate``, as their makers' tutorials set them up, beside what else runs them.

MONAI's tutorial of 3D diffusion models (3d_ddpm) samples 32 x 40 x 32 voxels by a wide U-Net; that of latent diffusion
(3d_ldm) encodes 96 x 96 x 64 by an autoencoder, whose latent a narrow U-Net denoises. Networks and volumes are theirs;
a call takes one volume, where they train with several. A training step is forward to the error of the noise, backward
and Adam.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from orthokernels.bench.cpu.finetuning import training_step
from orthokernels.bench.cpu.peers import Call
from orthokernels.bench.cpu.subjects import TIMESTEP, Subject, varied
from torch import Tensor, nn

from orthokernels.acceleration import accelerate
from orthokernels.errors import need

RATE = 1e-4
LAST = torch.channels_last_3d


class _Denoiser(nn.Module):
    """A network at one timestep: what exporters are given."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.unet(x, torch.full((1,), TIMESTEP, dtype=torch.int64))
        return found


class _Reconstruction(nn.Module):
    """An autoencoder's mean, decoded: no noise is drawn."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.autoencoder.reconstruct(x)
        return found


def others(threads: int, tiny: bool) -> Iterator[Subject]:
    """MONAI's networks by its tutorials, and a training step of the wide one.

    Raises:
        InputError: MONAI is not installed.
    """
    need("the suite of others' models", "monai", "peers")
    torch.manual_seed(0)
    wide, sides = _unet(tiny, 1, (256, 256, 512), (0, 0, 512), blocks=2), (32, 40, 32)
    yield _inference("MONAI's 3D DDPM, a step", _Denoiser(wide), (1, *_scaled(tiny, sides)), threads)
    yield _training("MONAI's 3D DDPM, a training step", _Denoiser(wide), (1, *_scaled(tiny, sides)), threads)
    encoded, sides = _Reconstruction(_autoencoder(tiny)), (96, 96, 64)
    yield _inference("MONAI's latent diffusion, autoencoder", encoded, (1, *_scaled(tiny, sides)), threads)
    latent, sides = _unet(tiny, 3, (32, 64, 64), (0, 64, 64), blocks=1), (24, 24, 16)
    yield _inference("MONAI's latent diffusion, a step", _Denoiser(latent), (3, *_scaled(tiny, sides)), threads)


def _scaled(tiny: bool, sides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side // 16 * 4 for side in sides) if tiny else sides  # halved twice, to whole numbers


def _unet(tiny: bool, channels: int, widths: tuple[int, ...], heads: tuple[int, ...], *, blocks: int) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    share = 32 if tiny else 1
    made: nn.Module = varied(
        DiffusionModelUNet(
            spatial_dims=3, in_channels=channels, out_channels=channels,
            channels=[max(own // share, 8) for own in widths],
            attention_levels=[head > 0 for head in heads], num_head_channels=[max(own // share, 8) for own in heads],
            num_res_blocks=blocks, norm_num_groups=4 if tiny else 32,
        )
    )  # fmt: skip
    return made


def _autoencoder(tiny: bool) -> nn.Module:
    from monai.networks.nets import AutoencoderKL

    made: nn.Module = varied(
        AutoencoderKL(
            spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 8, 8) if tiny else (32, 64, 64),
            latent_channels=3, num_res_blocks=1, norm_num_groups=4 if tiny else 16,
            attention_levels=(False, False, True),
        )
    )  # fmt: skip
    return made


def _inference(name: str, module: nn.Module, shape: tuple[int, ...], threads: int) -> Subject:
    own = accelerated(copy.deepcopy(module))
    x = torch.randn(1, *shape)
    volume = x.contiguous(memory_format=LAST)

    def call() -> np.ndarray:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return np.asarray(own(volume).numpy())

    return Subject(name, call, module, (x.numpy(),))


def _training(name: str, module: nn.Module, shape: tuple[int, ...], threads: int) -> Subject:
    x, noise = torch.randn(1, *shape), torch.randn(1, *shape)

    def step(layout: torch.memory_format, made: Callable[[nn.Module], Any] = lambda own: own) -> Call:
        own = copy.deepcopy(module).to(memory_format=layout)  # type: ignore[call-overload]
        volume, called = x.contiguous(memory_format=layout), made(own)
        optimiser = torch.optim.Adam(own.parameters(), lr=RATE)
        return training_step(lambda: F.mse_loss(called(volume), noise), optimiser, threads)

    return Subject(
        name, step(LAST, accelerated), module, (x.numpy(),), exact=False,
        peers={
            "torch_eager": step(torch.contiguous_format),
            "torch_channels_last": step(LAST),
            "torch_compile": step(torch.contiguous_format, torch.compile),
        },
    )  # fmt: skip


def accelerated(module: nn.Module) -> nn.Module:
    """The same module, its blocks and convolutions replaced."""
    accelerate(module)
    return module
