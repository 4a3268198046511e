"""A 3D convolution of 3 x 3 x 3 or 1 x 1 x 1, stride 1 or 2, zeros around; on a processor by Winograd's algorithm.

    y[n, k, p] = bias[k] + sum over c and taps t of weight[k, c, t] x[n, c, stride p + t - kernel // 2]

Backward, with * the same convolution of stride 1:

    dx = dy * weight, its first two axes exchanged and its taps reversed        stride 1; else PyTorch's
    dweight[k, c, t] = sum over p of dy[p, k] x[stride p + t - kernel // 2, c]
    dbias[k] = sum over p of dy[p, k]

On a GPU there is no kernel of ours: cuDNN's, which PyTorch calls, is the best known.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orthokernels.backends.cpu.gains import plain_is_faster_conv
from orthokernels.backends.registry import choose
from orthokernels.ops.autocast import lowered
from orthokernels.ops.layout import Layout, conform, empty_volume, layout_of
from orthokernels.ops.registration import called, differentiable_once, implements

NAME = "conv3d"


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    exact: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Convolve a volume, with as many zeros around it as keep its size (at stride 1).

    Args:
        x: (N, C, D, H, W), channels first or channels last, floating point.
        weight: (K, C, k, k, k) with k of 1 or 3, in x's dtype; under autocast all are brought to its own.
        bias: (K,).
        stride: 1 or 2, along all axes.
        exact: sums of plain products only: a relative error to 1e-6 instead of 4e-6 at 64 channels; of the weights'
            gradient PyTorch's own instead of 8e-6 (csrc/cpu/conv3d_gradient.h). Ask for it where a voxel may be far
            larger than those around it, or NaN: Winograd's algorithm adds up whole tiles first, so that an output near
            such a voxel is off by a rounding of its value, or NaN, though none of its taps sees it; and sums of values
            near 1e36 may overflow.
        backend: "auto", "torch" or "cpu" (float32 on a processor).

    Returns:
        (N, K, ceil(D / stride), ceil(H / stride), ceil(W / stride)) in x's memory format; channels last where x has
        one channel, which is both. Differentiable once.

    Raises:
        ValueError: a shape, dtype or name that does not fit.
        BackendUnavailable: a backend was asked for by name and can not run; the message says why.
    """
    x, weight, bias = lowered(x, weight, bias)
    _check(x, weight, bias, stride)
    if backend == "auto" and plain_is_faster_conv(x, weight, stride):
        return conform(reference(x, weight, bias, stride=stride), _layout(x))
    return called(NAME, x, weight, bias, stride, exact, backend)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """The definition, in plain PyTorch."""
    return F.conv3d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)


def _layout(x: Tensor) -> Layout:
    """Of the result."""
    return "channels_last" if x.shape[1] == 1 else layout_of(x)


def bytes_moved(x: Tensor, weight: Tensor, stride: int = 1) -> int:
    """Bytes that any implementation reads and writes at least, forward: the volumes and the weights once."""
    outputs = len(x) * len(weight) * _places(x, stride)
    return (x.numel() + weight.numel() + outputs) * x.element_size()


def operations(x: Tensor, weight: Tensor, stride: int = 1) -> int:
    """Multiplications and additions of the definition."""
    return 2 * len(x) * weight.numel() * _places(x, stride)


def _places(x: Tensor, stride: int) -> int:
    places = 1
    for side in x.shape[2:]:
        places *= -(-side // stride)
    return places


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> None:
    if x.ndim != 5 or not x.is_floating_point() or not x.numel():
        raise ValueError(
            f"x: {x.dtype} of shape {tuple(x.shape)}; allowed are floating point (N, C, D, H, W), not empty."
        )
    kernel = weight.shape[-1] if weight.ndim == 5 else 0
    if kernel not in (1, 3) or weight.shape[1:] != (x.shape[1], kernel, kernel, kernel):
        told = f"(K, {x.shape[1]}, k, k, k) with k of 1 or 3"
        raise ValueError(f"weight: shape {tuple(weight.shape)}; must be {told}.")
    if not len(weight):
        raise ValueError(f"weight: shape {tuple(weight.shape)}; K, the channels of the result, must be 1 at least.")
    if bias is not None and tuple(bias.shape) != (len(weight),):
        raise ValueError(f"bias: shape {tuple(bias.shape)}; must be ({len(weight)},).")
    for name, own in (("weight", weight), ("bias", bias)):
        if own is not None and (own.dtype != x.dtype or own.device != x.device):
            raise ValueError(f"{name}: {own.dtype} on {own.device}; must be as x, {x.dtype} on {x.device}.")
    if stride not in (1, 2):
        raise ValueError(f"stride: {stride}; allowed are 1 and 2.")


torch.library.define(
    f"orthokernels::{NAME}",
    "(Tensor x, Tensor weight, Tensor? bias, int stride, bool exact, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    f"orthokernels::{NAME}_backward",
    "(Tensor dy, Tensor x, Tensor weight, int stride, bool exact, bool[3] wanted, str backend) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake(f"orthokernels::{NAME}")
def _output(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, exact: bool, backend: str) -> Tensor:
    layout = _layout(x)
    return empty_volume(x, channels=weight.shape[0], sides=[-(-side // stride) for side in x.shape[2:]], layout=layout)


@torch.library.register_fake(f"orthokernels::{NAME}_backward")
def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, exact: bool, wanted: list[bool], backend: str
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        empty_volume(x) if wanted[0] else x.new_empty((0,)),
        torch.empty_like(weight) if wanted[1] else x.new_empty((0,)),
        weight.new_empty((len(weight),)) if wanted[2] else x.new_empty((0,)),
    )


@implements(NAME)
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, exact: bool, backend: str) -> Tensor:
    y = _output(x, weight, bias, stride, exact, backend)
    choose(NAME, backend, x).forward(conform(x, layout_of(x)), weight, bias, stride, exact, y)
    return y


@implements(f"{NAME}_backward")
def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, exact: bool, wanted: list[bool], backend: str
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    layout = layout_of(x)
    found = list(_gradients(dy, x, weight, stride, exact, wanted, backend))
    dy, x = conform(dy, layout), conform(x, layout)
    ours = wanted[0] and stride == 1
    if ours:
        reversed_taps = weight.transpose(0, 1).flip(2, 3, 4).contiguous()
        choose(NAME, backend, x).forward(dy, reversed_taps, None, 1, exact, found[0], keep=False)
    elif wanted[0]:
        padding = [weight.shape[-1] // 2] * 3
        theirs = torch.ops.aten.convolution_backward(
            dy, x, weight, None, [stride] * 3, padding, [1, 1, 1], False, [0, 0, 0], 1, [True, False, False]
        )
        found[0].copy_(theirs[0])
    if wanted[1]:
        choose(NAME, backend, x).weight_gradient(dy, x, stride, exact, found[1])
    if wanted[2]:
        torch.sum(dy, dim=(0, 2, 3, 4), out=found[2])
    return found[0], found[1], found[2]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.stride, ctx.exact, ctx.backend = inputs
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wanted = [*ctx.needs_input_grad[:2], ctx.biased and ctx.needs_input_grad[2]]
    made = torch.ops.orthokernels.conv3d_backward(dy, x, weight, ctx.stride, ctx.exact, wanted, ctx.backend)
    return *(own if asked else None for own, asked in zip(made, wanted, strict=True)), None, None, None


torch.library.register_autograd(f"orthokernels::{NAME}", _differentiate, setup_context=_keep)
differentiable_once(NAME)
