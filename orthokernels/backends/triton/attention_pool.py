"""Attention with a mean over the queries in Triton, forward and backward.

Of T tokens and d channels a head: 3 T d numbers read, d + 2 T written, 4 T^2 d operations (the scores are made twice:
once for the softmax's denominators, once for the columns' means; the weighted sum is 2 T d). Backward 8 T^2 d.

Up to 256 tokens of narrow heads one program has all of a head's keys before it, and the whole is one launch: the
published pooling at its 16 x 16 map. Beyond, rows and columns take a launch each, and the blocks' sums are added in
their order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthokernels.backends.triton.configuration import Configuration
from orthokernels.backends.triton.volumes import wrong_dtype

_AT_ONCE = 256  # tokens
_WIDEST_AT_ONCE = {True: 32, False: 128}  # channels of a head beside that many; for single precision, for half
_WIDEST = 256  # channels of a head: a tile of tokens lies in the registers whole


@triton.jit
def _tokens(p, strides_n, strides_h, strides_t, strides_d, i_n, i_h, o_t, o_d, T, d):
    """Tokens [BT, BD] of a head; zeros outside."""
    place = p + i_n.to(tl.int64) * strides_n + i_h.to(tl.int64) * strides_h
    place = place + o_t.to(tl.int64)[:, None] * strides_t + o_d.to(tl.int64)[None, :] * strides_d
    return tl.load(place, (o_t < T)[:, None] & (o_d < d)[None, :], other=0.0)


@triton.jit
def _scores(b_q, b_k, o_k, scale, T):
    """Scores [BQ, BK], minus infinity behind the last token; float32 inputs are multiplied as such, not as TF32."""
    return tl.where((o_k < T)[None, :], tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale, -float("inf"))


@triton.jit
def _whole(
    p_q, p_k, p_v, p_out, p_looked_at, p_log_sum, qn, qh, qt, qd, kn, kh, kt, kd, vn, vh, vt, vd, heads, T, d, scale,
    BQ: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """All of a head: BK takes in every token."""
    i_nh = tl.program_id(0)
    i_n, i_h = i_nh // heads, i_nh % heads
    o_k, o_d = tl.arange(0, BK), tl.arange(0, BD)
    b_k = _tokens(p_k, kn, kh, kt, kd, i_n, i_h, o_k, o_d, T, d)  # [BK, BD]
    looked_at = tl.zeros((BK,), tl.float32)
    for start in range(0, T, BQ):
        o_q = start + tl.arange(0, BQ)
        b_q = _tokens(p_q, qn, qh, qt, qd, i_n, i_h, o_q, o_d, T, d)  # [BQ, BD]
        scores = _scores(b_q, b_k, o_k, scale, T)
        largest = tl.max(scores, 1)
        p = tl.exp(scores - largest[:, None])
        total = tl.sum(p, 1)
        looked_at += tl.sum(tl.where((o_q < T)[:, None], p / total[:, None], 0.0), 0)
        tl.store(p_log_sum + i_nh * T + o_q, largest + tl.log(total), o_q < T)
    looked_at = looked_at / T
    tl.store(p_looked_at + i_nh * T + o_k, looked_at, o_k < T)
    b_v = _tokens(p_v, vn, vh, vt, vd, i_n, i_h, o_k, o_d, T, d).to(tl.float32)
    tl.store(p_out + i_nh * d + o_d, tl.sum(looked_at[:, None] * b_v, 0).to(p_out.dtype.element_ty), o_d < d)


@triton.jit
def _rows(
    p_q, p_k, p_log_sum, qn, qh, qt, qd, kn, kh, kt, kd, heads, T, d, scale,
    BQ: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Logarithms of the denominators of a block of queries."""
    i_nh = tl.program_id(1)
    i_n, i_h = i_nh // heads, i_nh % heads
    o_q, o_d = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.arange(0, BD)
    b_q = _tokens(p_q, qn, qh, qt, qd, i_n, i_h, o_q, o_d, T, d)
    largest = tl.full((BQ,), -float("inf"), tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    for start in range(0, T, BK):
        o_k = start + tl.arange(0, BK)
        scores = _scores(b_q, _tokens(p_k, kn, kh, kt, kd, i_n, i_h, o_k, o_d, T, d), o_k, scale, T)
        larger = tl.maximum(largest, tl.max(scores, 1))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(scores - larger[:, None]), 1)
        largest = larger
    tl.store(p_log_sum + i_nh * T + o_q, largest + tl.log(total), o_q < T)


