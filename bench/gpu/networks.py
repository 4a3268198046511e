"""The networks that are compared: one set of weights in plain PyTorch or with the kernels, in either layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from orthokernels.bench.gpu.peers import load
from orthokernels.bench.gpu.setting import Setting
from torch import Tensor, nn

from orthokernels.acceleration import accelerate, blocks
from orthokernels.models.orthodiffusion import UNet
from orthokernels.ops.group_norm_silu import group_norm_silu

CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last_3d


@dataclass(frozen=True)
class Kind:
    """A network and the volume it takes."""

    name: str
    make: Callable[[Setting], nn.Module]
    shape: tuple[int, ...]  # (C, D, H, W)


def published_unet(setting: Setting) -> UNet:
    """The published network; a small one of the same build where the setting is tiny."""
    if setting.tiny:
        return UNet(base_channels=8, channel_mults=(1, 2), groups=4, attention_rates=(2,))
    return UNet()


def monai_unet(setting: Setting) -> nn.Module:
    """MONAI's DiffusionModelUNet with the widths and depths of the published network.

    Raises:
        Absent: MONAI is not installed.
    """
    nets: Any = load("MONAI")
    if setting.tiny:
        widths, groups = [8, 16], 4
    else:
        widths, groups = [64, 64, 128, 128, 256], 32
    attended = [False] * (len(widths) - 1) + [True]
    made: nn.Module = nets.DiffusionModelUNet(
        spatial_dims=3, in_channels=1, out_channels=1, channels=widths, attention_levels=attended, num_res_blocks=1,
        num_head_channels=widths[-1], norm_num_groups=groups,
    )  # fmt: skip
    return made


def kinds(setting: Setting) -> dict[str, Kind]:
    shape = (1, 4, 8, 8) if setting.tiny else (1, 16, 256, 256)
    return {
        "unet": Kind("U-Net", published_unet, shape),
        "monai": Kind("MONAI DiffusionModelUNet", monai_unet, shape),
    }


def network(
    kind: Kind, setting: Setting, *, layout: torch.memory_format = CONTIGUOUS, dtype: torch.dtype = torch.bfloat16,
    kernels: bool = False,
) -> nn.Module:  # fmt: skip
    """A network with the same weights every time; none of them zeros, where training would start."""
    torch.manual_seed(0)
    made = kind.make(setting)
    for parameter in made.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.02)
    made = made.to(setting.device, dtype).to(memory_format=layout)  # type: ignore[call-overload]
    if kernels:
        accelerate(made, memory_format=layout, backend=setting.backend)
    return made


def volumes(kind: Kind, setting: Setting, batch: int, layout: torch.memory_format, dtype: torch.dtype) -> Tensor:
    """Noisy volumes [batch, C, D, H, W]."""
    x = torch.randn(batch, *kind.shape, device=setting.device).to(dtype)
    return x.contiguous(memory_format=layout)


@contextmanager
def unfused() -> Iterator[None]:
    """Inside, accelerated modules call the kernels for one plain op after the other."""
    before = blocks.group_norm_silu
    blocks.group_norm_silu = _unfused
    try:
        yield
    finally:
        blocks.group_norm_silu = before


def _unfused(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, *, shift: Tensor | None = None,
    scale_shift: Tensor | None = None, activation: str | None = "silu", eps: float = 1e-5, skip: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:  # fmt: skip
    if skip is not None:
        x = torch.cat([x, skip], dim=1)
    per_channel = (*x.shape[:2], *[1] * (x.ndim - 2))
    if shift is not None:
        x = x + shift.view(per_channel).to(x.dtype)
    x = group_norm_silu(x, groups, weight, bias, activation=None, eps=eps, backend=backend)
    if scale_shift is not None:
        scale, offset = scale_shift.chunk(2, dim=1)
        x = x * (1 + scale.view(per_channel)) + offset.view(per_channel)
    return F.silu(x) if activation == "silu" else x
