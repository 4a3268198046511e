"""Training steps: pre-training of the denoiser, and fine-tuning of its encoder with a segmentation head.

A step is forward, backward and Adam, parameters float32 under autocast to bfloat16, on noise and timesteps made
beforehand. Memory is the most that a contender held: its parameters, their moments, and what a step keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from orthokernels.bench.gpu.case import Bar, Case, Corner
from orthokernels.bench.gpu.floors import Count, count, meta
from orthokernels.bench.gpu.networks import CONTIGUOUS, LAST, Kind, kinds, network, unfused
from orthokernels.bench.gpu.passes import compiled
from orthokernels.bench.gpu.setting import Setting
from orthokernels.bench.gpu.timing import Call, Contender, Effort
from orthokernels.bench.reference import Eager
from torch import Tensor, nn

from orthokernels.acceleration import accelerate
from orthokernels.models.orthodiffusion import UNet
from orthokernels.models.orthodiffusion.segmentation import MultiscaleSegmentationHead, level_names

NAME = "training"
BATCH, CLASSES = 2, 12
COMPILED = "torch.compile default, channels-last"
PUBLISHED = "published forward pass, contiguous"


class FineTuned(nn.Module):
    """The denoiser's encoder and middle, and a head that reads every resolution; the decoder learns nothing."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        self.head = MultiscaleSegmentationHead(_widths(unet), CLASSES)
        self.names = self.head.feature_names(unet)
        unet.requires_grad_(False)
        for name, block in self.unet._blocks():
            if name.startswith(("in_", "mid_")):
                block.requires_grad_(True)

    def forward(self, x0: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return self.head(self.unet.features(noisy, timesteps, self.names), x0)


class Data:
    """A batch: clean volumes in [-1, 1], their noise, timesteps, noisy volumes, and labels."""

    def __init__(self, kind: Kind, setting: Setting, layout: torch.memory_format) -> None:
        device = setting.device
        self.x0 = (torch.rand(BATCH, *kind.shape, device=device) * 2 - 1).contiguous(memory_format=layout)
        self.noise = torch.randn_like(self.x0)
        self.noisy = 0.9 * self.x0 + 0.4 * self.noise
        self.timesteps = torch.arange(BATCH, device=device) * 100 + 50
        self.labels = torch.randint(0, CLASSES, (BATCH, *kind.shape[1:]), device=device)


Loss = Callable[[Any, Data], Tensor]


def cases(setting: Setting) -> list[Case]:
    """Pre-training, then fine-tuning."""
    kind = kinds(setting)["unet"]
    bars = (Bar("faster", 1.25, COMPILED), Bar("memory", 0.7, COMPILED))
    return [
        _case(setting, kind, "pre-training step", lambda unet: unet, denoising_loss, bars, published=Eager),
        _case(setting, kind, "fine-tuning step", FineTuned, segmentation_loss, (), published=None),
    ]


def denoising_loss(own: Any, data: Data) -> Tensor:
    return F.mse_loss(own(data.noisy, data.timesteps).float(), data.noise)


def segmentation_loss(own: Any, data: Data) -> Tensor:
    return F.cross_entropy(own(data.x0, data.noisy, data.timesteps).float(), data.labels)


def _case(
    setting: Setting, kind: Kind, what: str, wrap: Callable[[Any], nn.Module], loss: Loss, bars: tuple[Bar, ...], *,
    published: Callable[[Any], nn.Module] | None,
) -> Case:  # fmt: skip
    def build(
        layout: torch.memory_format, *, kernels: bool = False, mode: str | None = None, apart: bool = False,
        around: Callable[[Any], nn.Module] = wrap,
    ) -> Callable[[], Call]:  # fmt: skip
        return lambda: _step(kind, setting, layout, around, loss, kernels=kernels, mode=mode, apart=apart)

    def contenders() -> Sequence[Contender]:
        found = [
            Contender(Corner.KERNELS_LAST, build(LAST, kernels=True)),
            Contender(COMPILED, build(LAST, mode="default")),
            Contender(Corner.PLAIN_CONTIGUOUS, build(CONTIGUOUS)),
            Contender(Corner.PLAIN_LAST, build(LAST)),
            Contender(Corner.KERNELS_CONTIGUOUS, build(CONTIGUOUS, kernels=True)),
            Contender(Corner.UNFUSED_CONTIGUOUS, build(CONTIGUOUS, kernels=True, apart=True)),
        ]
        if published is not None:
            found.append(Contender(PUBLISHED, build(CONTIGUOUS, around=published)))
        return [
            *found,
            Contender(f"{Corner.KERNELS_LAST}, torch.compile default", build(LAST, kernels=True, mode="default")),
            Contender("torch.compile max-autotune, channels-last", build(LAST, mode="max-autotune")),
        ]

    name = f"{kind.name}, {what}, {BATCH}x{'x'.join(map(str, kind.shape))} autocast bf16"
    counted = _counted(setting, kind, wrap, loss)
    effort = Effort(seconds=0.2, least=2, most=2) if setting.tiny else Effort(seconds=8.0, least=5, most=15)
    return Case(name, counted.moved, counted.operations, "bfloat16", contenders, bars, effort)


def _step(
    kind: Kind, setting: Setting, layout: torch.memory_format, wrap: Callable[[Any], nn.Module], loss: Loss, *,
    kernels: bool, mode: str | None, apart: bool,
) -> Call:  # fmt: skip
    device = setting.device
    own = wrap(network(kind, setting, dtype=torch.float32)).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    if kernels:  # behind the wrapping: a head has normalisations too
        accelerate(own, memory_format=layout, backend=setting.backend)
    data = Data(kind, setting, layout)
    learning = [parameter for parameter in own.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(learning, lr=1e-4, fused=True)
    forward = own if mode is None else compiled(own, setting, mode)

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device.type, torch.bfloat16):
            error = loss(forward, data)
        error.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def unfused_step() -> None:
        with unfused():
            step()

    return unfused_step if apart else step


def _widths(unet: Any) -> list[int]:
    """Channels of the encoder's last map of each level, finest first, then the middle's."""
    blocks = dict(unet._blocks())
    return [_width(blocks[name]) for name in level_names(unet)]


def _width(block: Any) -> int:
    """Channels that a block of residual layers gives."""
    weights = [module.weight for module in block.modules() if isinstance(module, nn.Conv3d)]
    return int(weights[-1].shape[0])


def _counted(setting: Setting, kind: Kind, wrap: Callable[[Any], nn.Module], loss: Loss) -> Count:
    """Of one step; zeros where PyTorch can not count it."""
    data = Data.__new__(Data)
    data.x0 = data.noise = data.noisy = meta(BATCH, *kind.shape)
    data.timesteps = meta(BATCH, dtype=torch.int64)
    data.labels = meta(BATCH, *kind.shape[1:], dtype=torch.int64)
    try:
        return count(wrap(kind.make(setting)), lambda own: loss(own, data).backward(), 2, training=True)
    except Exception:  # the case itself will tell why
        return Count(0, 0)
