"""What the suites measure: ours as a call, the PyTorch module that peers run, and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from orthokernels.bench.cpu.peers import Call, Inputs
from torch import Tensor, nn

from orthokernels import _native
from orthokernels.backends.cpu.algorithm import choose
from orthokernels.models.native import UNetPlan
from orthokernels.models.native.fusion import make_fusion
from orthokernels.models.native.layers import State, linear
from orthokernels.models.native.pooling import SelfAttentionPool as NativePool
from orthokernels.models.native.sampling import ddim_sample
from orthokernels.models.native.segmentation import SEGMENTATIONS
from orthokernels.models.orthodiffusion import (
    FUSIONS,
    GaussianDiffusion,
    MultiscaleSegmentationHead,
    SegmentationHead,
    SelfAttentionPool,
    UNet,
)
from orthokernels.ops import conv3d, group_norm_silu, upsample2x_trilinear

SIDES = (16, 256, 256)
TINY = (8, 32, 32)
TIMESTEP = 100
WIDTH = 64
UNCALIBRATED = "NNCF was seen to need more than 24 GB to calibrate it"
STEPS, TINY_STEPS = 50, 3  # of a sample

# Of the sweep; a volume of more bytes is left out.
WIDTHS, PLANES, DEPTHS = (16, 32, 64, 128), (128, 256, 512), (8, 16, 32)
TINY_WIDTHS, TINY_PLANES, TINY_DEPTHS = (16,), (16,), (2,)
MOST_BYTES = 2**30


@dataclass(frozen=True)
class Subject:
    """One case of a suite.

    Attributes:
        ours: the native engine's call.
        module, inputs: what peers are given.
        layers: of ours, after a run.
        exported: whether the module is a network, which the others' exporters take.
        exact: whether errors are told against the module in float64; else against eager PyTorch, where float64 would
            take longer than the measurement, or more memory than is there beside the peers.
        peers: where they are no calls of the module.
        without: peers that can not take it, and why.
    """

    name: str
    ours: Call
    module: nn.Module
    inputs: Inputs
    layers: Callable[[], list[dict[str, Any]]] = list
    exported: bool = True
    exact: bool = True
    peers: Mapping[str, Call] | None = None
    without: Mapping[str, str] = field(default_factory=dict)


class FeaturePass(nn.Module):
    """A network up to a feature, at one timestep: what an exporter is given."""

    def __init__(self, unet: UNet, name: str) -> None:
        super().__init__()
        self.unet, self.name = unet, name

    def forward(self, x: Tensor) -> Tensor:
        timesteps = torch.full((1,), TIMESTEP, dtype=torch.int64)
        return self.unet.features(x, timesteps, (self.name,))[self.name]


class Sample(nn.Module):
    """DDIM from given noise, as ``GaussianDiffusion.sample``."""

    def __init__(self, unet: UNet, steps: int) -> None:
        super().__init__()
        self.unet, self.steps, self.diffusion = unet, steps, GaussianDiffusion()

    def forward(self, x: Tensor) -> Tensor:
        visited = torch.linspace(self.diffusion.timesteps - 1, 0, self.steps).round().long().tolist()
        for timestep, target in zip(visited, [*visited[1:], -1], strict=True):
            noise = self.unet(x, torch.full((1,), timestep))
            x = self.diffusion.ddim_step(x, timestep, target, noise, torch.zeros(()))
        return x


def unet_pass(suite: str, threads: int, tiny: bool) -> Subject:
    """The suites "features" and "denoiser"."""
    name, sides = ("mid_2" if suite == "features" else "final"), TINY if tiny else SIDES
    unet = network(tiny)
    plan = native_plan(unet, name, sides)
    x = _normal(1, 1, *sides)
    module = FeaturePass(unet, name)
    return Subject(
        suite, lambda: plan.run(x[0], threads=threads)[name][None], module, (x,), plan.describe,
        exact=suite == "features" or tiny,
        without={} if suite == "features" or tiny else {"openvino_int8": UNCALIBRATED},
    )  # fmt: skip


def layer(threads: int, tiny: bool) -> Subject:
    """One convolution, ours with its volumes channels last as the engine keeps them."""
    sides = TINY if tiny else SIDES
    conv = nn.Conv3d(WIDTH, WIDTH, 3, padding=1).eval()
    assert conv.bias is not None
    x, weight, bias = _normal(1, WIDTH, *sides), conv.weight.detach().numpy(), conv.bias.detach().numpy()
    own = _native.Conv3d(weight, 1, sides, choose(WIDTH, WIDTH, 3, 1, sides))
    volume, made = np.ascontiguousarray(np.moveaxis(x[0], 0, -1)), np.empty((*sides, WIDTH), np.float32)

    def call() -> np.ndarray:
        own.run(volume, made, bias=bias, threads=threads)
        return np.moveaxis(made, -1, 0)[None]

    return Subject("layer", call, conv, (x,))


def sampling(threads: int, tiny: bool) -> Subject:
    """A sample from noise by DDIM."""
    sides, steps, unet = TINY if tiny else SIDES, TINY_STEPS if tiny else STEPS, network(tiny)
    plan = native_plan(unet, "final", sides)
    x = _normal(1, 1, *sides)
    return Subject(
        f"{steps} steps of DDIM", lambda: ddim_sample(plan, x[0], steps=steps, threads=threads)[None],
        Sample(unet, steps), (x,), exported=False, exact=False,
    )  # fmt: skip


class _Maps(nn.Module):
    """The head of every resolution, its maps one by one."""

    def __init__(self, head: MultiscaleSegmentationHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, *inputs: Tensor) -> Tensor:
        *maps, volume = inputs
        return self.head({str(n): own for n, own in enumerate(maps)}, volume)


class Diagnosis(nn.Module):
    """A plane's pooling and its own head."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.pooling = SelfAttentionPool(channels, heads)
        self.head = nn.Linear(2 * channels, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pooling(x))


