"""Attention over the tokens of a volume, with a relative-position bias and windows along its three axes.

Of one head, with T = D H W tokens of d channels, token t at (t_d, t_h, t_w):

    s[q, k] = scale q[q] . k[k] + bias[q_d - k_d + D - 1, q_h - k_h + H - 1, q_w - k_w + W - 1]
    p[q, k] = softmax over the k that q sees of s[q, k]
    out[q]  = sum over k of p[q, k] v[k]

With a window, a query sees as many neighbours along each axis as the window has places; it lies in their middle, except
at the edges, where the window is pushed inside (neighborhood attention, Hassani et al., arXiv 2204.07143).

Backward, from the kept logarithms of the softmax's denominators, with r[q] = dout[q] . out[q]:

    ds[q, k] = p[q, k] (dout[q] . v[k] - r[q])
    dq[q]    = scale sum over k of ds[q, k] k[k]
    dk[k]    = scale sum over q of ds[q, k] q[q]        dv[k] = sum over q of p[q, k] dout[q]
    dbias[o] = sum of ds[q, k] over all pairs that lie o apart
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orthokernels.backends.cpu.gains import plain_is_faster_attention
from orthokernels.backends.registry import choose
from orthokernels.backends.torch.attention3d import bias_matrix, seen_by
from orthokernels.ops.autocast import lowered
from orthokernels.ops.layout import check_alike, dense
from orthokernels.ops.registration import called, differentiable_once, implements

NAME = "attention3d"
Grid = tuple[int, int, int]


def attention3d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    *,
    bias: Tensor | None = None,
    window: Sequence[int] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend over a volume's tokens.

    Args:
        q, k, v: (N, heads, d, T), of any strides: views into one projection (N, heads x 3 x d, T) are read where they
            lie, and tokens-first memory is given as its transposed view. float32, float16 or bfloat16, and float64 in
            plain PyTorch; the kernels take d up to 256. Under autocast they are brought to its dtype.
        grid: D, H, W of the tokens; T is their product.
        bias: (heads, 2 D - 1, 2 H - 1, 2 W - 1), added to the scores by relative position; in q's dtype or float32.
        window: places that a query sees along each axis, at most the grid's; all by default.
        scale: of the scores; 1 / sqrt(d) by default.
        backend: "auto", "torch", "cpu" or "triton". "auto" gives calls without bias and window to PyTorch's
            ``scaled_dot_product_attention``.

    Returns:
        (N, heads, d, T) in q's dtype, with q's order of channels and tokens in memory where the op computes it; what
        "auto" gives to PyTorch (calls without bias and window, few tokens on a processor) lies as PyTorch leaves it.
        Sums are float32. Differentiable once, in ``bias`` too; two runs of the kernels give the same bytes.

    Raises:
        ValueError: shapes, dtypes, grid, bias or window that do not fit.
        BackendUnavailable: a backend was asked for by name and can not run; the message says why.
    """
    q, k, v = lowered(q, k, v)
    sides = _checked_grid(q, grid)
    check_alike(q, k, v)
    if bias is not None:
        _check_bias(bias, q, sides)
    seen = _checked_window(window, sides)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    if backend == "auto" and bias is None and seen == sides:
        q, k, v = (part.transpose(2, 3) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(2, 3)
    if backend == "auto" and plain_is_faster_attention(q):
        return reference(q, k, v, sides, bias=bias, window=seen, scale=scale)
    return called(NAME, q, k, v, list(sides), bias, list(seen), scale, backend)[0]


def _checked_grid(q: Tensor, grid: Sequence[int]) -> Grid:
    if q.ndim != 4 or not q.is_floating_point() or not q.numel():
        raise ValueError(f"q: {q.dtype} of shape {tuple(q.shape)}; allowed are floating point (N, heads, d, T).")
    sides = tuple(int(side) for side in grid)
    if tuple(grid) != sides or len(sides) != 3 or min(sides) < 1 or sides[0] * sides[1] * sides[2] != q.shape[3]:
        raise ValueError(f"grid: {tuple(grid)}; must be three whole sides whose product is q's {q.shape[3]} tokens.")
    return sides[0], sides[1], sides[2]


def _check_bias(bias: Tensor, q: Tensor, sides: Grid) -> None:
    shape = (q.shape[1], *(2 * side - 1 for side in sides))
    if tuple(bias.shape) != shape or bias.device != q.device:
        raise ValueError(f"bias: shape {tuple(bias.shape)} on {bias.device}; must be {shape} on {q.device}.")
    if bias.dtype not in (q.dtype, torch.float32):
        raise ValueError(f"bias: {bias.dtype}; must be {q.dtype}, as q, or torch.float32.")


def _checked_window(window: Sequence[int] | None, sides: Grid) -> Grid:
    if window is None:
        return sides
    seen = tuple(int(places) for places in window)
    if (
        tuple(window) != seen
        or len(seen) != 3
        or any(not 1 <= places <= side for places, side in zip(seen, sides, strict=True))
    ):
        raise ValueError(f"window: {tuple(window)}; must be three whole numbers from 1 to the grid's {sides}.")
    return seen[0], seen[1], seen[2]


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    *,
    bias: Tensor | None = None,
    window: Grid | None = None,
    scale: float | None = None,
) -> Tensor:
    """The definition, in plain PyTorch; the scores exist here, a T x T matrix a head."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    scores = scale * q.transpose(2, 3) @ k
    if bias is not None:
        scores = scores + bias_matrix(bias, grid).to(scores.dtype)
    if window is not None:
        scores = scores.masked_fill(~seen_by(grid, window, q.device), -torch.inf)
    return v @ scores.softmax(dim=3).transpose(2, 3)


def pairs(grid: Sequence[int], window: Sequence[int] | None = None) -> int:
    """Pairs of query and key that are scored."""
    count = 1
    for side, places in zip(grid, window or grid, strict=True):
        count *= side * places
    return count


def operations(q: Tensor, grid: Sequence[int], window: Sequence[int] | None = None, *, backward: bool = False) -> int:
    """Multiplications and additions of the matrix products: 2 of them forward, 5 backward (the scores once more)."""
    return 2 * q.shape[0] * q.shape[1] * q.shape[2] * pairs(grid, window) * (5 if backward else 2)


def bytes_moved(q: Tensor, bias: Tensor | None = None, *, backward: bool = False) -> int:
    """Bytes that are read and written at least: q, k, v, out; backward those, their gradients, and the bias's."""
    tokens = q.numel() * q.element_size() * (8 if backward else 4)
    return tokens + (0 if bias is None else bias.numel() * bias.element_size() * (2 if backward else 1))


