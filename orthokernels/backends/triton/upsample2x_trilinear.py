"""Trilinear doubling in Triton, both directions, both memory formats.

Bytes, of a small volume of B bytes: 9 B in either direction (B and 8 B, each once).

A program has a tile of a row (backward, of two), columns by channels, and walks through the slices. Forward, it doubles
the 3 x 3 neighbours within a slice along width and height, and makes the two outputs between a slice and the one before
out of both: 9 loads a voxel, where its 27 neighbours would be 27. Backward, it brings 6 x 4 gradients of a slice of the
large volume together for its two rows, each slice once: 24 loads a voxel, where 4 x 4 x 4 would be 64. What is loaded
again comes from the cache. Instructions bound these kernels as bytes do: places of columns and channels are computed
once, 64 bits wide, and a load adds the offset of its slice and row.

Where channels come last, a thread has eight of them and loads them as one vector. Where they come first it has four
columns, which are one vector too; their neighbours within the four are there already, and two more are loaded. The
outputs along the width then lie next to each other, and ``tl.interleave`` writes them as one run. Nothing was timed on
a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import triton
import triton.language as tl
from torch import Tensor

from orthokernels.backends.triton.configuration import Configuration
from orthokernels.backends.triton.volumes import processors, wrong_dtype

_TILE = 1024  # elements of a tile, at most
_WARPS = 4


@triton.jit
def _cut(C, D, H, W, depth, BW: tl.constexpr, BC: tl.constexpr):
    """A program's part of a volume: sample, first slice and the one behind the last, row, first column and channel."""
    tiles = tl.cdiv(W, BW)
    i_part, i_n = tl.program_id(0), tl.program_id(2)
    first = i_part // (tiles * H) * depth
    return (
        i_n, first, tl.minimum(first + depth, D), i_part // tiles % H, i_part % tiles * BW, tl.program_id(1) * BC
    )  # fmt: skip


