"""Group normalisation and SiLU in one op, with the time embedding before and FiLM after, in both memory formats.

For a volume x (N, C, *voxels), C channels in groups of C / groups:

    h    = x + shift                                    shift (N, C), the time embedding of a residual block
    xhat = (h - mean) rstd                              mean, rstd = 1 / sqrt(variance + eps) of a sample's group
    z    = (weight xhat + bias) (1 + scale) + offset    scale_shift (N, 2 C) = [scale, offset], FiLM
    y    = z sigmoid(z)                                 or z, without activation

Group normalisation: Wu & He, arXiv 1803.08494; FiLM: arXiv 1709.07871; SiLU: arXiv 1702.03118.

Backward. With dz = dy y'(z), slope = weight (1 + scale), sums over a sample's voxels S = sum dz, T = sum dz xhat,
X = sum xhat (all per channel), and m, t the means of slope dz and slope dz xhat over a group:

    dx     = rstd (slope dz - m - xhat t)
    dshift = sum of dx over voxels = rstd (slope S - L m - X t)
    dscale = weight T + bias S,  doffset = S
    dweight = sum over samples (1 + scale) T,  dbias = sum over samples (1 + scale) S

Kept for the backward pass: x itself and two numbers a group. Neither h, xhat nor z is stored; the plain modules store
two of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orthokernels.backends.cpu.gains import plain_is_faster_group_norm
from orthokernels.backends.registry import choose
from orthokernels.ops.layout import conform, dense, empty_volume, layout_of
from orthokernels.ops.registration import called, differentiable_once, implements

NAME = "group_norm_silu"


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    shift: Tensor | None = None,
    scale_shift: Tensor | None = None,
    activation: str | None = "silu",
    eps: float = 1e-5,
    skip: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Group-normalise a volume, and what stands around that in a residual block.

    Args:
        x: (N, C, *voxels), channels first or channels last; float32, float16 or bfloat16, and float64 in plain PyTorch.
        groups: must divide the channels.
        weight, bias: (C,), both or neither; as ``shift`` and ``scale_shift`` of x's dtype, float32 or narrower.
        shift: (N, C), added to x before the normalisation.
        scale_shift: (N, 2 C), scales first: the normalised volume times 1 + scale, plus the shift.
        activation: "silu" or None.
        eps: added to the variance.
        skip: (N, C', *voxels), read as if concatenated behind x along the channels, which is never made.
        backend: "auto", "torch", "cpu" or "triton".

    Returns:
        (N, C + C', *voxels) in x's dtype and memory format; sums are float32. Differentiable once in every tensor.

    Raises:
        ValueError: a shape, dtype or name that does not fit.
        BackendUnavailable: a backend was asked for by name and can not run; the message says why.
    """
    if skip is not None and skip.dtype != x.dtype and skip.is_floating_point():
        joint = torch.promote_types(x.dtype, skip.dtype)  # as torch.cat under autocast
        x, skip = x.to(joint), skip.to(joint)
    _check(x, skip, groups, weight, bias, shift, scale_shift, activation)
    if backend == "auto" and plain_is_faster_group_norm(x, skip, activation, (weight, bias), (shift, scale_shift)):
        given = {"shift": shift, "scale_shift": scale_shift, "activation": activation, "eps": eps, "skip": skip}
        return conform(reference(x, groups, weight, bias, **given), layout_of(x))  # type: ignore[arg-type]
    silu = activation == "silu"
    return called(NAME, x, skip, groups, weight, bias, shift, scale_shift, silu, eps, backend)[0]


def reference(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    shift: Tensor | None = None,
    scale_shift: Tensor | None = None,
    activation: str | None = "silu",
    eps: float = 1e-5,
    skip: Tensor | None = None,
) -> Tensor:
    """The definition, in plain PyTorch; arguments as ``group_norm_silu``."""
    if skip is not None:
        x = torch.cat([x, skip], dim=1)
    per_channel = (*x.shape[:2], *[1] * (x.ndim - 2))
    if shift is not None:
        x = x + shift.view(per_channel)
    x = F.group_norm(x, groups, weight, bias, eps)
    if scale_shift is not None:
        scale, offset = scale_shift.chunk(2, dim=1)
        x = x * (1 + scale.view(per_channel)) + offset.view(per_channel)
    return F.silu(x) if activation == "silu" else x


def bytes_moved(x: Tensor, skip: Tensor | None = None, *, backward: bool = False) -> int:
    """Bytes of the volumes that any implementation without a second copy of x on the chip reads and writes."""
    volume = x.numel() * x.element_size() + (0 if skip is None else skip.numel() * skip.element_size())
    return volume * (5 if backward else 3)


