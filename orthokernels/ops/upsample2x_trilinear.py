"""Trilinear doubling of depth, height and width, with a backward pass that gathers.

Along each axis, with i an input place and places clamped to the volume (``align_corners=False``):

    y[2 i]     = 1/4 x[i - 1] + 3/4 x[i]
    y[2 i + 1] = 3/4 x[i] + 1/4 x[i + 1]

    dx[i] = 1/4 dy[2 i - 1] + 3/4 dy[2 i] + 3/4 dy[2 i + 1] + 1/4 dy[2 i + 2]

The clamping is the same in both directions: at an end, x[-1] is x[0], so its quarter of y[0] comes back to x[0], which
is dy[-1] read as dy[0]. So the backward pass is a stencil too: each gradient is one sum in a fixed order, where a
scatter needs atomic additions, whose order is the device's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orthokernels.backends.cpu.gains import plain_is_faster_doubling
from orthokernels.backends.registry import choose
from orthokernels.ops.layout import conform, empty_volume, layout_of
from orthokernels.ops.registration import called, implements

NAME = "upsample2x_trilinear"


def upsample2x_trilinear(x: Tensor, *, backend: str = "auto") -> Tensor:
    """Double depth, height and width.

    Args:
        x: (N, C, D, H, W), channels first or channels last; float32, float16 or bfloat16, and float64 in plain PyTorch.
        backend: "auto", "torch", "cpu" or "triton".

    Returns:
        (N, C, 2 D, 2 H, 2 W) in x's dtype and memory format; sums are float32. Differentiable, twice too.

    Raises:
        ValueError: x is no volume of floating-point numbers, or there is no such backend.
        BackendUnavailable: a backend was asked for by name and can not run; the message says why.
    """
    if x.ndim != 5 or not x.is_floating_point() or not x.numel():
        raise ValueError(
            f"x: {x.dtype} of shape {tuple(x.shape)}; allowed are floating point (N, C, D, H, W), not empty."
        )
    if backend == "auto" and plain_is_faster_doubling(x):
        return conform(reference(x), layout_of(x))
    return called(NAME, x, backend)


def reference(x: Tensor) -> Tensor:
    """The definition, in plain PyTorch."""
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)


def bytes_moved(x: Tensor) -> int:
    """Bytes that either direction reads and writes at least: the small volume once and the large one once."""
    return 9 * x.numel() * x.element_size()


torch.library.define(f"orthokernels::{NAME}", "(Tensor x, str backend) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
torch.library.define(
    f"orthokernels::{NAME}_backward", "(Tensor dy, str backend) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)


@torch.library.register_fake(f"orthokernels::{NAME}")
def _larger(x: Tensor, backend: str) -> Tensor:
    return empty_volume(x, sides=[2 * side for side in x.shape[2:]])


@torch.library.register_fake(f"orthokernels::{NAME}_backward")
def _smaller(dy: Tensor, backend: str) -> Tensor:
    return empty_volume(dy, sides=[side // 2 for side in dy.shape[2:]])


@implements(NAME)
def _forward(x: Tensor, backend: str) -> Tensor:
    x = conform(x, layout_of(x))
    y = _larger(x, backend)
    choose(NAME, backend, x).forward(x, y)
    return y


@implements(f"{NAME}_backward")
def _backward(dy: Tensor, backend: str) -> Tensor:
    dy = conform(dy, layout_of(dy))
    dx = _smaller(dy, backend)
    choose(NAME, backend, dy).backward(dy, dx)
    return dx


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[1]


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return torch.ops.orthokernels.upsample2x_trilinear_backward(dy, ctx.backend), None


def _differentiate_again(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
    return torch.ops.orthokernels.upsample2x_trilinear(dx, ctx.backend), None


torch.library.register_autograd(f"orthokernels::{NAME}", _differentiate, setup_context=_keep)
torch.library.register_autograd(f"orthokernels::{NAME}_backward", _differentiate_again, setup_context=_keep)
