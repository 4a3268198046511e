"""Group normalisation with SiLU: this package, PyTorch, torch.compile, Liger and apex."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from orthokernels.bench.gpu.case import Bar, Case, Corner
from orthokernels.bench.gpu.passes import Direction, channels_last, compile_modes, normal, passing
from orthokernels.bench.gpu.peers import with_peer
from orthokernels.bench.gpu.setting import Setting
from orthokernels.bench.gpu.timing import Absent, Call, Contender
from torch import Tensor

from orthokernels.ops.group_norm_silu import bytes_moved, group_norm_silu, reference

GROUPS = 32
# The best published forward pass of this shape is 259.7 us on one H200 (SGLang's pull request 23938).
PUBLISHED_SHAPE, PUBLISHED_BAR = (1, 128, 20, 256, 256), 240e-6


def norm_cases(setting: Setting) -> list[Case]:
    """The network's largest volume at batch 1 and 8, and the best published shape; forward, then backward."""
    shapes: list[tuple[tuple[int, ...], bool]] = [
        ((1, 64, 16, 256, 256), True), ((8, 64, 16, 256, 256), True), (PUBLISHED_SHAPE, False),
    ]  # fmt: skip
    if setting.tiny:
        shapes = [((1, 64, 2, 4, 6), True), ((1, 128, 2, 4, 4), False)]
    directions: tuple[Direction, ...] = ("forward", "backward")
    return [_case(setting, shape, last, direction) for direction in directions for shape, last in shapes]


def _case(setting: Setting, shape: tuple[int, ...], last: bool, direction: Direction) -> Case:
    layout = "channels-last" if last else "contiguous"
    told = "x".join(map(str, shape))
    moved = bytes_moved(torch.empty(shape, dtype=torch.bfloat16, device="meta"), backward=direction == "backward")
    bars: tuple[Bar, ...] = (Bar("floor", 0.80),)
    if direction == "forward":
        bars = (Bar("bandwidth", 0.85),) if last else (Bar("seconds", PUBLISHED_BAR),)
    name = f"group_norm_silu {direction}, {told} bf16, {layout}"
    return Case(name, moved, 0, "bfloat16", lambda: _contenders(setting, shape, last, direction), bars)


def _contenders(setting: Setting, shape: tuple[int, ...], last: bool, direction: Direction) -> Sequence[Contender]:
    x = normal(setting, *shape, mean=0.3)
    weight = normal(setting, shape[1], dtype=torch.float32, mean=1.0)
    bias = normal(setting, shape[1], dtype=torch.float32)
    # PyTorch and the peers want weights of x's dtype; sums are float32 all the same.
    first, half = (x, weight, bias), (x, weight.to(x.dtype), bias.to(x.dtype))
    second = (channels_last(x), weight, bias)
    half_second = (second[0], *half[1:])

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm_silu(x, GROUPS, weight, bias, backend=setting.backend)

    def unfused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(group_norm_silu(x, GROUPS, weight, bias, activation=None, backend=setting.backend))

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference(x, GROUPS, weight, bias)

    corners: list[tuple[str, Callable[..., Tensor], Any]] = [
        (Corner.KERNELS_LAST, ours, second), (Corner.KERNELS_CONTIGUOUS, ours, first),
        (Corner.PLAIN_CONTIGUOUS, plain, half), (Corner.PLAIN_LAST, plain, half_second),
        (Corner.UNFUSED_CONTIGUOUS, unfused, first),
    ]  # fmt: skip
    corners.sort(key=lambda corner: corner[0] != (Corner.KERNELS_LAST if last else Corner.KERNELS_CONTIGUOUS))
    found = [Contender(name, passing(function, tensors, direction)) for name, function, tensors in corners]
    layout = "channels-last" if last else "contiguous"
    for name, build in compile_modes(plain, half_second if last else half, direction, setting):
        found.append(Contender(f"{name}, {layout}", build))
    found.append(Contender("Liger and SiLU, contiguous", with_peer("Liger", lambda m: _liger(m, half, direction))))
    found.append(Contender("apex, channels-last", with_peer("apex", lambda m: _apex(m, second, direction))))
    return found


def _liger(module: Any, tensors: Sequence[Tensor], direction: Direction) -> Call:
    """Voxels are flattened first: Liger's backward pass takes the last axis for all of them."""
    function = module.LigerGroupNormFunction

    def liger(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = function.apply(x.flatten(2), weight, bias, x.shape[1], GROUPS, 1e-5)
        return F.silu(y.view(x.shape))

    call: Call = passing(liger, tensors, direction)()
    return call


def _apex(module: Any, tensors: Sequence[Tensor], direction: Direction) -> Call:
    """apex takes pictures: height and width are one axis to it, and depth the other; memory is the same."""
    x, weight, bias = tensors
    if x.device.type != "cuda":
        raise Absent("apex needs a CUDA device")
    layer = module.GroupNorm(GROUPS, x.shape[1], device=x.device, dtype=torch.float32, act="silu")
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    picture = x.flatten(3)
    assert math.prod(picture.shape) == x.numel()
    call: Call = passing(layer, (picture,), direction)()
    return call
