"""Attention followed by a mean over the queries, as the published pooling does it.

Of one head, with T tokens of d channels:

    p[q, k] = softmax over k of scale q[q] . k[k]
    w[k]    = mean over q of p[q, k]                  how much the queries look at a token
    out     = sum over k of w[k] v[k]

The mean is linear, so that neither attended tokens (T x d) nor p (T x T) need to exist outside the chip.

Backward. With g[k] = dout . v[k], which is the same for every query, and r[q] = sum over k of p[q, k] g[k]:

    dv[k]    = w[k] dout
    ds[q, k] = p[q, k] (g[k] - r[q]) / T
    dq[q]    = scale sum over k of ds[q, k] k[k]
    dk[k]    = scale sum over q of ds[q, k] q[q]

Kept for the backward pass: w, and the logarithm of each softmax's denominator; two numbers a token and head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthokernels.backends.cpu.gains import plain_is_faster_pooling
from orthokernels.backends.registry import choose
from orthokernels.ops.autocast import lowered
from orthokernels.ops.layout import check_alike
from orthokernels.ops.registration import called, differentiable_once, implements

NAME = "attention_pool"


def attention_pool(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, backend: str = "auto") -> Tensor:
    """Attend over all tokens, and average over the queries.

    Args:
        q, k, v: (N, heads, T, d), of any strides: views into one projection are read where they lie. float32, float16
            or bfloat16, and float64 in plain PyTorch; for the kernels d up to 256. Under autocast they are brought to
            its dtype.
        scale: of the scores; 1 / sqrt(d) by default.
        backend: "auto", "torch", "cpu", "triton" or "cuda".

    Returns:
        (N, heads, d) in q's dtype; sums are float32. Differentiable once.

    Raises:
        ValueError: shapes or dtypes that differ.
        BackendUnavailable: a backend was asked for by name and can not run; the message says why.
    """
    q, k, v = lowered(q, k, v)
    if q.ndim != 4 or not q.is_floating_point() or not q.numel():
        raise ValueError(f"q: {q.dtype} of shape {tuple(q.shape)}; allowed are floating point (N, heads, T, d).")
    check_alike(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "auto" and plain_is_faster_pooling(q):
        return reference(q, k, v, scale=scale)
    return called(NAME, q, k, v, scale, backend)[0]


def reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """The definition, in plain PyTorch."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return ((scale * q @ k.transpose(2, 3)).softmax(dim=3) @ v).mean(dim=2)


def bytes_moved(q: Tensor, *, backward: bool = False) -> int:
    """Bytes that are read and written at least, tokens alone: q, k, v; backward their gradients too."""
    return q.numel() * q.element_size() * (6 if backward else 3)


torch.library.define(
    f"orthokernels::{NAME}",
    "(Tensor q, Tensor k, Tensor v, float scale, str backend) -> (Tensor out, Tensor looked_at, Tensor log_sum)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    f"orthokernels::{NAME}_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor looked_at, Tensor log_sum, float scale, str backend) "
    "-> (Tensor dq, Tensor dk, Tensor dv)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake(f"orthokernels::{NAME}")
def _outputs(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    sums = torch.promote_types(q.dtype, torch.float32)
    looked_at, log_sum = (q.new_empty(q.shape[:3], dtype=sums) for _ in range(2))
    return q.new_empty((*q.shape[:2], q.shape[3])), looked_at, log_sum


@torch.library.register_fake(f"orthokernels::{NAME}_backward")
def _gradients(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, looked_at: Tensor, log_sum: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@implements(NAME)
def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    found = _outputs(q, k, v, scale, backend)
    choose(NAME, backend, q).forward(q, k, v, scale, *found)
    return found


@implements(f"{NAME}_backward")
def _backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, looked_at: Tensor, log_sum: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    found = _gradients(dout, q, k, v, looked_at, log_sum, scale, backend)
    dout = dout.contiguous()
    # dv and g are one product each: a matrix library's work.
    found[2].copy_(looked_at[..., None] * dout[:, :, None])
    gain = torch.einsum("nhtd,nhd->nht", v.to(looked_at.dtype), dout.to(looked_at.dtype)).contiguous()
    choose(NAME, backend, q).backward(gain, q, k, log_sum, scale, *found[:2])
    return found


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, dout: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.orthokernels.attention_pool_backward(dout, *ctx.saved_tensors, ctx.scale, ctx.backend)
    return *gradients, None, None


torch.library.register_autograd(f"orthokernels::{NAME}", _differentiate, setup_context=_keep)
differentiable_once(NAME)