@triton.jit
def _columns(
    p_q, p_k, p_v, p_part, p_looked_at, p_log_sum, qn, qh, qt, qd, kn, kh, kt, kd, vn, vh, vt, vd, heads, T, d, scale,
    BQ: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """w of a block of tokens, and their share of the result: [N heads, blocks, d]."""
    i_block, i_nh = tl.program_id(0), tl.program_id(1)
    i_n, i_h = i_nh // heads, i_nh % heads
    o_k, o_d = i_block * BK + tl.arange(0, BK), tl.arange(0, BD)
    b_k = _tokens(p_k, kn, kh, kt, kd, i_n, i_h, o_k, o_d, T, d)
    looked_at = tl.zeros((BK,), tl.float32)
    for start in range(0, T, BQ):
        o_q = start + tl.arange(0, BQ)
        scores = _scores(_tokens(p_q, qn, qh, qt, qd, i_n, i_h, o_q, o_d, T, d), b_k, o_k, scale, T)
        log_sum = tl.load(p_log_sum + i_nh * T + o_q, o_q < T, other=float("inf"))
        looked_at += tl.sum(tl.exp(scores - log_sum[:, None]), 0)
    looked_at = looked_at / T
    tl.store(p_looked_at + i_nh * T + o_k, looked_at, o_k < T)
    b_v = _tokens(p_v, vn, vh, vt, vd, i_n, i_h, o_k, o_d, T, d).to(tl.float32)
    place = p_part + (i_nh * tl.num_programs(0) + i_block) * d + o_d
    tl.store(place, tl.sum(looked_at[:, None] * b_v, 0), o_d < d)


@triton.jit
def _row_gradients(
    p_q, p_k, p_gain, p_log_sum, p_seen, p_dq, qn, qh, qt, qd, kn, kh, kt, kd, heads, T, d, scale,
    BQ: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries, and their r. sum p (g - r) k = sum p g k - r sum p k: one walk over the keys."""
    i_nh = tl.program_id(1)
    i_n, i_h = i_nh // heads, i_nh % heads
    o_q, o_d = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.arange(0, BD)
    b_q = _tokens(p_q, qn, qh, qt, qd, i_n, i_h, o_q, o_d, T, d)
    log_sum = tl.load(p_log_sum + i_nh * T + o_q, o_q < T, other=float("inf"))
    seen = tl.zeros((BQ,), tl.float32)
    of_gain = tl.zeros((BQ, BD), tl.float32)
    of_keys = tl.zeros((BQ, BD), tl.float32)
    for start in range(0, T, BK):
        o_k = start + tl.arange(0, BK)
        b_k = _tokens(p_k, kn, kh, kt, kd, i_n, i_h, o_k, o_d, T, d)
        p = tl.exp(_scores(b_q, b_k, o_k, scale, T) - log_sum[:, None])
        gained = p * tl.load(p_gain + i_nh * T + o_k, o_k < T, other=0.0)[None, :]
        seen += tl.sum(gained, 1)
        of_gain += tl.dot(gained.to(b_k.dtype), b_k, input_precision="ieee")
        of_keys += tl.dot(p.to(b_k.dtype), b_k, input_precision="ieee")
    tl.store(p_seen + i_nh * T + o_q, seen, o_q < T)
    dq = (of_gain - seen[:, None] * of_keys) * (scale / T)
    place = p_dq + (i_nh.to(tl.int64) * T + o_q)[:, None] * d + o_d[None, :]
    tl.store(place, dq.to(p_dq.dtype.element_ty), (o_q < T)[:, None] & (o_d < d)[None, :])


@triton.jit
def _column_gradients(
    p_q, p_k, p_gain, p_log_sum, p_seen, p_dk, qn, qh, qt, qd, kn, kh, kt, kd, heads, T, d, scale,
    BQ: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dk of a block of keys."""
    i_nh = tl.program_id(1)
    i_n, i_h = i_nh // heads, i_nh % heads
    o_k, o_d = tl.program_id(0) * BK + tl.arange(0, BK), tl.arange(0, BD)
    b_k = _tokens(p_k, kn, kh, kt, kd, i_n, i_h, o_k, o_d, T, d)
    gain = tl.load(p_gain + i_nh * T + o_k, o_k < T, other=0.0)
    dk = tl.zeros((BK, BD), tl.float32)
    for start in range(0, T, BQ):
        o_q = start + tl.arange(0, BQ)
        b_q = _tokens(p_q, qn, qh, qt, qd, i_n, i_h, o_q, o_d, T, d)
        log_sum = tl.load(p_log_sum + i_nh * T + o_q, o_q < T, other=float("inf"))
        seen = tl.load(p_seen + i_nh * T + o_q, o_q < T, other=0.0)
        p = tl.exp(_scores(b_q, b_k, o_k, scale, T) - log_sum[:, None])
        ds = (p * (gain[None, :] - seen[:, None])).to(b_q.dtype)  # [BQ, BK]
        dk += tl.dot(tl.trans(ds), b_q, input_precision="ieee")
    place = p_dk + (i_nh.to(tl.int64) * T + o_k)[:, None] * d + o_d[None, :]
    dk = dk * (scale / T)
    tl.store(place, dk.to(p_dk.dtype.element_ty), (o_k < T)[:, None] & (o_d < d)[None, :])


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, looked_at: Tensor, log_sum: Tensor) -> None:
    """Write the pooled tokens, w and the logarithms of the softmax's denominators."""
    N, heads, T, d = q.shape
    strides = *q.stride(), *k.stride(), *v.stride()
    if _at_once(T, d, q.dtype == torch.float32):
        _whole[(N * heads,)](
            q, k, v, out, looked_at, log_sum, *strides, heads, T, d, scale,
            BK=max(16, triton.next_power_of_2(T)), BD=_width(d), **_whole_cut(q.dtype == torch.float32),
        )  # fmt: skip
        return
    cut = tile_of(d, q.dtype == torch.float32)
    blocks = triton.cdiv(T, cut["BK"])
    part = torch.empty(N, heads, blocks, d, dtype=torch.float32, device=q.device)
    _rows[(triton.cdiv(T, cut["BQ"]), N * heads)](q, k, log_sum, *strides[:8], heads, T, d, scale, **cut)
    _columns[(blocks, N * heads)](q, k, v, part, looked_at, log_sum, *strides, heads, T, d, scale, **cut)
    out.copy_(part.sum(dim=2))


def backward(gain: Tensor, q: Tensor, k: Tensor, log_sum: Tensor, scale: float, dq: Tensor, dk: Tensor) -> None:
    """Write dq and dk, contiguous; ``gain`` is g of the formulas, (N, heads, T)."""
    N, heads, T, d = q.shape
    seen = torch.empty_like(log_sum)
    cut, rest = tile_of(d, q.dtype == torch.float32), (*q.stride(), *k.stride(), heads, T, d, scale)
    _row_gradients[(triton.cdiv(T, cut["BQ"]), N * heads)](q, k, gain, log_sum, seen, dq, *rest, **cut)
    _column_gradients[(triton.cdiv(T, cut["BK"]), N * heads)](q, k, gain, log_sum, seen, dk, *rest, **cut)


def tile_of(d: int, single: bool) -> dict[str, int]:
    """Sides of a tile and options of the launch, the largest at which nothing is spilled.

    Single precision has no matrix units; of its widest heads no tile is loaded ahead of the one at hand.
    """
    width = _width(d)
    if single:
        rows, keys, warps, stages = (32, 32, 8, 3) if width <= 64 else (16, 16, 8, 3 if width <= 128 else 1)
    else:
        rows, keys, warps, stages = (32, 64, 4, 3) if width <= 128 else (32, 32, 8, 3)
    return {"BQ": rows, "BK": keys, "BD": width, "num_warps": warps, "num_stages": stages}


def _at_once(T: int, d: int, single: bool) -> bool:
    """Whether a program's registers hold all keys of a head, with nothing spilled."""
    return T <= _AT_ONCE and d <= _WIDEST_AT_ONCE[single]


def _whole_cut(single: bool) -> dict[str, int]:
    """Queries at once, and warps, where a program has all keys."""
    return {"BQ": 16, "num_warps": 8} if single else {"BQ": 32, "num_warps": 4}


def _width(d: int) -> int:
    """Channels of a tile: a matrix product's sides are powers of two, and 16 at least."""
    return max(16, triton.next_power_of_2(d))


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take tokens, or None."""
    if x.ndim == 4 and x.shape[-1] > _WIDEST:
        return f"its kernels take heads of up to {_WIDEST} channels, not {x.shape[-1]}"
    return wrong_dtype(x)


def configurations() -> Iterator[Configuration]:
    """The published pooling (16 heads of 16 channels, 256 tokens), 4,096 tokens, and the widest head of each tile."""
    several = (_rows, _columns, _row_gradients, _column_gradients)
    for pointer in ("*fp32", "*bf16"):
        single = pointer == "*fp32"
        for d, T, kernels in (
            (16, 256, (_whole,)), (_WIDEST_AT_ONCE[single], 256, (_whole,)), (64, 4096, several),
            *(((128, 4096, several),) if single else ()), (_WIDEST, 4096, several),
        ):  # fmt: skip
            cut = tile_of(d, single)
            strides = {"n": 16 * T * d, "h": d, "t": 16 * d, "d": 1}
            named: dict[str, object] = {
                f"{tensor}{axis}": stride for tensor in "qkv" for axis, stride in strides.items()
            }
            named |= dict.fromkeys(("p_looked_at", "p_log_sum", "p_gain", "p_seen", "p_part"), "*fp32")
            named |= {"heads": 16, "T": T, "d": d, "scale": d**-0.5, **cut}
            if kernels == (_whole,):
                cut |= _whole_cut(single)
                named |= {**cut, "BK": T}
            for kernel in kernels:
                arguments = {name: named.get(name, pointer) for name in kernel.arg_names}
                yield Configuration("attention_pool", kernel, arguments, cut["num_warps"], cut["num_stages"])
