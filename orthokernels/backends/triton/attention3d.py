"""Attention over a volume's tokens in Triton, forward and backward, with relative-position bias and windows.

Of T tokens and d channels a head, n of T keys seen: 4 T n d operations forward, 10 T n d backward and 4 more for the
gradient of the bias; 4 T d numbers are moved forward, 8 T d backward. Nothing of the size T n is stored.

Queries go in blocks of consecutive tokens. Keys are walked plane by plane (all of them as one plane where everything is
seen), from the first row to the last that the block's windows reach. The bias of a pair is read from the table by the
difference of two numbers, one of the query and one of the key.

The gradient of the bias sums over all pairs at one distance. A program has one distance in depth and in blocks of rows:
for each pair of blocks at it the gradients of the scores are made by two matrix products, and add up in one tile, each
place of which is one distance. The bias is one tile too, and read once. Places of a tile at one distance in height are
added up at the program's end, those in width, and neighbouring tiles', outside of the kernel. So no two programs write
one place, and no order of additions is left to chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from orthokernels.backends.triton.configuration import Configuration
from orthokernels.backends.triton.tuning import Setting, setting
from orthokernels.backends.triton.volumes import wrong_dtype


@triton.jit
def _tokens(p, strides_n, strides_h, strides_d, strides_t, i_n, i_h, o_t, o_d, m_t, d):
    """Tokens [BT, BD] of a head; zeros where m_t does not hold."""
    place = p + i_n.to(tl.int64) * strides_n + i_h.to(tl.int64) * strides_h
    place = place + o_t.to(tl.int64)[:, None] * strides_t + o_d.to(tl.int64)[None, :] * strides_d
    return tl.load(place, m_t[:, None] & (o_d < d)[None, :], other=0.0)


@triton.jit
def _store(p, value, strides_n, strides_h, strides_d, strides_t, i_n, i_h, o_t, o_d, m_t, d):
    """Tokens [BT, BD] of a head, where m_t holds."""
    place = p + i_n.to(tl.int64) * strides_n + i_h.to(tl.int64) * strides_h
    place = place + o_t.to(tl.int64)[:, None] * strides_t + o_d.to(tl.int64)[None, :] * strides_d
    tl.store(place, value.to(p.dtype.element_ty), m_t[:, None] & (o_d < d)[None, :])


@triton.jit
def _first_seen(at, places, side):
    """First place that a query sees along an axis."""
    return tl.minimum(tl.maximum(at - places // 2, 0), side - places)


@triton.jit
def _first_seer(at, places):
    """First query that sees a key along an axis."""
    return tl.where(at < places, 0, at - places + 1 + places // 2)


@triton.jit
def _last_seer(at, places, side):
    """Last query that sees a key along an axis, plus one."""
    return tl.where(at >= side - places, side, at + places // 2 + 1)


@triton.jit
def _code(o_t, H, W):
    """Number of a token, such that the difference of two is a place in the table of the bias."""
    return ((o_t // (H * W)) * (2 * H - 1) + o_t // W % H) * (2 * W - 1) + o_t % W


@triton.jit
def _axis_seen(q, k, places, side):
    first = _first_seen(q, places, side)[:, None]
    return (k[None, :] >= first) & (k[None, :] < first + places)


@triton.jit
def _scores(
    b_q, b_k, o_q, o_k, m_q, m_k, p_bias, i_h, scale, D, H, W, wd, wh, ww, BIAS: tl.constexpr, WINDOW: tl.constexpr
):
    """Scores [BQ, BK] of tokens; float32 is multiplied as such, not as TF32."""
    products = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
    return _masked(products * scale, o_q, o_k, m_q, m_k, p_bias, i_h, D, H, W, wd, wh, ww, BIAS, WINDOW)


@triton.jit
def _masked(
    scores, o_q, o_k, m_q, m_k, p_bias, i_h, D, H, W, wd, wh, ww, BIAS: tl.constexpr, WINDOW: tl.constexpr
):  # fmt: skip
    """Scores with the bias; minus infinity where a query does not see a key."""
    m = m_q[:, None] & m_k[None, :]
    if BIAS:
        zero = ((D - 1) * (2 * H - 1) + H - 1) * (2 * W - 1) + W - 1
        table = p_bias + i_h.to(tl.int64) * ((2 * D - 1) * (2 * H - 1) * (2 * W - 1))
        place = _code(o_q, H, W)[:, None] - _code(o_k, H, W)[None, :] + zero
        scores += tl.load(table + place, m, other=0.0).to(tl.float32)
    if WINDOW:
        m &= _axis_seen(o_q // (H * W), o_k // (H * W), wd, D)
        m &= _axis_seen(o_q // W % H, o_k // W % H, wh, H)
        m &= _axis_seen(o_q % W, o_k % W, ww, W)
    return tl.where(m, scores, -float("inf"))


@triton.jit
def _reach_of_queries(first, last, D, H, W, wd, wh, WINDOW: tl.constexpr):
    """Planes, then rows, of the keys that the queries from first to last see; then the size of a plane and of a row.

    Where everything is seen, all tokens are one row of one plane.
    """
    if WINDOW:
        plane, last_plane = first // (H * W), last // (H * W)
        planes = _first_seen(plane, wd, D), _first_seen(last_plane, wd, D) + wd
        row, last_row = first // W % H, last // W % H
        alike = plane == last_plane
        rows_0 = tl.where(alike, _first_seen(row, wh, H), 0)
        rows_1 = tl.where(alike, _first_seen(last_row, wh, H) + wh, H)
        return planes[0], planes[1], rows_0 * W, rows_1 * W, H * W
    return 0, 1, 0, D * H * W, D * H * W


@triton.jit
def _reach_of_keys(first, last, D, H, W, wd, wh, WINDOW: tl.constexpr):
    """The same for the queries that see the keys from first to last."""
    if WINDOW:
        plane, last_plane = first // (H * W), last // (H * W)
        row, last_row = first // W % H, last // W % H
        alike = plane == last_plane
        rows_0 = tl.where(alike, _first_seer(row, wh), 0)
        rows_1 = tl.where(alike, _last_seer(last_row, wh, H), H)
        return _first_seer(plane, wd), _last_seer(last_plane, wd, D), rows_0 * W, rows_1 * W, H * W
    return 0, 1, 0, D * H * W, D * H * W


@triton.jit
def _attend(
    p_q, p_k, p_v, p_bias, p_out, p_log_sum, qn, qh, qd, qt, kn, kh, kd, kt, vn, vh, vd, vt, on, oh, od, ot,
    heads, D, H, W, d, wd, wh, ww, scale,
    BIAS: tl.constexpr, WINDOW: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Attended tokens of a block of queries, and the logarithms of their denominators."""
    i_nh, T = tl.program_id(1), D * H * W
    i_n, i_h = i_nh // heads, i_nh % heads
    o_q, o_d = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.arange(0, BD)
    m_q = o_q < T
    b_q = _tokens(p_q, qn, qh, qd, qt, i_n, i_h, o_q, o_d, m_q, d)
    largest = tl.full((BQ,), -float("inf"), tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    out = tl.zeros((BQ, BD), tl.float32)
    first = tl.program_id(0) * BQ
    plane_0, plane_1, start_0, start_1, size = _reach_of_queries(
        first, tl.minimum(first + BQ, T) - 1, D, H, W, wd, wh, WINDOW
    )
    for plane in range(plane_0, plane_1):
        for start in range(start_0, start_1, BK):
            o_k = plane * size + start + tl.arange(0, BK)
            m_k = start + tl.arange(0, BK) < start_1
            b_k = _tokens(p_k, kn, kh, kd, kt, i_n, i_h, o_k, o_d, m_k, d)
            scores = _scores(b_q, b_k, o_q, o_k, m_q, m_k, p_bias, i_h, scale, D, H, W, wd, wh, ww, BIAS, WINDOW)
            larger = tl.maximum(largest, tl.max(scores, 1))
            base = tl.where(larger == -float("inf"), 0.0, larger)  # a block may hold nothing that a query sees
            p = tl.exp(scores - base[:, None])
            kept = tl.exp(largest - base)
            b_v = _tokens(p_v, vn, vh, vd, vt, i_n, i_h, o_k, o_d, m_k, d)
            total = total * kept + tl.sum(p, 1)
            out = out * kept[:, None] + tl.dot(p.to(b_v.dtype), b_v, input_precision="ieee")
            largest = larger
    total = tl.where(m_q, total, 1.0)
    tl.store(p_log_sum + i_nh.to(tl.int64) * T + o_q, largest + tl.log(total), m_q)
    _store(p_out, out / total[:, None], on, oh, od, ot, i_n, i_h, o_q, o_d, m_q, d)


@triton.jit
def _query_gradients(
    p_dout, p_q, p_k, p_v, p_bias, p_log_sum, p_met, p_dq, gn, gh, gd, gt, qn, qh, qd, qt, kn, kh, kd, kt,
    vn, vh, vd, vt, on, oh, od, ot, heads, D, H, W, d, wd, wh, ww, scale,
    BIAS: tl.constexpr, WINDOW: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries."""
    i_nh, T = tl.program_id(1), D * H * W
    i_n, i_h = i_nh // heads, i_nh % heads
    o_q, o_d = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.arange(0, BD)
    m_q = o_q < T
    b_q = _tokens(p_q, qn, qh, qd, qt, i_n, i_h, o_q, o_d, m_q, d)
    b_g = _tokens(p_dout, gn, gh, gd, gt, i_n, i_h, o_q, o_d, m_q, d)
    log_sum = tl.load(p_log_sum + i_nh.to(tl.int64) * T + o_q, m_q, other=0.0)
    met = tl.load(p_met + i_nh.to(tl.int64) * T + o_q, m_q, other=0.0)
    dq = tl.zeros((BQ, BD), tl.float32)
    first = tl.program_id(0) * BQ
    plane_0, plane_1, start_0, start_1, size = _reach_of_queries(
        first, tl.minimum(first + BQ, T) - 1, D, H, W, wd, wh, WINDOW
    )
    for plane in range(plane_0, plane_1):
        for start in range(start_0, start_1, BK):
            o_k = plane * size + start + tl.arange(0, BK)
            m_k = start + tl.arange(0, BK) < start_1
            b_k = _tokens(p_k, kn, kh, kd, kt, i_n, i_h, o_k, o_d, m_k, d)
            scores = _scores(b_q, b_k, o_q, o_k, m_q, m_k, p_bias, i_h, scale, D, H, W, wd, wh, ww, BIAS, WINDOW)
            p = tl.exp(scores - log_sum[:, None])
            b_v = _tokens(p_v, vn, vh, vd, vt, i_n, i_h, o_k, o_d, m_k, d)
            ds = p * (tl.dot(b_g, tl.trans(b_v), input_precision="ieee") - met[:, None])
            dq += tl.dot(ds.to(b_k.dtype), b_k, input_precision="ieee")
    _store(p_dq, dq * scale, on, oh, od, ot, i_n, i_h, o_q, o_d, m_q, d)


@triton.jit
def _key_gradients(
    p_dout, p_q, p_k, p_v, p_bias, p_log_sum, p_met, p_dk, p_dv, gn, gh, gd, gt, qn, qh, qd, qt, kn, kh, kd, kt,
    vn, vh, vd, vt, on, oh, od, ot, un, uh, ud, ut, heads, D, H, W, d, wd, wh, ww, scale,
    BIAS: tl.constexpr, WINDOW: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys."""
    i_nh, T = tl.program_id(1), D * H * W
    i_n, i_h = i_nh // heads, i_nh % heads
    o_k, o_d = tl.program_id(0) * BK + tl.arange(0, BK), tl.arange(0, BD)
    m_k = o_k < T
    b_k = _tokens(p_k, kn, kh, kd, kt, i_n, i_h, o_k, o_d, m_k, d)
    b_v = _tokens(p_v, vn, vh, vd, vt, i_n, i_h, o_k, o_d, m_k, d)
    dk = tl.zeros((BK, BD), tl.float32)
    dv = tl.zeros((BK, BD), tl.float32)
    first = tl.program_id(0) * BK
    plane_0, plane_1, start_0, start_1, size = _reach_of_keys(
        first, tl.minimum(first + BK, T) - 1, D, H, W, wd, wh, WINDOW
    )
    for plane in range(plane_0, plane_1):
        for start in range(start_0, start_1, BQ):
            o_q = plane * size + start + tl.arange(0, BQ)
            m_q = start + tl.arange(0, BQ) < start_1
            b_q = _tokens(p_q, qn, qh, qd, qt, i_n, i_h, o_q, o_d, m_q, d)
            b_g = _tokens(p_dout, gn, gh, gd, gt, i_n, i_h, o_q, o_d, m_q, d)
            log_sum = tl.load(p_log_sum + i_nh.to(tl.int64) * T + o_q, m_q, other=0.0)
            met = tl.load(p_met + i_nh.to(tl.int64) * T + o_q, m_q, other=0.0)
            scores = _scores(b_q, b_k, o_q, o_k, m_q, m_k, p_bias, i_h, scale, D, H, W, wd, wh, ww, BIAS, WINDOW)
            p = tl.exp(scores - log_sum[:, None])
            dv += tl.dot(tl.trans(p.to(b_g.dtype)), b_g, input_precision="ieee")
            ds = p * (tl.dot(b_g, tl.trans(b_v), input_precision="ieee") - met[:, None])
            dk += tl.dot(tl.trans(ds.to(b_q.dtype)), b_q, input_precision="ieee")
    _store(p_dk, dk * scale, on, oh, od, ot, i_n, i_h, o_k, o_d, m_k, d)
    _store(p_dv, dv, un, uh, ud, ut, i_n, i_h, o_k, o_d, m_k, d)


@triton.jit(do_not_specialize=["first_head"])
def _bias_gradients(
    p_dout, p_q, p_k, p_v, p_bias, p_log_sum, p_met, p_part, first_head, gn, gh, gd, gt, qn, qh, qd, qt,
    kn, kh, kd, kt, vn, vh, vd, vt, N, heads, D, H, W, d, wd, wh, ww, scale,
    WINDOW: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The bias's gradient at one distance in depth and in blocks of rows, from one block of columns to another.

    A tile has BR rows of BW queries, and of keys. Into [heads, 2 D - 1, 2 blocks of rows - 1, blocks, blocks, 2 BR - 1,
    BW, BW]: by the distance in rows within the tile, added up.
    """
    i_away, i_h, i_blocks = tl.program_id(0), first_head + tl.program_id(1), tl.program_id(2)
    row_blocks, blocks = tl.cdiv(H, BR), tl.cdiv(W, BW)
    away_d, away_b = i_away // (2 * row_blocks - 1) - (D - 1), i_away % (2 * row_blocks - 1) - (row_blocks - 1)
    row, column = tl.arange(0, BR * BW) // BW, tl.arange(0, BR * BW) % BW
    w_q, w_k = i_blocks // blocks * BW + column, i_blocks % blocks * BW + column
    apart = row[:, None] - row[None, :]
    away_h, away_w = away_b * BR + apart, w_q[:, None] - w_k[None, :]
    m_away = (away_h > -H) & (away_h < H) & (away_w > -W) & (away_w < W)
    place = i_h.to(tl.int64) * (2 * D - 1) + away_d + D - 1
    table = p_bias + place * ((2 * H - 1) * (2 * W - 1)) + (away_h + H - 1) * (2 * W - 1) + away_w + W - 1
    bias = tl.load(table, m_away, other=0.0).to(tl.float32)  # the same for all pairs of blocks
    gradients = tl.zeros((BR * BW, BR * BW), tl.float32)
    for i_n in range(N):
        for q_d in range(tl.maximum(away_d, 0), D + tl.minimum(away_d, 0)):
            for q_b in range(tl.maximum(away_b, 0), row_blocks + tl.minimum(away_b, 0)):
                h_q, h_k = q_b * BR + row, (q_b - away_b) * BR + row
                o_q, o_k = (q_d * H + h_q) * W + w_q, ((q_d - away_d) * H + h_k) * W + w_k
                m_q, m_k = (h_q < H) & (w_q < W), (h_k < H) & (w_k < W)
                n = tl.full((), i_n, tl.int64)
                products = tl.zeros((BR * BW, BR * BW), tl.float32)
                met_values = tl.zeros((BR * BW, BR * BW), tl.float32)  # dout . v
                for channel in range(0, d, BD):
                    o_d = channel + tl.arange(0, BD)
                    b_q = _tokens(p_q, qn, qh, qd, qt, n, i_h, o_q, o_d, m_q, d)
                    b_k = _tokens(p_k, kn, kh, kd, kt, n, i_h, o_k, o_d, m_k, d)
                    products += tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
                    b_g = _tokens(p_dout, gn, gh, gd, gt, n, i_h, o_q, o_d, m_q, d)
                    b_v = _tokens(p_v, vn, vh, vd, vt, n, i_h, o_k, o_d, m_k, d)
                    met_values += tl.dot(b_g, tl.trans(b_v), input_precision="ieee")
                first = (n * heads + i_h) * (D * H * W)
                log_sum = tl.load(p_log_sum + first + o_q, m_q, other=0.0)
                met = tl.load(p_met + first + o_q, m_q, other=0.0)
                m = m_q[:, None] & m_k[None, :]
                if WINDOW:
                    m &= _axis_seen(q_d + 0 * row, q_d - away_d + 0 * row, wd, D)
                    m &= _axis_seen(h_q, h_k, wh, H) & _axis_seen(w_q, w_k, ww, W)
                p = tl.where(m, tl.exp(products * scale + bias - log_sum[:, None]), 0.0)
                gradients += p * (met_values - met[:, None])
    place = (tl.program_id(1) * tl.num_programs(0) + i_away).to(tl.int64) * (blocks * blocks) + i_blocks
    p_own = p_part + place * ((2 * BR - 1) * BW * BW)
    o_w = tl.arange(0, BW)[:, None] * BW + tl.arange(0, BW)[None, :]
    for i in range(2 * BR - 1):
        own = tl.reshape(tl.where(apart == i - (BR - 1), gradients, 0.0), BR, BW, BR, BW)
        tl.store(p_own + i * (BW * BW) + o_w, tl.sum(tl.sum(own, 2), 0))


def forward(
    q: Tensor, k: Tensor, v: Tensor, grid: list[int], bias: Tensor | None, window: list[int], scale: float,
    out: Tensor, log_sum: Tensor,
) -> None:  # fmt: skip
    """Write the attended tokens and the logarithms of the softmax's denominators."""
    N, heads, d, T = q.shape
    strides = *q.stride(), *k.stride(), *v.stride(), *out.stride()

    def run(cut: Setting) -> None:
        _attend[(triton.cdiv(T, cut["BQ"]), N * heads)](
            q, k, v, q if bias is None else bias, out, log_sum, *strides, heads, *grid, d, *window, scale,
            BIAS=bias is not None, WINDOW=window != grid, **cut,
        )  # fmt: skip

    run(_cut("forward", q, grid, window, bias, tile_of("attend", d, q.dtype == torch.float32), run))


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, log_sum: Tensor, met: Tensor, grid: list[int], bias: Tensor | None,
    window: list[int], scale: float, dq: Tensor, dk: Tensor, dv: Tensor, dbias: Tensor | None,
) -> None:  # fmt: skip
    """Write all gradients; ``met`` is r of the formulas, (N, heads, T)."""
    N, heads, d, T = q.shape
    single = q.dtype == torch.float32
    tensors = dout, q, k, v, q if bias is None else bias, log_sum, met
    strides = *dout.stride(), *q.stride(), *k.stride(), *v.stride()
    rest = *grid, d, *window, scale
    ways = {"BIAS": bias is not None, "WINDOW": window != grid}

    def of_queries(cut: Setting) -> None:
        _query_gradients[(triton.cdiv(T, cut["BQ"]), N * heads)](
            *tensors, dq, *strides, *dq.stride(), heads, *rest, **ways, **cut
        )

    def of_keys(cut: Setting) -> None:
        _key_gradients[(triton.cdiv(T, cut["BK"]), N * heads)](
            *tensors, dk, dv, *strides, *dk.stride(), *dv.stride(), heads, *rest, **ways, **cut
        )

    of_queries(_cut("queries", q, grid, window, bias, tile_of("queries", d, single), of_queries))
    of_keys(_cut("keys", q, grid, window, bias, tile_of("keys", d, single), of_keys))
    if dbias is None:
        return
    D, H, W = grid
    cut = row_tile_of(d, W, single)
    rows, width = cut["BR"], cut["BW"]
    row_blocks, blocks = triton.cdiv(H, rows), triton.cdiv(W, width)
    shape = 2 * D - 1, 2 * row_blocks - 1, blocks, blocks, 2 * rows - 1, width, width
    at_once = max(1, _PART // (4 * math.prod(shape)))
    for first in range(0, heads, at_once):
        part = q.new_empty((min(at_once, heads - first), *shape), dtype=torch.float32)
        _bias_gradients[(shape[0] * shape[1], part.shape[0], blocks * blocks)](
            *tensors, part, first, *strides, N, heads, *rest, WINDOW=window != grid, **cut
        )
        dbias[first : first + part.shape[0]].copy_(_by_distance(part, H, W))


def _cut(
    what: str, q: Tensor, grid: list[int], window: list[int], bias: Tensor | None, default: Setting,
    run: Callable[[Setting], object],
) -> Setting:  # fmt: skip
    """Sides of a tile and options of the launch: the default, or what was found faster on this device."""
    sides = (32, 32, 4), (32, 64, 4), (64, 32, 4), (64, 64, 4), (64, 64, 8), (128, 64, 8)
    others = [{**default, "BQ": rows, "BK": keys, "num_warps": warps, "maxnreg": _ALL} for rows, keys, warps in sides]
    candidates = [default, *(other for other in others if other != default)]
    kind = (what, *q.shape, *grid, *window, bias is not None, q.dtype, q.stride(3) == 1)
    return setting("attention3d", kind, candidates, q.device, run)


def _by_distance(part: Tensor, H: int, W: int) -> Tensor:
    """The tiles, added up by distance in rows and columns: [heads, 2 D - 1, 2 H - 1, 2 W - 1]."""
    blocks, width = part.shape[4], part.shape[-1]
    # Column j of row i is put i further to the right, and is then at its distance, i - j + width - 1.
    skewed = F.pad(part.flip(-1), (0, width)).flatten(-2)[..., :-width].unflatten(-1, (width, 2 * width - 1))
    diagonals = skewed.sum(-2)  # [heads, 2 D - 1, 2 blocks of rows - 1, blocks, blocks, 2 rows - 1, 2 width - 1]
    reach = width * blocks  # distances from 1 - reach to reach - 1; those beyond W hold nothing
    found = part.new_zeros((*part.shape[:3], part.shape[5], 2 * reach - 1))
    for i in range(blocks):
        for j in range(blocks):
            first = (i - j) * width - (width - 1) + reach - 1
            found[..., first : first + 2 * width - 1] += diagonals[:, :, :, i, j]
    rows = (part.shape[5] + 1) // 2
    high = rows * (part.shape[2] + 1) // 2
    total = part.new_zeros((*part.shape[:2], 2 * high - 1, 2 * reach - 1))
    for i in range(2 * rows - 1):  # within a tile; from one block of rows to the next it is rows further
        total[:, :, i : 2 * high - 2 * rows + 1 + i : rows] += found[:, :, :, i]
    return total[:, :, high - H : high + H - 1, reach - W : reach + W - 1]


_PART = 2**25  # bytes of the bias's gradient by tile, for as many heads at once; adding them up takes four times that

_WIDEST = 256  # channels of a head; a wider one's tiles don't fit into the registers

# Registers that a thread can have. Where a launch names no bound, the assembler aims at a number of programs side by
# side, and spills to reach it with registers to spare.
_ALL = 255

# Queries, keys, warps, stages of loads and bound on registers by the kernel and the widest head. No target spills, with
# Triton 3.9 not at a tenth fewer registers either. A bound of 128 lets two programs of 8 warps share a multiprocessor.
# In float32 there are no matrix units, and a thread holds whole rows of its operands: fewer loads are kept in flight,
# and heads of more than 128 channels leave room for the smallest tile alone. There the gradients of queries keep two
# loads in flight: with one, both rows of a query are held in registers from the first key to the last, and spill.
_TILES = {
    ("attend", True): {64: (32, 32, 8, 1, 128), 128: (32, 16, 8, 1, _ALL), 256: (16, 16, 8, 1, _ALL)},
    ("queries", True): {64: (32, 32, 8, 2, 128), 128: (32, 16, 8, 2, _ALL), 256: (16, 16, 8, 2, _ALL)},
    ("keys", True): {64: (32, 32, 8, 1, _ALL), 128: (32, 16, 8, 1, _ALL), 256: (16, 16, 8, 1, _ALL)},
    ("attend", False): {
        32: (64, 64, 8, 3, _ALL),
        128: (64, 32, 8, 3, _ALL),
        256: (32, 32, 8, 2, _ALL),
    },
    ("queries", False): {
        32: (64, 64, 8, 3, _ALL),
        64: (64, 32, 4, 3, _ALL),
        128: (32, 32, 8, 3, _ALL),
        256: (16, 32, 8, 3, _ALL),
    },
    ("keys", False): {
        16: (64, 64, 8, 3, _ALL),
        64: (64, 32, 8, 3, _ALL),
        128: (32, 32, 8, 3, _ALL),
        256: (16, 32, 8, 3, _ALL),
    },
}


def tile_of(kernel: str, d: int, single: bool) -> Setting:
    """Sides of a tile and options of the launch, for "attend", "queries" or "keys" and a head's channels."""
    width = _width(d)
    queries, keys, warps, stages, registers = next(
        tile for widest, tile in _TILES[kernel, single].items() if width <= widest
    )
    return {
        "BQ": queries, "BK": keys, "BD": width, "num_warps": warps, "num_stages": stages, "maxnreg": registers
    }  # fmt: skip


def row_tile_of(d: int, W: int, single: bool) -> Setting:
    """Rows and columns of the tile of queries, and of keys, channels at once, and options of the launch."""
    tokens, channels, warps, stages = (32, 16, 8, 2) if single else (64, 32, 4, 1)
    columns = min(triton.next_power_of_2(W), tokens)
    return {
        "BR": tokens // columns, "BW": columns, "BD": min(_width(d), channels),
        "num_warps": warps, "num_stages": stages, "maxnreg": _ALL,
    }  # fmt: skip


def _width(d: int) -> int:
    """Channels of a tile: a matrix product's sides are powers of two, and 16 at least."""
    return max(16, triton.next_power_of_2(d))


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take tokens, or None."""
    if x.ndim == 4 and x.shape[2] > _WIDEST:
        return f"its kernels take heads of up to {_WIDEST} channels, not {x.shape[2]}"
    return wrong_dtype(x)


def configurations() -> Iterator[Configuration]:
    """16 x 16 x 16 tokens with and without bias, 16 x 32 x 32 in windows of 1 x 7 x 7; narrow, usual, wide heads."""
    for pointer in ("*fp32", "*bf16"):
        single = pointer == "*fp32"
        for d in (8, 64, 128, 256) if single else (8, 64, 256):
            for grid, window, bias in (((16, 16, 16), None, True), ((16, 32, 32), (1, 7, 7), False)):
                T = grid[0] * grid[1] * grid[2]
                strides = {"n": 8 * d * T, "h": d * T, "d": T, "t": 1}
                named: dict[str, object] = {f"{x}{axis}": stride for x in "gqkvou" for axis, stride in strides.items()}
                named |= dict.fromkeys(("p_log_sum", "p_met", "p_part"), "*fp32")
                named |= dict(zip(("wd", "wh", "ww"), window or grid, strict=True))
                named |= dict(zip("DHW", grid, strict=True))
                named |= {"N": 2, "heads": 8, "d": d, "scale": d**-0.5, "BIAS": bias, "WINDOW": window is not None}
                named["first_head"] = 0
                cuts = {_attend: tile_of("attend", d, single), _query_gradients: tile_of("queries", d, single)}
                cuts |= {_key_gradients: tile_of("keys", d, single)}
                if bias:
                    cuts[_bias_gradients] = row_tile_of(d, grid[2], single)
                for kernel, cut in cuts.items():
                    own = {**named, **cut}
                    arguments = {name: own.get(name, pointer) for name in kernel.arg_names}
                    options = cut["num_warps"], cut["num_stages"], cut["maxnreg"]
                    yield Configuration("attention3d", kernel, arguments, *options)
