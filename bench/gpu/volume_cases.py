"""Trilinear doubling and the fusion of three planes, at the sizes that the published network has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from orthokernels.bench.gpu.case import Bar, Case, Corner
from orthokernels.bench.gpu.passes import Direction, Function, channels_last, compile_modes, normal, passing
from orthokernels.bench.gpu.setting import Setting
from orthokernels.bench.gpu.timing import Contender
from torch import Tensor

from orthokernels.backends.torch.plane_fusion import mixed
from orthokernels.ops.plane_fusion import matrices, plane_fusion
from orthokernels.ops.upsample2x_trilinear import bytes_moved, reference, upsample2x_trilinear

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")


def upsample_cases(setting: Setting) -> list[Case]:
    """The decoder's two largest doublings, and the largest at batch 8."""
    shapes = [(1, 64, 8, 128, 128), (8, 64, 8, 128, 128), (1, 128, 4, 64, 64)]
    if setting.tiny:
        shapes = [(1, 8, 2, 3, 4)]
    return [_upsample(setting, shape, direction) for shape in shapes for direction in DIRECTIONS]


def _upsample(setting: Setting, shape: tuple[int, ...], direction: Direction) -> Case:
    name = f"upsample2x_trilinear {direction}, {'x'.join(map(str, shape))} bf16"
    moved = bytes_moved(torch.empty(shape, dtype=torch.bfloat16, device="meta"))

    def contenders() -> Sequence[Contender]:
        x = normal(setting, *shape)
        return _corners(
            lambda x: upsample2x_trilinear(x, backend=setting.backend), reference,
            (x,), (channels_last(x),), direction, setting,
        )  # fmt: skip

    return Case(name, moved, 0, "bfloat16", contenders, (Bar("floor", 0.80),))


def plane_fusion_cases(setting: Setting) -> list[Case]:
    """Three planes' features at half resolution onto one grid of 2.5 mm, gated in four groups of channels."""
    return [_plane_fusion(setting, direction) for direction in DIRECTIONS]


def _plane_fusion(setting: Setting, direction: Direction) -> Case:
    channels, groups = (8, 2) if setting.tiny else (64, 4)
    sides, own = ((2, 4, 4), (3, 3, 3)) if setting.tiny else ((8, 128, 128), (64, 64, 64))
    affines, result = three_planes(sides, own)
    volume = channels * math.prod(sides) * 2
    gates, out = 3 * groups * math.prod(own) * 4, channels * math.prod(own) * 2
    # Forward: volumes and gates are read, the result and the planes' weights written. Backward: the result's gradient,
    # volumes and weights are read, the gradients of volumes and gates written.
    moved = 3 * volume + 2 * gates + out if direction == "forward" else out + 6 * volume + 2 * gates

    def contenders() -> Sequence[Contender]:
        volumes = [normal(setting, 1, channels, *sides) for _ in range(3)]
        logits = normal(setting, 1, 3, groups, *own, dtype=torch.float32)

        # Matrices are made beforehand for all but the public function, as a plan for one study would make them.
        to_plane, to_result, reach = matrices(affines, result, volumes)
        to_plane, to_result = to_plane.to(setting.device), to_result.to(setting.device)

        def ours(a: Tensor, b: Tensor, c: Tensor, gates: Tensor) -> Tensor:
            op = torch.ops.orthokernels.plane_fusion
            found: Tensor = op(a, b, c, gates, to_plane, to_result, reach, setting.backend)[0]
            return found

        def public(a: Tensor, b: Tensor, c: Tensor, gates: Tensor) -> Tensor:
            return plane_fusion([a, b, c], affines, gates, result, backend=setting.backend)

        def plain(a: Tensor, b: Tensor, c: Tensor, gates: Tensor) -> Tensor:
            return mixed([a, b, c], gates, to_plane)[0].to(a.dtype)

        last = [channels_last(each) for each in volumes]
        found = _corners(ours, plain, (*volumes, logits), (*last, logits), direction, setting)
        sampled = _grid_sampling(affines, result, sides, own, setting)
        found[4:4] = [
            Contender("grid_sample and softmax, contiguous", passing(sampled, (*volumes, logits), direction)),
            Contender("orthokernels with its matrices, channels-last", passing(public, (*last, logits), direction)),
        ]
        for name, build in compile_modes(sampled, (*volumes, logits), direction, setting):
            found.append(Contender(f"{name} of grid_sample, contiguous", build))
        return found

    sizes = f"3 of 1x{channels}x{'x'.join(map(str, sides))} onto {'x'.join(map(str, own))}"
    name = f"plane_fusion {direction}, {sizes} bf16"
    return Case(name, moved, 0, "bfloat16", contenders, (Bar("floor", 0.80),))


