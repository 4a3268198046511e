"""Self-attention over the voxels of a small volume, from its group normalisation to its residual.

For a volume x (N, C, *voxels) of T voxels, and heads of d = C / heads channels:

    h       = group_norm(x)                            without an activation
    q, k, v = qkv_weight h + qkv_bias                  (3 C, T); legacy: each head's q, k, v together
    a[q]    = sum over k of softmax(q[q] . k[k] / sqrt(d)) v[k]
    y       = x + proj_weight a + proj_bias

Two launches: one that ends with q, k and v, one that begins with them. At the published sizes (T = 256 of 1 x 16 x 16,
C = 256, one head) seven would be seven times a launch, and little else.

Backward keeps nothing but the inputs. It makes h, q, k, v and a again, and then goes back through the ops that compute
these one by one, with g = dy, G = proj_weight^T g:

    dproj_weight = sum of g a^T, dproj_bias = sum of g     over samples and tokens
    dq, dk, dv   = attention3d's, of G
    dqkv_weight  = sum of [dq, dk, dv] h^T, dqkv_bias = sum of [dq, dk, dv]
    dx           = dy + group_norm_silu's, of qkv_weight^T [dq, dk, dv]; dweight, dbias with it
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthokernels.backends.registry import BackendUnavailable, choose
from orthokernels.backends.torch.attention_block import (
    CHANNELS_AT_MOST,
    TOKENS_AT_MOST,
    attended_block,
    joint_of,
    parts_of,
    product,
)
from orthokernels.ops.autocast import lowered
from orthokernels.ops.layout import conform, dense, empty_volume, layout_of
from orthokernels.ops.registration import called, differentiable_once, implements

NAME = "attention_block"


def attention_block(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    *,
    heads: int = 1,
    legacy: bool = True,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Attend over a volume's voxels, and add the result to it.

    Args:
        x: (N, C, *voxels), channels first or channels last; float32, float16 or bfloat16, and float64 in plain
            PyTorch. The kernels take up to 1,024 voxels, and 512 channels in half precision, 256 in float32. Under
            autocast it is brought to its dtype.
        groups: of the normalisation; must divide the channels.
        weight, bias: (C,), of the normalisation; both or neither.
        qkv_weight, qkv_bias: (3 C, C) and (3 C,) or None; parameters are in x's dtype or float32.
        proj_weight, proj_bias: (C, C) and (C,) or None.
        heads: must divide the channels.
        legacy: the order of qkv's channels, as guided-diffusion names it: heads first, each with its q, k and v; the
            newer order is q, k, v first, each with its heads.
        eps: added to the variance.
        backend: "auto", "torch" or "triton".

    Returns:
        (N, C, *voxels) in x's dtype and memory format; sums are float32. Differentiable once in every tensor. Where
        ``attention3d``'s kernels do not take a head's width (more than 256 channels), that part of the backward pass is
        plain PyTorch's.

    Raises:
        ValueError: a shape, dtype or number that does not fit.
        BackendUnavailable: a backend was asked for by name and can not run; the message says why.
    """
    (x,) = lowered(x)
    _check(x, groups, weight, bias, qkv_weight, qkv_bias, proj_weight, proj_bias, heads)
    return called(
        NAME, x, groups, weight, bias, qkv_weight, qkv_bias, proj_weight, proj_bias, heads, legacy, eps, backend
    )


def fits(x: Tensor) -> bool:
    """Whether the kernels take a volume of this shape and dtype."""
    tokens = 1
    for side in x.shape[2:]:
        tokens *= side
    return tokens <= TOKENS_AT_MOST and x.shape[1] <= CHANNELS_AT_MOST.get(x.dtype, 0)