def _check(
    x: Tensor,
    skip: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    scale_shift: Tensor | None,
    activation: str | None,
) -> None:
    if x.ndim < 3 or not x.is_floating_point():
        raise ValueError(f"x: {x.dtype} of shape {tuple(x.shape)}; allowed are floating point (N, C, *voxels).")
    if skip is not None and (skip.ndim != x.ndim or skip.shape[0] != x.shape[0] or skip.shape[2:] != x.shape[2:]):
        raise ValueError(f"skip: shape {tuple(skip.shape)}; must be x's {tuple(x.shape)} in all but the channels.")
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    if groups < 1 or channels % groups:
        raise ValueError(f"groups: {groups} does not divide {channels} channels.")
    if (weight is None) != (bias is None):
        raise ValueError("weight and bias: one is given without the other; give both or neither.")
    if activation not in ("silu", None):
        raise ValueError(f'activation: {activation!r}; allowed are "silu" and None.')
    widest = torch.promote_types(x.dtype, torch.float32)
    given = {
        "skip": (skip, None), "weight": (weight, (channels,)), "bias": (bias, (channels,)),
        "shift": (shift, (x.shape[0], channels)), "scale_shift": (scale_shift, (x.shape[0], 2 * channels)),
    }  # fmt: skip
    for name, (tensor, shape) in given.items():
        if tensor is None:
            continue
        if shape is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}; must be {shape}.")
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: {tensor.dtype}; must be floating point.")
        if torch.promote_types(tensor.dtype, widest) != widest:
            raise ValueError(f"{name}: {tensor.dtype}; must be {widest} at most, beside x in {x.dtype}.")
        if tensor.device != x.device:
            raise ValueError(f"{name}: lies on {tensor.device}; x lies on {x.device}.")


torch.library.define(
    f"orthokernels::{NAME}",
    "(Tensor x, Tensor? skip, int groups, Tensor? weight, Tensor? bias, Tensor? shift, Tensor? scale_shift, bool silu, "
    "float eps, str backend) -> (Tensor y, Tensor mean, Tensor rstd)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    f"orthokernels::{NAME}_backward",
    "(Tensor dy, Tensor x, Tensor? skip, int groups, Tensor? weight, Tensor? bias, Tensor? shift, Tensor? scale_shift, "
    "bool silu, Tensor mean, Tensor rstd, str backend) "
    "-> (Tensor dx, Tensor dskip, Tensor dweight, Tensor dbias, Tensor dshift, Tensor dscale_shift)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake(f"orthokernels::{NAME}")
def _outputs(
    x: Tensor, skip: Tensor | None, groups: int, weight: Any, bias: Any, shift: Any, scale_shift: Any, silu: bool,
    eps: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    moments = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, rstd = (x.new_empty((x.shape[0], groups), dtype=moments) for _ in range(2))
    return empty_volume(x, channels=channels), mean, rstd


@torch.library.register_fake(f"orthokernels::{NAME}_backward")
def _gradients(
    dy: Tensor, x: Tensor, skip: Tensor | None, groups: int, weight: Tensor | None, bias: Tensor | None,
    shift: Tensor | None, scale_shift: Tensor | None, silu: bool, mean: Tensor, rstd: Tensor, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    channels = dy.shape[1]
    shapes = (channels,), (channels,), (x.shape[0], channels), (x.shape[0], 2 * channels)
    small = [
        x.new_empty(shape, dtype=mean.dtype if like is None else like.dtype)
        for shape, like in zip(shapes, (weight, bias, shift, scale_shift), strict=True)
    ]
    dskip = x.new_empty((0,)) if skip is None else empty_volume(x, channels=skip.shape[1])
    return empty_volume(x), dskip, *small


@implements(NAME)
def _forward(
    x: Tensor, skip: Tensor | None, groups: int, weight: Tensor | None, bias: Tensor | None, shift: Tensor | None,
    scale_shift: Tensor | None, silu: bool, eps: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x, skip = _dense_volumes(x, skip)
    y, mean, rstd = _outputs(x, skip, groups, weight, bias, shift, scale_shift, silu, eps, backend)
    small = dense(weight, bias, shift, scale_shift)
    choose(NAME, backend, x).forward(x, skip, groups, *small, silu, eps, y, mean, rstd)
    return y, mean, rstd


@implements(f"{NAME}_backward")
def _backward(
    dy: Tensor, x: Tensor, skip: Tensor | None, groups: int, weight: Tensor | None, bias: Tensor | None,
    shift: Tensor | None, scale_shift: Tensor | None, silu: bool, mean: Tensor, rstd: Tensor, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    x, skip = _dense_volumes(x, skip)
    dy = conform(dy, layout_of(x))
    dx, dskip, *like = _gradients(
        dy, x, skip, groups, weight, bias, shift, scale_shift, silu, mean, rstd, backend
    )  # fmt: skip
    small = dense(weight, bias, shift, scale_shift)
    dweight, dbias, dshift, dscale_shift = choose(NAME, backend, x).backward(
        dy, x, skip, groups, *small, silu, mean, rstd, dx, None if skip is None else dskip
    )
    found = dweight.sum(0), dbias.sum(0), dshift, dscale_shift
    return dx, dskip, *(value.to(own.dtype) for value, own in zip(found, like, strict=True))


def _dense_volumes(x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor | None]:
    layout = layout_of(x)
    return conform(x, layout), None if skip is None else conform(skip, layout)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, skip, ctx.groups, weight, bias, shift, scale_shift, ctx.silu, _, ctx.backend = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, skip, weight, bias, shift, scale_shift, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _differentiate(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, skip, weight, bias, shift, scale_shift, mean, rstd = ctx.saved_tensors
    dx, dskip, *small = torch.ops.orthokernels.group_norm_silu_backward(
        dy, x, skip, ctx.groups, weight, bias, shift, scale_shift, ctx.silu, mean, rstd, ctx.backend
    )
    given = weight, bias, shift, scale_shift
    dweight, dbias, dshift, dfilm = (
        None if own is None else gradient for own, gradient in zip(given, small, strict=True)
    )
    return dx, None if skip is None else dskip, None, dweight, dbias, dshift, dfilm, None, None, None


torch.library.register_autograd(f"orthokernels::{NAME}", _differentiate, setup_context=_keep)
differentiable_once(NAME)
