"""Group normalisation, attention and residual of a block over few tokens, in two launches of Triton.

Of T tokens, C channels and N samples, in x's dtype:

    _project   x read, q, k and v written, (N, T, 3 C) in the order of the weight's rows; 6 C^2 T operations
    _attend    q, k, v and x read, y written, and the attended tokens between attention and projection;
               4 C T^2 + 2 C^2 T operations

A program of the first launch has a block of tokens and a block of q's, k's or v's channels. It needs the statistics of
all groups, and takes them itself: the channels are walked in whole groups, and of each the tokens are read three times,
for the mean, for what is left of it and the deviation, and as a factor of the product, the latter two from the
first-level cache. That reads x from the second-level cache as often as there are programs, which few tokens allow, and
saves a launch. Moments about the mean as it was rounded, with the rest of the mean beside it, keep the digits of an x
whose mean is a thousand deviations.

A program of the second launch has a block of queries, and attends for one head after the other over all keys. Attended
tokens go to memory and come back as a factor of the projection: a program reads there what it wrote itself.

No time was taken on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthokernels.backends.torch.attention_block import CHANNELS_AT_MOST, TOKENS_AT_MOST
from orthokernels.backends.triton.configuration import Configuration
from orthokernels.backends.triton.tuning import Setting, setting
from orthokernels.backends.triton.volumes import wrong_dtype


@triton.jit
def _voxels(p_x, xc, xt, o_t, o_c, m):
    """A tile [BT, BC] of a sample as float32, zeros where m does not hold."""
    return tl.load(p_x + o_t[:, None] * xt + o_c[None, :] * xc, m, other=0.0).to(tl.float32)


@triton.jit
def _of_group(sums, GROUPS: tl.constexpr, LANES: tl.constexpr):
    """The sum of a group's lanes, in each of them."""
    total = tl.sum(tl.reshape(sums, (GROUPS, LANES)), 1)
    return tl.reshape(tl.broadcast_to(total[:, None], (GROUPS, LANES)), (GROUPS * LANES,))