def heads(threads: int, tiny: bool) -> Iterator[Subject]:
    """Segmentation and diagnosis heads at the published size, and a fusion."""
    sides, width = (TINY, 16) if tiny else (SIDES, 256)
    small = tuple(side // 16 or 1 for side in sides)
    yield _published_head(width, small, threads)
    yield _multiscale_head((16, 32, 32) if tiny else (64, 64, 128, 128, 256, 256), sides, threads)
    yield _diagnosis(width, small, threads)
    yield _fusion(2 * width)


def _published_head(width: int, small: tuple[int, ...], threads: int) -> Subject:
    module = varied(SegmentationHead(width))
    own = SEGMENTATIONS["segmentation_head"](state_of(module), {"in_channels": width})
    x, volume = _normal(1, width, *small), np.zeros((16 * small[0], 16 * small[1], 16 * small[2]), np.float32)

    def call() -> np.ndarray:
        return own.logits({"mid_2": x[0]}, volume, threads=threads)[None]

    return Subject("published segmentation head", call, module, (x,), own.describe)


def _multiscale_head(widths: tuple[int, ...], sides: tuple[int, ...], threads: int) -> Subject:
    arguments = {"widths": list(widths)}
    module = varied(MultiscaleSegmentationHead(widths))
    own = SEGMENTATIONS["multiscale_segmentation_head"](state_of(module), arguments)
    halvings = [min(level, len(widths) - 2) for level in range(len(widths))]
    maps = [
        _normal(1, width, *(max(side >> halving, 1) for side in sides))
        for width, halving in zip(widths, halvings, strict=True)
    ]
    kept = {str(n): np.moveaxis(np.ascontiguousarray(np.moveaxis(own[0], 0, -1)), -1, 0) for n, own in enumerate(maps)}
    volume = _normal(1, 1, *sides)

    def call() -> np.ndarray:
        return own.logits(kept, volume[0, 0], threads=threads)[None]

    return Subject("segmentation head of every resolution", call, _Maps(module), (*maps, volume), own.describe)


def _diagnosis(width: int, small: tuple[int, ...], threads: int) -> Subject:
    module = varied(Diagnosis(width, 16))
    state = state_of(module)
    inner = {name.removeprefix("pooling."): own for name, own in state.items() if name.startswith("pooling.")}
    pooling, head = NativePool(inner, {"channels": width, "heads": 16}), linear(state, "head")
    x = _normal(1, width, *small)
    kept = np.moveaxis(np.ascontiguousarray(np.moveaxis(x[0], 0, -1)), -1, 0)
    return Subject(
        "pooling with self-attention, and head",
        lambda: head(pooling.vector(kept, None, kept[0], threads=threads)[None]), module, (x,),
    )  # fmt: skip


def _fusion(width: int) -> Subject:
    arguments = {"width": width, "labels": 8, "out_width": width}
    module = varied(FUSIONS["crossattn"](**arguments))
    fusion, planes = make_fusion("crossattn", state_of(module), arguments), _normal(3, 1, width)
    return Subject("fusion with cross-attention", lambda: fusion(planes[:, 0])[0][None], module, tuple(planes))


class _Op(nn.Module):
    """An op's definition, as a network without our kernels has it."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name = name
        self.conv = nn.Conv3d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(min(32, width), width)

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "conv3d":
            return self.conv(x)
        if self.name == "upsample2x_trilinear":
            return nn.functional.interpolate(x, scale_factor=2, mode="trilinear")
        z = self.norm(x)
        return z if self.name == "group_norm" else nn.functional.silu(z)

    def accelerated(self, x: Tensor) -> Tensor:
        """The same by our ops, whose "auto" chooses who computes them."""
        if self.name == "conv3d":
            return conv3d(x, self.conv.weight, self.conv.bias)
        if self.name == "upsample2x_trilinear":
            return upsample2x_trilinear(x)
        norm = self.norm
        activation = "silu" if self.name == "group_norm_silu" else None
        return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, activation=activation, eps=norm.eps)


def sweep(threads: int, tiny: bool, cases: str = "") -> Iterator[Subject]:
    """The ops of a network, each over widths, planes and depths: volumes channels last, as ``accelerate`` has them.

    Only the ``cases`` whose names hold these words.
    """
    every = (TINY_WIDTHS, TINY_PLANES, TINY_DEPTHS) if tiny else (WIDTHS, PLANES, DEPTHS)
    for name in ("conv3d", "group_norm_silu", "group_norm", "upsample2x_trilinear"):
        for width, plane, depth in product(*every):
            sides = (depth, plane, plane)
            told = f"{name}, {width} channels, {' x '.join(map(str, sides))}"
            if cases in told and 4 * width * prod(sides) <= MOST_BYTES:
                yield _swept(name, width, sides, threads, told)


def _swept(name: str, width: int, sides: tuple[int, ...], threads: int, told: str) -> Subject:
    halved = 2 if name == "upsample2x_trilinear" else 1  # its result has the size
    module = _Op(name, width).eval()
    x = _normal(1, width, *(side // halved for side in sides))
    volume = torch.from_numpy(x).contiguous(memory_format=torch.channels_last_3d)

    def call() -> np.ndarray:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return np.asarray(module.accelerated(volume).numpy())

    return Subject(told, call, module, (x,), exported=False, exact=False)


def network(tiny: bool) -> UNet:
    """The published network with weights that keep the signal's size, zero-initialised layers included."""
    unet = UNet(base_channels=32, channel_mults=(1, 2), groups=8) if tiny else UNet()
    return varied(unet)


def native_plan(unet: UNet, name: str, sides: tuple[int, int, int]) -> UNetPlan:
    return UNetPlan(state_of(unet), sides=sides, names=(name,), timestep=TIMESTEP, groups=unet.groups)


def varied(module: Any) -> Any:
    """With weights that keep the signal's size."""
    for parameter in module.parameters():
        if parameter.ndim < 2:
            nn.init.normal_(parameter, std=0.05)
        else:
            nn.init.kaiming_normal_(parameter)
    return module.eval()


def state_of(module: nn.Module) -> State:
    return {key: value.detach().numpy() for key, value in module.state_dict().items()}


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