def three_planes(sides: Sequence[int], own: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Affines of a sagittal, coronal and axial slab around one centre, a little oblique, and of the result's grid."""
    slices, pixels = 160.0 / sides[0], 160.0 / sides[1]  # millimetres
    found = []
    for axis in range(3):
        order = [axis, *(n for n in range(3) if n != axis)]
        turn = _turned(0.1 * (axis + 1))[:, order]
        found.append(_around(turn @ torch.diag(torch.tensor([slices, pixels, pixels], dtype=torch.float64)), sides))
    spacing = 160.0 / own[0]
    return found, _around(spacing * torch.eye(3, dtype=torch.float64), own)


def _turned(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


def _around(directions: Tensor, sides: Sequence[int]) -> Tensor:
    """The affine whose grid has its middle in the patient's origin."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = directions
    affine[:3, 3] = -directions @ (torch.tensor(list(sides), dtype=torch.float64) - 1) / 2
    return affine


def _grid_sampling(
    affines: Sequence[Tensor], result: Tensor, sides: Sequence[int], own: Sequence[int], setting: Setting
) -> Function:
    """The same out of PyTorch's own ops: the planes' coordinates are made beforehand and are not timed."""
    axes = [torch.arange(side, dtype=torch.float64) for side in own]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    last = torch.tensor(list(sides), dtype=torch.float64) - 1
    grids, masks = [], []
    for affine in affines:
        to_plane = torch.linalg.inv(affine) @ result
        c = x @ to_plane[:3, :3].T + to_plane[:3, 3]
        masks.append(((c >= -0.5) & (c <= last + 0.5)).all(dim=-1))
        grids.append((2 * c / last - 1).flip(-1)[None].float().to(setting.device))
    has = torch.stack(masks)[None, :, None].to(setting.device)

    def sampled(a: Tensor, b: Tensor, c: Tensor, gates: Tensor) -> Tensor:
        weights = torch.where(has, gates.masked_fill(~has, -torch.inf).softmax(dim=1), 0.0)
        total = torch.zeros((), device=gates.device)
        for n, (volume, grid) in enumerate(zip((a, b, c), grids, strict=True)):
            sample = F.grid_sample(volume.float(), grid, align_corners=True, padding_mode="border")
            total = total + (weights[:, n, :, None] * sample.unflatten(1, (gates.shape[2], -1))).flatten(1, 2)
        return total.to(a.dtype)

    return sampled


def _corners(
    ours: Function, plain: Function, first: Sequence[Tensor], last: Sequence[Tensor], direction: Direction,
    setting: Setting,
) -> list[Contender]:  # fmt: skip
    """Two functions in two layouts, and torch.compile of the plain one, channels-last."""
    corners: list[tuple[str, Callable[..., Tensor], Any]] = [
        (Corner.KERNELS_LAST, ours, last), (Corner.KERNELS_CONTIGUOUS, ours, first),
        (Corner.PLAIN_CONTIGUOUS, plain, first), (Corner.PLAIN_LAST, plain, last),
    ]  # fmt: skip
    found = [Contender(name, passing(function, tensors, direction)) for name, function, tensors in corners]
    for name, build in compile_modes(plain, last, direction, setting):
        found.append(Contender(f"{name}, channels-last", build))
    return found