@triton.jit
def _moments(
    p_x, xc, xt, o_g, o_w, T, width, groups, eps,
    SUBS: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Mean as rounded, the rest of it, and reciprocal deviation, of the group of each lane."""
    count = tl.cast(width * T, tl.float32)
    sums = tl.zeros((BS, GROUPS * LANES), tl.float32)
    for sub in range(SUBS):
        for start in range(0, T, BS):
            o_t, own = start + tl.arange(0, BS), sub * LANES + o_w
            m = (o_t < T)[:, None] & ((o_g < groups) & (own < width))[None, :]
            sums += _voxels(p_x, xc, xt, o_t, o_g * width + own, m)
    mean = _of_group(tl.sum(sums, 0), GROUPS, LANES) / count
    sums = tl.zeros((BS, GROUPS * LANES), tl.float32)
    squares = tl.zeros((BS, GROUPS * LANES), tl.float32)
    for sub in range(SUBS):
        for start in range(0, T, BS):
            o_t, own = start + tl.arange(0, BS), sub * LANES + o_w
            m = (o_t < T)[:, None] & ((o_g < groups) & (own < width))[None, :]
            away = tl.where(m, _voxels(p_x, xc, xt, o_t, o_g * width + own, m) - mean[None, :], 0.0)
            sums += away
            squares += away * away
    rest = _of_group(tl.sum(sums, 0), GROUPS, LANES) / count
    variance = _of_group(tl.sum(squares, 0), GROUPS, LANES) / count - rest * rest
    return mean, rest, 1.0 / tl.sqrt(tl.maximum(variance, 0.0) + eps)


@triton.jit
def _project(
    p_x, p_weight, p_bias, p_qkv_weight, p_qkv_bias, p_joint, xn, xc, xt, T, C, groups, eps,
    AFFINE: tl.constexpr, QKV_BIAS: tl.constexpr, SUBS: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr,
    BS: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """q, k and v [N, T, 3 C] of a block of tokens. Lanes of a tile are GROUPS groups, LANES of a group's channels."""
    i_n = tl.program_id(2).to(tl.int64)
    o_t, o_o = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1) * BO + tl.arange(0, BO)
    width = C // groups
    o_lane = tl.arange(0, GROUPS * LANES)
    p_n = p_x + i_n * xn
    joint = tl.zeros((BT, BO), tl.float32)
    for first in range(0, groups, GROUPS):
        o_g, o_w = first + o_lane // LANES, o_lane % LANES
        mean, rest, rstd = _moments(p_n, xc, xt, o_g, o_w, T, width, groups, eps, SUBS, GROUPS, LANES, BS)
        for sub in range(SUBS):
            own = sub * LANES + o_w
            m_c = (o_g < groups) & (own < width)
            o_c = o_g * width + own
            m = (o_t < T)[:, None] & m_c[None, :]
            h = ((_voxels(p_n, xc, xt, o_t, o_c, m) - mean[None, :]) - rest[None, :]) * rstd[None, :]
            if AFFINE:
                h = h * tl.load(p_weight + o_c, m_c, other=0.0).to(tl.float32)[None, :]
                h += tl.load(p_bias + o_c, m_c, other=0.0).to(tl.float32)[None, :]
            h = tl.where(m, h, 0.0).to(p_x.dtype.element_ty)  # without an eps, lanes of no group are infinite
            place = p_qkv_weight + o_o[None, :] * C + o_c[:, None]
            b_w = tl.load(place, m_c[:, None] & (o_o < 3 * C)[None, :], other=0.0).to(h.dtype)  # [BC, BO]
            joint += tl.dot(h, b_w, input_precision="ieee")
    if QKV_BIAS:
        joint += tl.load(p_qkv_bias + o_o, o_o < 3 * C, other=0.0).to(tl.float32)[None, :]
    place = p_joint + i_n * T * 3 * C + o_t[:, None] * (3 * C) + o_o[None, :]
    tl.store(place, joint.to(p_joint.dtype.element_ty), (o_t < T)[:, None] & (o_o < 3 * C)[None, :])


@triton.jit
def _tokens(p, pitch, o_t, o_d, T, d):
    """Tokens [BT, BD], a pitch apart; zeros outside."""
    return tl.load(p + o_t[:, None] * pitch + o_d[None, :], (o_t < T)[:, None] & (o_d < d)[None, :], other=0.0)


