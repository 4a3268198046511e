"""The planes' features, brought onto one grid in the patient and mixed by a gate, in one op.

Each plane p has a volume F[p] on a grid of its own, whose affine takes voxel indices to patient millimetres; the
result's grid has one too. For a voxel x of the result:

    c[p]   = affine[p]^-1 affine x                          where x lies in the plane's grid
    S[p]   = F[p] at c[p], trilinear                        the volume's ends are held for half a voxel
    w[p]   = softmax over planes of gate[p]                 planes that have x inside; per voxel and group of channels
    out    = sum over planes of w[p] S[p]                   0 where no plane has x

A plane may be missing; it then takes no part in the softmax.

Backward, for a group's channels and with u[p] = sum over its channels of S[p] dout:

    dgate[p] = w[p] (u[p] - sum over planes of w u)
    dF[p][v] = sum over voxels x of w[p](x) t(c[p](x), v) dout(x)     t: v's trilinear share of c

The second sum is taken where it ends, not where it starts: for a voxel v of the plane, only the x inside the image of
its support, a small box around affine^-1 affine[p] v, can have a share. Each gradient is one sum in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orthokernels.backends.registry import choose
from orthokernels.backends.torch.plane_fusion import mixed
from orthokernels.ops.layout import conform, empty_volume, layout_of
from orthokernels.ops.registration import called, differentiable_once, implements, refuse_gradients

NAME = "plane_fusion"
PLANES = 3


def plane_fusion(
    volumes: Sequence[Tensor | None],
    affines: Sequence[Any],
    gates: Tensor,
    affine: Any,
    *,
    backend: str = "auto",
) -> Tensor:
    """Resample three planes' features onto one grid, and mix them.

    Args:
        volumes: three, each (N, C, D, H, W) with sides of its own, or None where the plane is missing; channels first
            or channels last; float32, float16 or bfloat16, and float64 in plain PyTorch.
        affines: three (4, 4) arrays, voxel indices (d, h, w) of a volume to patient millimetres, the last row 0 0 0 1;
            that of a missing plane is not looked at.
        gates: (N, 3, groups, D, H, W), logits on the result's grid; groups divides C.
        affine: (4, 4), of the result's grid.
        backend: "auto", "torch", "cpu" or "triton".

    Returns:
        (N, C, D, H, W) in the volumes' dtype and the first volume's memory format; sums are float32. Differentiable
        once, in volumes and gates.

    Raises:
        ValueError: a shape or dtype that does not fit, an affine that can't be inverted or wants a gradient, or no
            plane at all.
        BackendUnavailable: a backend was asked for by name and can not run; the message says why.
    """
    present = _check(volumes, gates)
    to_plane, to_result, boxes = matrices(affines, affine, volumes)
    device = present[0].device
    return called(NAME, *volumes, gates, to_plane.to(device), to_result.to(device), boxes, backend)[0]


def matrices(affines: Sequence[Any], affine: Any, volumes: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """From the result's indices to each plane's and back, float64 [3, 3, 4] each, and boxes, int64 [3, 3].

    A plane's box is how many voxels of the result, along each axis, the support of one of its voxels may span. All are
    on the processor; zeros, and boxes of 1, for a missing plane.
    """
    if len(affines) != PLANES:
        raise ValueError(f"affines: {len(affines)} are given; one for each of {PLANES} planes is needed.")
    own = _affine("affine", affine)
    planes = [
        own if volume is None else _affine(f"affines[{n}]", other)
        for n, (volume, other) in enumerate(zip(volumes, affines, strict=True))
    ]
    there = [volume is not None for volume in volumes]
    return torch.ops.orthokernels.plane_fusion_matrices(torch.stack([*planes, own]), there)


def reference(volumes: Sequence[Tensor | None], affines: Sequence[Any], gates: Tensor, affine: Any) -> Tensor:
    """The definition, in plain PyTorch."""
    to_plane, *_ = matrices(affines, affine, volumes)
    return mixed(volumes, gates, to_plane.to(gates.device))[0]


def bytes_moved(volumes: Sequence[Tensor | None], gates: Tensor, result: Tensor) -> int:
    """Bytes that the forward pass reads and writes at least; the weights are kept for the backward pass."""
    read = sum(volume.numel() * volume.element_size() for volume in volumes if volume is not None)
    return read + 2 * gates.numel() * gates.element_size() + result.numel() * result.element_size()


def _affine(name: str, value: Any) -> Tensor:
    refuse_gradients("resampling has none for where a grid lies. Detach it.", **{name: value})
    try:
        affine = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: {value!r}; must be 4 x 4 finite numbers.") from None
    if affine.shape != (4, 4):
        raise ValueError(f"{name}: shape {tuple(affine.shape)}; must be 4 x 4 finite numbers.")
    return affine


def _check(volumes: Sequence[Tensor | None], gates: Tensor) -> list[Tensor]:
    if len(volumes) != PLANES:
        raise ValueError(f"volumes: {len(volumes)} are given; {PLANES} are needed, None for a missing plane.")
    present = [volume for volume in volumes if volume is not None]
    if not present:
        raise ValueError("volumes: every plane is missing; one at least is needed.")
    first = present[0]
    for n, volume in enumerate(volumes):
        if volume is None:
            continue
        if volume.ndim != 5 or not volume.is_floating_point() or not volume.numel():
            told = f"{volume.dtype} of shape {tuple(volume.shape)}"
            raise ValueError(f"volumes[{n}]: {told}; allowed are floating point (N, C, D, H, W).")
        if volume.shape[:2] != first.shape[:2] or volume.dtype != first.dtype or volume.device != first.device:
            told, wanted = (
                f"{own.dtype} of shape ({own.shape[0]}, {own.shape[1]}, ...) on {own.device}" for own in (volume, first)
            )
            raise ValueError(f"volumes[{n}]: {told}; must be as the first, {wanted}.")
    if gates.ndim == 6 and not gates.numel():
        raise ValueError(f"gates: shape {tuple(gates.shape)}; no side may be 0.")
    if gates.ndim != 6 or gates.shape[:2] != (first.shape[0], PLANES) or first.shape[1] % gates.shape[2]:
        told = f"({first.shape[0]}, {PLANES}, groups, D, H, W), groups a divisor of {first.shape[1]}"
        raise ValueError(f"gates: shape {tuple(gates.shape)}; must be {told}.")
    if gates.device != first.device or not gates.is_floating_point():
        raise ValueError(f"gates: {gates.dtype} on {gates.device}; must be floating point on {first.device}.")
    return present


# Of the affines' values, which nobody knows while a graph is traced: what looks at them is an op of its own.
torch.library.define(
    f"orthokernels::{NAME}_matrices",
    "(Tensor affines, bool[] there) -> (Tensor to_plane, Tensor to_result, Tensor boxes)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_VOLUMES = "Tensor? a, Tensor? b, Tensor? c, Tensor gates, Tensor to_plane, Tensor to_result, Tensor boxes"
torch.library.define(
    f"orthokernels::{NAME}",
    f"({_VOLUMES}, str backend) -> (Tensor out, Tensor weights)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    f"orthokernels::{NAME}_backward",
    f"(Tensor dout, Tensor weights, {_VOLUMES}, str backend) -> (Tensor da, Tensor db, Tensor dc, Tensor dgates)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake(f"orthokernels::{NAME}_matrices")
def _no_matrices(affines: Tensor, there: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    one, other = (affines.new_empty((PLANES, 3, 4)) for _ in range(2))
    return one, other, affines.new_empty((PLANES, 3), dtype=torch.int64)


@implements(f"{NAME}_matrices")
def _matrices(affines: Tensor, there: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    *planes, own = affines
    named = [("affine", own), *((f"affines[{n}]", plane) for n, plane in enumerate(planes) if there[n])]
    for name, affine in named:
        if not bool(affine.isfinite().all()):
            raise ValueError(f"{name}: {affine.tolist()}; must be 4 x 4 finite numbers.")
        if abs(float(torch.linalg.det(affine[:3, :3]))) < 1e-12:
            raise ValueError(f"{name}: its voxels have no volume; it can't be inverted.")
        if float((affine[3] - affine.new_tensor([0, 0, 0, 1])).abs().max()) > 1e-6:  # an inverse's rounding is taken
            raise ValueError(f"{name}: its last row is {affine[3].tolist()}; must be 0 0 0 1.")
    to_plane, to_result = (torch.zeros((PLANES, 3, 4), dtype=torch.float64) for _ in range(2))
    for n, plane in enumerate(planes):
        if there[n]:
            to_plane[n] = (torch.linalg.inv(plane) @ own)[:3]
            to_result[n] = (torch.linalg.inv(own) @ plane)[:3]
    reach = to_result[:, :, :3].abs().sum(dim=2)  # the support is one voxel to either side
    return to_plane, to_result, (2 * reach + 1e-6).floor().long() + 1


def _first(*volumes: Tensor | None) -> Tensor:
    return next(volume for volume in volumes if volume is not None)


@torch.library.register_fake(f"orthokernels::{NAME}")
def _outputs(
    a: Tensor | None, b: Tensor | None, c: Tensor | None, gates: Tensor, to_plane: Tensor, to_result: Tensor,
    boxes: Tensor, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    first = _first(a, b, c)
    sums = torch.promote_types(first.dtype, torch.float32)
    return empty_volume(first, sides=gates.shape[3:]), gates.new_empty(gates.shape, dtype=sums)


@torch.library.register_fake(f"orthokernels::{NAME}_backward")
def _gradients(
    dout: Tensor, weights: Tensor, a: Tensor | None, b: Tensor | None, c: Tensor | None, gates: Tensor,
    to_plane: Tensor, to_result: Tensor, boxes: Tensor, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    layout = layout_of(_first(a, b, c))
    own = [dout.new_empty((0,)) if v is None else empty_volume(v, layout=layout) for v in (a, b, c)]
    return *own, gates.new_empty(gates.shape)


def _dense(*volumes: Tensor | None) -> list[Tensor | None]:
    layout = layout_of(_first(*volumes))
    return [None if volume is None else conform(volume, layout) for volume in volumes]


@implements(NAME)
def _forward(
    a: Tensor | None, b: Tensor | None, c: Tensor | None, gates: Tensor, to_plane: Tensor, to_result: Tensor,
    boxes: Tensor, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    volumes = _dense(a, b, c)
    out, weights = _outputs(*volumes, gates, to_plane, to_result, boxes, backend)
    choose(NAME, backend, out).forward(volumes, gates.contiguous(), to_plane, out, weights)
    return out, weights


@implements(f"{NAME}_backward")
def _backward(
    dout: Tensor, weights: Tensor, a: Tensor | None, b: Tensor | None, c: Tensor | None, gates: Tensor,
    to_plane: Tensor, to_result: Tensor, boxes: Tensor, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    volumes = _dense(a, b, c)
    dout = conform(dout, layout_of(_first(*volumes)))
    *own, dgates = _gradients(dout, weights, *volumes, gates, to_plane, to_result, boxes, backend)
    wanted = [None if volume is None else gradient for volume, gradient in zip(volumes, own, strict=True)]
    kernels = choose(NAME, backend, dout)
    kernels.backward(dout, weights, volumes, gates, to_plane, to_result, boxes.flatten().tolist(), wanted, dgates)
    return *own, dgates


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *given, ctx.backend = inputs
    ctx.save_for_backward(output[1], *given)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, dout: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    weights, *given = ctx.saved_tensors
    *own, dgates = torch.ops.orthokernels.plane_fusion_backward(dout, weights, *given, ctx.backend)
    da, db, dc = (None if v is None else gradient for v, gradient in zip(given[:PLANES], own, strict=True))
    return da, db, dc, dgates, None, None, None, None


torch.library.register_autograd(f"orthokernels::{NAME}", _differentiate, setup_context=_keep)
differentiable_once(NAME)