torch.library.define(
    f"orthokernels::{NAME}",
    "(Tensor q, Tensor k, Tensor v, int[] grid, Tensor? bias, int[] window, float scale, str backend) "
    "-> (Tensor out, Tensor log_sum)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    f"orthokernels::{NAME}_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum, int[] grid, Tensor? bias, int[] window, "
    "float scale, bool wants_bias, str backend) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _like(x: Tensor) -> Tensor:
    """A new tensor (N, heads, d, T), dense, with x's order of channels and tokens in memory."""
    N, heads, d, T = x.shape
    if x.stride(2) < x.stride(3) or (d > 1 and x.stride(2) == 1):
        return x.new_empty((N, T, heads, d)).permute(0, 2, 3, 1)
    return x.new_empty((N, heads, d, T))


@torch.library.register_fake(f"orthokernels::{NAME}")
def _outputs(
    q: Tensor, k: Tensor, v: Tensor, grid: list[int], bias: Tensor | None, window: list[int], scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    N, heads, _, T = q.shape
    return _like(q), q.new_empty((N, heads, T), dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.register_fake(f"orthokernels::{NAME}_backward")
def _gradients(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, grid: list[int], bias: Tensor | None,
    window: list[int], scale: float, wants_bias: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dbias = q.new_empty((0,)) if bias is None or not wants_bias else bias.new_empty(bias.shape)
    return _like(q), _like(k), _like(v), dbias


@implements(NAME)
def _forward(
    q: Tensor, k: Tensor, v: Tensor, grid: list[int], bias: Tensor | None, window: list[int], scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    found = _outputs(q, k, v, grid, bias, window, scale, backend)
    choose(NAME, backend, q).forward(q, k, v, grid, *dense(bias), window, scale, *found)
    return found


@implements(f"{NAME}_backward")
def _backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, grid: list[int], bias: Tensor | None,
    window: list[int], scale: float, wants_bias: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    found = _gradients(dout, q, k, v, out, log_sum, grid, bias, window, scale, wants_bias, backend)
    met = (dout.to(log_sum.dtype) * out.to(log_sum.dtype)).sum(dim=2).contiguous()  # r of the formulas
    dbias = found[3] if found[3].numel() else None
    choose(NAME, backend, q).backward(
        dout, q, k, v, log_sum, met, grid, *dense(bias), window, scale, *found[:3], dbias
    )  # fmt: skip
    return found


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, ctx.grid, bias, ctx.window, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, bias, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, dout: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    q, k, v, bias, out, log_sum = ctx.saved_tensors
    wants_bias = bias is not None and ctx.needs_input_grad[4]
    dq, dk, dv, dbias = torch.ops.orthokernels.attention3d_backward(
        dout, q, k, v, out, log_sum, ctx.grid, bias, ctx.window, ctx.scale, wants_bias, ctx.backend
    )
    return dq, dk, dv, None, dbias if wants_bias else None, None, None, None


torch.library.register_autograd(f"orthokernels::{NAME}", _differentiate, setup_context=_keep)
differentiable_once(NAME)