@triton.jit
def _columns(first, step, LENGTH: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    o = first + step * tl.arange(0, LENGTH)
    return o[:, None] if CHANNELS_LAST else o[None, :]


@triton.jit
def _channels(first, LENGTH: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    o = first + tl.arange(0, LENGTH)
    return o[None, :] if CHANNELS_LAST else o[:, None]


@triton.jit
def _tile(p, i_n, o_w, o_c, C, D, H, W, CHANNELS_LAST: tl.constexpr):
    """Where columns and channels of a volume's first row are: 64 bits wide, once for all rows."""
    p += i_n.to(tl.int64) * C * D * H * W
    if CHANNELS_LAST:
        return p + (o_w.to(tl.int64) * C + o_c)
    return p + (o_c.to(tl.int64) * D * H * W + o_w)


@triton.jit
def _row(d, h, C, H, W, CHANNELS_LAST: tl.constexpr):
    """How far behind the first row another one is."""
    row = (tl.cast(d, tl.int64) * H + h) * W
    return row * C if CHANNELS_LAST else row


@triton.jit
def _load(p, mask):
    return tl.load(p, mask).to(tl.float32)


@triton.jit
def _fours(x):
    """A tile [BC, BW] as four [BC, BW / 4]. A thread has runs of four columns: nothing is moved between threads."""
    even, odd = tl.split(tl.reshape(x, x.shape[0], x.shape[1] // 4, 2, 2))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _of_fours(x0, x1, x2, x3):
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), x0.shape[0], x0.shape[1] * 4)


@triton.jit
def _before(x, edge):
    """The columns before a tile's own; those before each run of four are given, [BC, BW / 4]."""
    x0, x1, x2, _ = _fours(x)
    return _of_fours(edge, x0, x1, x2)


@triton.jit
def _after(x, edge, o_e, W, WHOLE: tl.constexpr):
    """The columns behind a tile's own; those behind each run of four, or behind the last column, are given."""
    _, x1, x2, x3 = _fours(x)
    if not WHOLE:  # the volume ends within a run of four
        left = W - 1 - o_e
        x1, x2, x3 = tl.where(left < 1, edge, x1), tl.where(left < 2, edge, x2), tl.where(left < 3, edge, x3)
    return _of_fours(x1, x2, x3, edge)


@triton.jit
def _doubled_slice(
    p_x, p_before, p_after, d, h, o_e, C, H, W, mask, mask_e, CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr
):  # fmt: skip
    """A slice doubled along height and width around a row's voxels: zHW, 0 before a voxel's middle, 1 behind."""
    row0 = _row(d, tl.maximum(h - 1, 0), C, H, W, CHANNELS_LAST)
    row1, row2 = _row(d, h, C, H, W, CHANNELS_LAST), _row(d, tl.minimum(h + 1, H - 1), C, H, W, CHANNELS_LAST)
    even0, odd0 = _doubled_row(p_x + row0, p_before + row0, p_after + row0, o_e, W, mask, mask_e, CHANNELS_LAST, WHOLE)
    even1, odd1 = _doubled_row(p_x + row1, p_before + row1, p_after + row1, o_e, W, mask, mask_e, CHANNELS_LAST, WHOLE)
    even2, odd2 = _doubled_row(p_x + row2, p_before + row2, p_after + row2, o_e, W, mask, mask_e, CHANNELS_LAST, WHOLE)
    # Shares of 0 are left out, not multiplied: 0 times an infinite neighbour is not 0.
    even1, odd1 = 0.75 * even1, 0.75 * odd1
    return 0.25 * even0 + even1, 0.25 * odd0 + odd1, 0.25 * even2 + even1, 0.25 * odd2 + odd1


@triton.jit
def _doubled_row(p, p_before, p_after, o_e, W, mask, mask_e, CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr):
    here, before, after = _load(p, mask), _load(p_before, mask_e), _load(p_after, mask_e)
    if not CHANNELS_LAST:
        before, after = _before(here, before), _after(here, after, o_e, W, WHOLE)
    here = 0.75 * here
    return 0.25 * before + here, 0.25 * after + here


@triton.jit
def _forward(
    p_x, p_y, C, D, H, W, depth,
    CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    RUN: tl.constexpr = 1 if CHANNELS_LAST else 4
    i_n, first, last, h, w, c = _cut(C, D, H, W, depth, BW, BC)
    o_w, o_e = _columns(w, 1, BW, CHANNELS_LAST), _columns(w, RUN, BW // RUN, CHANNELS_LAST)
    o_y = 2 * o_w if CHANNELS_LAST else _columns(2 * w, 1, 2 * BW, CHANNELS_LAST)
    o_c = _channels(c, BC, CHANNELS_LAST)
    mask, mask_e, mask_y = (o_w < W) & (o_c < C), (o_e < W) & (o_c < C), (o_y < 2 * W) & (o_c < C)
    p_before = _tile(p_x, i_n, tl.maximum(o_e - 1, 0), o_c, C, D, H, W, CHANNELS_LAST)
    p_after = _tile(p_x, i_n, tl.minimum(o_e + RUN, W - 1), o_c, C, D, H, W, CHANNELS_LAST)
    p_x = _tile(p_x, i_n, o_w, o_c, C, D, H, W, CHANNELS_LAST)
    p_y = _tile(p_y, i_n, o_y, o_c, C, 2 * D, 2 * H, 2 * W, CHANNELS_LAST)
    y00, y01, y10, y11 = _doubled_slice(
        p_x, p_before, p_after, tl.maximum(first - 1, 0), h, o_e, C, H, W, mask, mask_e, CHANNELS_LAST, WHOLE
    )
    for d in range(first, last + 1):  # the outputs between the middles of slices d - 1 and d
        z00, z01, z10, z11 = y00, y01, y10, y11
        if (d > 0) & (d < D):  # beyond its ends the volume goes on as it is there
            z00, z01, z10, z11 = _doubled_slice(
                p_x, p_before, p_after, d, h, o_e, C, H, W, mask, mask_e, CHANNELS_LAST, WHOLE
            )
        if d > first:
            place = p_y + _row(2 * d - 1, 2 * h, C, 2 * H, 2 * W, CHANNELS_LAST)
            below = place + _row(0, 1, C, 2 * H, 2 * W, CHANNELS_LAST)
            _store_pair(place, 0.75 * y00 + 0.25 * z00, 0.75 * y01 + 0.25 * z01, C, mask_y, CHANNELS_LAST)
            _store_pair(below, 0.75 * y10 + 0.25 * z10, 0.75 * y11 + 0.25 * z11, C, mask_y, CHANNELS_LAST)
        if d < last:
            place = p_y + _row(2 * d, 2 * h, C, 2 * H, 2 * W, CHANNELS_LAST)
            below = place + _row(0, 1, C, 2 * H, 2 * W, CHANNELS_LAST)
            _store_pair(place, 0.25 * y00 + 0.75 * z00, 0.25 * y01 + 0.75 * z01, C, mask_y, CHANNELS_LAST)
            _store_pair(below, 0.25 * y10 + 0.75 * z10, 0.25 * y11 + 0.75 * z11, C, mask_y, CHANNELS_LAST)
        y00, y01, y10, y11 = z00, z01, z10, z11


@triton.jit
def _store_pair(p, even, odd, C, mask, CHANNELS_LAST: tl.constexpr):
    """The two outputs along the width, of a row of the large volume."""
    even, odd = even.to(p.dtype.element_ty), odd.to(p.dtype.element_ty)
    if CHANNELS_LAST:
        tl.store(p, even, mask)
        tl.store(p + C, odd, mask)
    else:
        tl.store(p, tl.interleave(even, odd), mask)


@triton.jit
def _gathered_slice(
    p_dy, p_before, p_after, d, h, o_e, C, H, W, mask, mask_e, mask_x,
    CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """What the voxels of rows h and h + 1 get from a slice of the large volume, whose sides are 2 H and 2 W."""
    upper = tl.zeros(mask_x.shape, tl.float32)
    lower = tl.zeros(mask_x.shape, tl.float32)
    for j in tl.static_range(6):
        row = _row(d, tl.minimum(tl.maximum(2 * h + (j - 1), 0), 2 * H - 1), C, 2 * H, 2 * W, CHANNELS_LAST)
        found = _gathered_row(p_dy + row, p_before + row, p_after + row, o_e, C, W, mask, mask_e, CHANNELS_LAST, WHOLE)
        if j < 4:
            upper += (0.1875 if j == 1 or j == 2 else 0.0625) * found
        if j > 1:
            lower += (0.1875 if j == 3 or j == 4 else 0.0625) * found
    return upper, lower


@triton.jit
def _gathered_row(p, p_before, p_after, o_e, C, W, mask, mask_e, CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr):
    """Four times what voxels get from a row of the large volume."""
    before, after = _load(p_before, mask_e), _load(p_after, mask_e)
    if CHANNELS_LAST:
        even, odd = _load(p, mask), _load(p + C, mask)
    else:
        both = _load(p, mask)
        even, odd = tl.split(tl.reshape(both, both.shape[0], both.shape[1] // 2, 2))
        before, after = _before(odd, before), _after(even, after, o_e, W, WHOLE)
    return 3.0 * (even + odd) + (before + after)


@triton.jit
def _backward(
    p_dy, p_dx, C, D, H, W, depth,
    CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    RUN: tl.constexpr = 1 if CHANNELS_LAST else 4
    i_n, first, last, h, w, c = _cut(C, D, tl.cdiv(H, 2), W, depth, BW, BC)
    h *= 2
    o_w, o_e = _columns(w, 1, BW, CHANNELS_LAST), _columns(w, RUN, BW // RUN, CHANNELS_LAST)
    o_y = 2 * o_w if CHANNELS_LAST else _columns(2 * w, 1, 2 * BW, CHANNELS_LAST)
    o_c = _channels(c, BC, CHANNELS_LAST)
    mask, mask_e, mask_y = (o_w < W) & (o_c < C), (o_e < W) & (o_c < C), (o_y < 2 * W) & (o_c < C)
    p_before = _tile(p_dy, i_n, tl.maximum(2 * o_e - 1, 0), o_c, C, 2 * D, 2 * H, 2 * W, CHANNELS_LAST)
    p_after = _tile(p_dy, i_n, tl.minimum(2 * (o_e + RUN), 2 * W - 1), o_c, C, 2 * D, 2 * H, 2 * W, CHANNELS_LAST)
    p_dy = _tile(p_dy, i_n, o_y, o_c, C, 2 * D, 2 * H, 2 * W, CHANNELS_LAST)
    p_dx = _tile(p_dx, i_n, o_w, o_c, C, D, H, W, CHANNELS_LAST)
    so_far0 = tl.zeros(mask.shape, tl.float32)
    so_far1 = tl.zeros(mask.shape, tl.float32)
    for d in range(first, last + 1):  # the large volume's slices between the middles of slices d - 1 and d
        behind0, behind1 = _gathered_slice(
            p_dy, p_before, p_after, tl.minimum(2 * d, 2 * D - 1), h, o_e, C, H, W, mask_y, mask_e, mask,
            CHANNELS_LAST, WHOLE,
        )  # fmt: skip
        before0, before1 = behind0, behind1
        if (d > 0) & (d < D):  # beyond its ends the volume goes on as it is there
            before0, before1 = _gathered_slice(
                p_dy, p_before, p_after, 2 * d - 1, h, o_e, C, H, W, mask_y, mask_e, mask, CHANNELS_LAST, WHOLE
            )
        if d > first:
            place = p_dx + _row(d - 1, h, C, H, W, CHANNELS_LAST)
            below = place + _row(0, 1, C, H, W, CHANNELS_LAST)
            total0 = so_far0 + (0.75 * before0 + 0.25 * behind0)
            total1 = so_far1 + (0.75 * before1 + 0.25 * behind1)
            tl.store(place, total0.to(p_dx.dtype.element_ty), mask)
            if h + 1 < H:
                tl.store(below, total1.to(p_dx.dtype.element_ty), mask)
        so_far0, so_far1 = 0.25 * before0 + 0.75 * behind0, 0.25 * before1 + 0.75 * behind1


def forward(x: Tensor, y: Tensor) -> None:
    """Write y, in x's layout."""
    _launch(_forward, x, x, y)


def backward(dy: Tensor, dx: Tensor) -> None:
    """Write dx, in dy's layout."""
    _launch(_backward, dx, dy, dx)


def _launch(kernel: triton.JITFunction, small: Tensor, source: Tensor, result: Tensor) -> None:
    N, C, D, H, W = small.shape
    channels_last = not source.is_contiguous()
    tile = tile_of(C, W, channels_last)
    rows = triton.cdiv(W, tile["BW"]) * (H if kernel is _forward else triton.cdiv(H, 2))
    blocks = triton.cdiv(C, tile["BC"])
    depth = depth_of(D, rows * blocks * N, processors(small.device))
    grid = rows * triton.cdiv(D, depth), blocks, N
    flags = {"CHANNELS_LAST": channels_last, "WHOLE": W % 4 == 0}
    kernel[grid](source, result, C, D, H, W, depth, **flags, **tile, num_warps=_WARPS)


def tile_of(C: int, W: int, channels_last: bool) -> dict[str, int]:
    """Sides of a tile, powers of two, the axis that is contiguous in memory first served."""
    if channels_last:
        channels = min(triton.next_power_of_2(C), 128)
        return {"BW": min(triton.next_power_of_2(W), _TILE // channels), "BC": channels}
    # Twice as many would be moved through shared memory, to be written as vectors.
    along = max(4, min(triton.next_power_of_2(W), 256))  # whole runs of four
    return {"BW": along, "BC": min(triton.next_power_of_2(C), _TILE // 2 // along)}


def depth_of(D: int, others: int, processors: int) -> int:
    """Slices that a program walks through: all, where three programs a multiprocessor are left."""
    return triton.cdiv(D, min(D, triton.cdiv(3 * processors, others)))


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take a volume, or None."""
    return wrong_dtype(x)


def configurations() -> Iterator[Configuration]:
    """The kernels as the published network calls them: half of the full volume's sides, 64 channels."""
    C, sides = 64, (8, 128, 128)
    for kernel, pointer, channels_last in product((_forward, _backward), ("*fp32", "*bf16"), (False, True)):
        tile = tile_of(C, sides[2], channels_last)
        arguments = [pointer, pointer, C, *sides, 8, channels_last, True, tile["BW"], tile["BC"]]
        yield Configuration("upsample2x_trilinear", kernel, dict(zip(kernel.arg_names, arguments, strict=True)), _WARPS)