def reference(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    *,
    heads: int = 1,
    legacy: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """The definition, in plain PyTorch; arguments as ``attention_block``."""
    given = (weight, bias, qkv_weight, qkv_bias, proj_weight, proj_bias)
    return attended_block(x, groups, *given, heads=heads, legacy=legacy, eps=eps)


def bytes_moved(x: Tensor, *parameters: Tensor, backward: bool = False) -> int:
    """Bytes that are read and written at least: x, parameters, y; backward x, dy, dx, parameters and their gradients.

    What passes from launch to launch is a few hundred kilobytes, and stays in a cache.
    """
    return (3 if backward else 2) * x.nbytes + (2 if backward else 1) * sum(own.nbytes for own in parameters)


def operations(x: Tensor, *, backward: bool = False) -> int:
    """Multiplications and additions of the matrix products, in which backward makes q, k, v and a again.

    Forward 4 C^2 T for the two projections and 2 C T^2 for scores and sums, of which backward makes 3 C^2 T and 2 C T^2
    again, and has twice the former and 5 C T^2 of its own.
    """
    C, T = x.shape[1], x[0, 0].numel()
    of_projections, of_attention = (11, 7) if backward else (4, 2)
    return 2 * x.shape[0] * (of_projections * C * C * T + of_attention * C * T * T)


def _check(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, qkv_weight: Tensor, qkv_bias: Tensor | None,
    proj_weight: Tensor, proj_bias: Tensor | None, heads: int,
) -> None:  # fmt: skip
    if x.ndim < 3 or not x.is_floating_point() or not x.numel():
        raise ValueError(f"x: {x.dtype} of shape {tuple(x.shape)}; allowed are floating point (N, C, *voxels).")
    channels = x.shape[1]
    for name, number in (("groups", groups), ("heads", heads)):
        if number < 1 or channels % number:
            raise ValueError(f"{name}: {number} does not divide {channels} channels.")
    if (weight is None) != (bias is None):
        raise ValueError("weight and bias: one is given without the other; give both or neither.")
    given = {
        "weight": (weight, (channels,)), "bias": (bias, (channels,)),
        "qkv_weight": (qkv_weight, (3 * channels, channels)), "qkv_bias": (qkv_bias, (3 * channels,)),
        "proj_weight": (proj_weight, (channels, channels)), "proj_bias": (proj_bias, (channels,)),
    }  # fmt: skip
    for name, (tensor, shape) in given.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape or tensor.device != x.device:
            told = f"shape {tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name}: {told}; must be {shape} on {x.device}.")
        if tensor.dtype not in (x.dtype, torch.float32):
            raise ValueError(f"{name}: {tensor.dtype}; must be {x.dtype}, as x, or torch.float32.")