@triton.jit
def _attend(
    p_joint, p_proj_weight, p_proj_bias, p_x, p_attended, p_y, xn, xc, xt, T, C, heads, d, of_head, of_part, scale,
    PROJ_BIAS: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """y of a block of queries. Heads' channels are ``of_head`` apart in q, k and v, and these ``of_part``."""
    i_n = tl.program_id(1).to(tl.int64)
    o_q, o_d = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.arange(0, BD)
    p_n, p_own = p_joint + i_n * T * 3 * C, p_attended + i_n * T * C
    for head in range(heads):
        p_q = p_n + head * of_head
        b_q = _tokens(p_q, 3 * C, o_q, o_d, T, d)
        largest = tl.full((BQ,), -float("inf"), tl.float32)
        total = tl.zeros((BQ,), tl.float32)
        attended = tl.zeros((BQ, BD), tl.float32)
        for start in range(0, T, BK):
            o_k = start + tl.arange(0, BK)
            b_k = _tokens(p_q + of_part, 3 * C, o_k, o_d, T, d)
            scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
            scores = tl.where((o_k < T)[None, :], scores, -float("inf"))
            larger = tl.maximum(largest, tl.max(scores, 1))
            p, kept = tl.exp(scores - larger[:, None]), tl.exp(largest - larger)
            b_v = _tokens(p_q + 2 * of_part, 3 * C, o_k, o_d, T, d)
            total = total * kept + tl.sum(p, 1)
            attended = attended * kept[:, None] + tl.dot(p.to(b_v.dtype), b_v, input_precision="ieee")
            largest = larger
        place = p_own + o_q[:, None] * C + head * d + o_d[None, :]
        attended = (attended / total[:, None]).to(p_attended.dtype.element_ty)
        tl.store(place, attended, (o_q < T)[:, None] & (o_d < d)[None, :])
    tl.debug_barrier()  # what one thread of the program wrote, another reads
    for first in range(0, C, BO):
        o_o = first + tl.arange(0, BO)
        y = tl.zeros((BQ, BO), tl.float32)
        for start in range(0, C, BC):
            o_c = start + tl.arange(0, BC)
            b_a = _tokens(p_own, C, o_q, o_c, T, C)
            place = p_proj_weight + o_o[None, :] * C + o_c[:, None]
            b_w = tl.load(place, (o_c < C)[:, None] & (o_o < C)[None, :], other=0.0).to(b_a.dtype)  # [BC, BO]
            y += tl.dot(b_a, b_w, input_precision="ieee")
        if PROJ_BIAS:
            y += tl.load(p_proj_bias + o_o, o_o < C, other=0.0).to(tl.float32)[None, :]
        m = (o_q < T)[:, None] & (o_o < C)[None, :]
        y += _voxels(p_x + i_n * xn, xc, xt, o_q, o_o, m)
        tl.store(p_y + i_n * xn + o_q[:, None] * xt + o_o[None, :] * xc, y.to(p_y.dtype.element_ty), m)


def forward(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, qkv_weight: Tensor, qkv_bias: Tensor | None,
    proj_weight: Tensor, proj_bias: Tensor | None, heads: int, legacy: bool, eps: float, y: Tensor,
) -> None:  # fmt: skip
    """Write y, in x's layout."""
    N, C, T = *x.shape[:2], x[0, 0].numel()
    strides = (C * T, 1, C) if x.movedim(1, -1).is_contiguous() else (C * T, T, 1)
    joint, attended = (torch.empty(N, T, width, dtype=x.dtype, device=x.device) for width in (3 * C, C))
    d = C // heads
    parts = (3 * d, d) if legacy else (d, C)
    single = x.dtype == torch.float32

    def project(cut: Setting) -> None:
        _project[(triton.cdiv(T, cut["BT"]), triton.cdiv(3 * C, cut["BO"]), N)](
            x, *_or(x, weight, bias), qkv_weight, *_or(x, qkv_bias), joint, *strides, T, C, groups, eps,
            AFFINE=weight is not None, QKV_BIAS=qkv_bias is not None, **lanes_of(C // groups), **cut,
        )  # fmt: skip

    def attend(cut: Setting) -> None:
        _attend[(triton.cdiv(T, cut["BQ"]), N)](
            joint, proj_weight, *_or(x, proj_bias), x, attended, y, *strides, T, C, heads, d, *parts, d**-0.5,
            PROJ_BIAS=proj_bias is not None, BD=_width(d), **cut,
        )  # fmt: skip

    kind = *x.shape, groups, heads, x.dtype, qkv_weight.dtype, strides[1] == 1
    project(setting("attention_block", ("project", *kind), projections(single), x.device, project))
    attend(setting("attention_block", ("attend", *kind), attentions(d, single), x.device, attend))


def _or(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """A kernel takes a pointer for each; it never reads one that was not given."""
    return [x if tensor is None else tensor for tensor in tensors]


def lanes_of(width: int) -> dict[str, int]:
    """How channels of groups of this width lie in a tile: whole groups side by side, or a wide group in pieces."""
    lanes = min(triton.next_power_of_2(width), _LANES)
    return {"GROUPS": _LANES // lanes, "LANES": lanes, "SUBS": triton.cdiv(width, lanes)}


# Defaults are the largest tiles found at which no target spills with Triton 3.6, 3.7 and 3.9.
_LANES = 32  # channels at once


def projections(single: bool) -> list[Setting]:
    """Tiles of the first launch: tokens for statistics, tokens and channels of the result, warps; default first."""
    sides = [(32, 32, 64, 8 if single else 4), (64, 32, 64, 4), (64, 32, 64, 8), (64, 32, 32, 4), (64, 16, 64, 4)]
    return [{"BS": rows, "BT": tokens, "BO": out, "num_warps": warps} for rows, tokens, out, warps in sides]


# Keys, channels and warps of the second launch by the widest head.
_ATTENTIONS = {
    True: {64: (32, 32, 8), 128: (32, 64, 8), 256: (16, 32, 8)},
    False: {256: (32, 64, 4), 512: (16, 64, 8)},
}


def attentions(d: int, single: bool) -> list[Setting]:
    """Tiles of the second launch: queries, keys, channels of the projection's two sides, and warps; default first."""
    keys, channels, warps = next(tile for widest, tile in _ATTENTIONS[single].items() if d <= widest)
    sides = [(16, keys, channels, warps), (16, 32, 64, 8), (16, 64, 64, 8), (32, 32, 64, 8)]
    return [{"BQ": q, "BK": k, "BC": c, "BO": 64, "num_warps": own} for q, k, c, own in dict.fromkeys(sides)]


def _width(d: int) -> int:
    """Channels of a head's tile: a matrix product's sides are powers of two, and 16 at least."""
    return max(16, triton.next_power_of_2(d))


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take a volume, or None."""
    if (reason := wrong_dtype(x)) or x.ndim < 3:
        return reason
    if x.shape[1] > CHANNELS_AT_MOST[x.dtype]:
        return f"its kernels take up to {CHANNELS_AT_MOST[x.dtype]} channels in {x.dtype}, not {x.shape[1]}"
    tokens = x[0, 0].numel()
    return f"its kernels take up to {TOKENS_AT_MOST} voxels, not {tokens}" if tokens > TOKENS_AT_MOST else None


def configurations() -> Iterator[Configuration]:
    """The published block (256 tokens of 256 channels, 32 groups, one head), narrower heads, and the widest.

    Also one group, which is taken in pieces, groups of three channels, and parameters in float32, as under autocast.
    """
    for kind in ("*fp32", "*bf16"):
        for last in (True, False):
            yield _projecting(kind, kind, 256, 32, last)
            yield _attending(kind, kind, 256, 1, last)
        yield _projecting(kind, kind, 96, 32, True)
        for heads in (2, 4, 16):
            yield _attending(kind, kind, 256, heads, True)
    yield _projecting("*bf16", "*fp32", 512, 32, True)
    yield _projecting("*bf16", "*bf16", 512, 1, True)
    for parameters in ("*bf16", "*fp32"):
        yield _attending("*bf16", parameters, 512, 1, True)


def _projecting(kind: str, parameters: str, C: int, groups: int, last: bool) -> Configuration:
    single = kind == "*fp32"
    named: dict[str, object] = {"groups": groups, "eps": 1e-5, "AFFINE": True, "QKV_BIAS": True}
    named |= lanes_of(C // groups)
    return _configuration(_project, kind, parameters, C, last, projections(single)[0], named)


def _attending(kind: str, parameters: str, C: int, heads: int, last: bool) -> Configuration:
    d = C // heads
    named = {"heads": heads, "d": d, "of_head": 3 * d, "of_part": d, "scale": d**-0.5, "BD": _width(d)}
    cut = attentions(d, kind == "*fp32")[0]
    return _configuration(_attend, kind, parameters, C, last, cut, {**named, "PROJ_BIAS": True})


def _configuration(
    kernel: triton.JITFunction, kind: str, parameters: str, C: int, last: bool, cut: Setting, named: dict[str, object]
) -> Configuration:
    T, own = 256, ("p_weight", "p_bias", "p_qkv_weight", "p_qkv_bias", "p_proj_weight", "p_proj_bias")
    strides = {"xn": C * T, "xc": 1 if last else T, "xt": C if last else 1}
    found = {**dict.fromkeys(own, parameters), "T": T, "C": C, **strides, **named, **cut}
    return Configuration(
        "attention_block", kernel, {name: found.get(name, kind) for name in kernel.arg_names}, cut["num_warps"]
    )