_INPUTS = (
    "Tensor x, int groups, Tensor? weight, Tensor? bias, Tensor qkv_weight, Tensor? qkv_bias, Tensor proj_weight, "
    "Tensor? proj_bias, int heads, bool legacy, float eps, str backend"
)
torch.library.define(f"orthokernels::{NAME}", f"({_INPUTS}) -> Tensor y", tags=(torch.Tag.pt2_compliant_tag,))
torch.library.define(
    f"orthokernels::{NAME}_backward",
    f"(Tensor dy, {_INPUTS}) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dqkv_weight, Tensor dqkv_bias, "
    "Tensor dproj_weight, Tensor dproj_bias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake(f"orthokernels::{NAME}")
def _output(
    x: Tensor, groups: int, weight: Any, bias: Any, qkv_weight: Any, qkv_bias: Any, proj_weight: Any, proj_bias: Any,
    heads: int, legacy: bool, eps: float, backend: str,
) -> Tensor:  # fmt: skip
    return empty_volume(x)


@torch.library.register_fake(f"orthokernels::{NAME}_backward")
def _gradients(
    dy: Tensor, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, qkv_weight: Tensor,
    qkv_bias: Tensor | None, proj_weight: Tensor, proj_bias: Tensor | None, heads: int, legacy: bool, eps: float,
    backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    given = weight, bias, qkv_weight, qkv_bias, proj_weight, proj_bias
    return empty_volume(x), *(x.new_empty((0,)) if own is None else own.new_empty(own.shape) for own in given)


@implements(NAME)
def _forward(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, qkv_weight: Tensor, qkv_bias: Tensor | None,
    proj_weight: Tensor, proj_bias: Tensor | None, heads: int, legacy: bool, eps: float, backend: str,
) -> Tensor:  # fmt: skip
    x = conform(x, layout_of(x))
    y = empty_volume(x)
    given = (weight, bias, qkv_weight, qkv_bias, proj_weight, proj_bias)
    choose(NAME, backend, x).forward(x, groups, *dense(*given), heads, legacy, eps, y)
    return y


@implements(f"{NAME}_backward")
def _backward(
    dy: Tensor, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, qkv_weight: Tensor,
    qkv_bias: Tensor | None, proj_weight: Tensor, proj_bias: Tensor | None, heads: int, legacy: bool, eps: float,
    backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    ops, given = torch.ops.orthokernels, (weight, bias, qkv_weight, qkv_bias, proj_weight, proj_bias)
    _, *found = _gradients(dy, x, groups, *given, heads, legacy, eps, backend)
    x = conform(x, layout_of(x))
    dy = conform(dy, layout_of(x))
    norm = groups, weight, bias, None, None, False
    h, *moments = ops.group_norm_silu(x, None, *norm, eps, backend)
    tokens, g, into = h.flatten(2), dy.flatten(2), qkv_weight.to(x.dtype)
    joint = product(into, tokens, None if qkv_bias is None else qkv_bias.to(x.dtype))
    attended, djoint = _through_attention(joint, proj_weight.to(x.dtype).T @ g, heads, legacy, backend)
    dnormed = (into.T @ djoint).view(x.shape)
    dx, _, dweight, dbias, *_ = ops.group_norm_silu_backward(dnormed, x, None, *norm, *moments, backend)
    of_qkv = _outer(djoint, tokens), _sum(djoint)
    for place, gradient in zip(found, (dweight, dbias, *of_qkv, _outer(g, attended), _sum(g)), strict=True):
        if place.numel():
            place.copy_(gradient)
    return dx.add_(dy), *found


def _through_attention(
    joint: Tensor, upstream: Tensor, heads: int, legacy: bool, backend: str
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attended tokens (N, C, T) of a projection (N, 3 C, T), made once more, and the projection's gradient."""
    ops = torch.ops.orthokernels
    q, k, v = parts_of(joint, heads, legacy)
    grid, scale, own = [1, 1, q.shape[3]], q.shape[2] ** -0.5, _backend_of_attention(q, backend)
    out, log_sum = ops.attention3d(q, k, v, grid, None, grid, scale, own)
    dq, dk, dv, _ = ops.attention3d_backward(
        upstream.view(out.shape), q, k, v, out, log_sum, grid, None, grid, scale, False, own
    )
    return out.flatten(1, 2), joint_of(dq, dk, dv, legacy)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """The sum over samples and tokens of a b^T."""
    return torch.einsum("nat,nbt->ab", a, b)


def _sum(a: Tensor) -> Tensor:
    """The same of a alone."""
    return a.sum(dim=(0, 2), dtype=torch.promote_types(a.dtype, torch.float32))


def _backend_of_attention(q: Tensor, backend: str) -> str:
    """The one that was asked for, where ``attention3d`` has it for heads as wide as these."""
    try:
        choose("attention3d", backend, q)
    except BackendUnavailable:
        return "torch"
    return backend


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.groups, *parameters, ctx.heads, ctx.legacy, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(x, *parameters)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, *parameters = ctx.saved_tensors
    dx, *found = torch.ops.orthokernels.attention_block_backward(
        dy, x, ctx.groups, *parameters, ctx.heads, ctx.legacy, ctx.eps, ctx.backend
    )
    wanted = (None if own is None else gradient for own, gradient in zip(parameters, found, strict=True))
    return dx, None, *wanted, None, None, None, None


torch.library.register_autograd(f"orthokernels::{NAME}", _differentiate, setup_context=_keep)
differentiable_once(NAME)
