"""Trilinear doubling in Triton, both directions, both memory formats.

Bytes, of a small volume of B bytes: 9 B in either direction (B and 8 B, each once).

A program takes a tile of the small volume, voxels by channels. Forward, the 27 neighbours of a voxel make its 8
outputs: 3.4 loads an output, where a program an output would take 8, which is what a multiprocessor's cache can just
not deliver while memory is read at its rate. Backward, a voxel gathers 4 x 4 x 4 gradients; neighbours are 2 apart, so
a gradient is asked for 8 times, from the cache for all but one. Neither was timed on a GPU yet.

Where channels come first, the two outputs along the width lie next to each other; ``tl.interleave`` writes them as one
run.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import triton
import triton.language as tl
from torch import Tensor

from orthokernels.backends.triton.configuration import Configuration
from orthokernels.backends.triton.volumes import offset, wrong_dtype

_TILE = 512  # elements of a tile, at most
_WARPS = 4


@triton.jit
def _forward(p_x, p_y, C, D, H, W, CHANNELS_LAST: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr):
    i_n = tl.program_id(2)
    o_v = (tl.program_id(0) * BV + tl.arange(0, BV))[:, None]
    o_c = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    mask = (o_v < D * H * W) & (o_c < C)
    w, h, d = o_v % W, (o_v // W) % H, o_v // (W * H)
    y000 = tl.zeros((BV, BC), tl.float32)  # yDHW: 0 is the output before the voxel's middle, 1 the one behind
    y001, y010, y011, y100, y101, y110, y111 = y000, y000, y000, y000, y000, y000, y000
    # Shares of 0 are left out, not multiplied: 0 times an infinite neighbour is not 0.
    for i in tl.static_range(3):
        plane = tl.minimum(tl.maximum(d + (i - 1), 0), D - 1)
        even0, odd0, even1, odd1 = _rows(p_x, i_n, o_c, plane, h, w, C, D, H, W, mask, CHANNELS_LAST, BV, BC)
        if i < 2:
            share = 0.25 if i == 0 else 0.75
            y000 += share * even0
            y001 += share * odd0
            y010 += share * even1
            y011 += share * odd1
        if i > 0:
            share = 0.25 if i == 2 else 0.75
            y100 += share * even0
            y101 += share * odd0
            y110 += share * even1
            y111 += share * odd1
    _store_pair(p_y, y000, y001, i_n, o_c, 2 * d, 2 * h, w, C, D, H, W, mask, CHANNELS_LAST, BV, BC)
    _store_pair(p_y, y010, y011, i_n, o_c, 2 * d, 2 * h + 1, w, C, D, H, W, mask, CHANNELS_LAST, BV, BC)
    _store_pair(p_y, y100, y101, i_n, o_c, 2 * d + 1, 2 * h, w, C, D, H, W, mask, CHANNELS_LAST, BV, BC)
    _store_pair(p_y, y110, y111, i_n, o_c, 2 * d + 1, 2 * h + 1, w, C, D, H, W, mask, CHANNELS_LAST, BV, BC)


@triton.jit
def _rows(p_x, i_n, o_c, d, h, w, C, D, H, W, mask, CHANNELS_LAST: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr):
    """A plane doubled along height and width around each voxel: the row before its middle, then the one behind."""
    even0 = tl.zeros((BV, BC), tl.float32)
    odd0, even1, odd1 = even0, even0, even0
    for j in tl.static_range(3):
        row = tl.minimum(tl.maximum(h + (j - 1), 0), H - 1)
        before = _load(p_x, i_n, o_c, d, row, tl.maximum(w - 1, 0), C, D, H, W, mask, CHANNELS_LAST)
        here = _load(p_x, i_n, o_c, d, row, w, C, D, H, W, mask, CHANNELS_LAST)
        after = _load(p_x, i_n, o_c, d, row, tl.minimum(w + 1, W - 1), C, D, H, W, mask, CHANNELS_LAST)
        even = 0.25 * before + 0.75 * here
        odd = 0.75 * here + 0.25 * after
        if j < 2:
            share = 0.25 if j == 0 else 0.75
            even0 += share * even
            odd0 += share * odd
        if j > 0:
            share = 0.25 if j == 2 else 0.75
            even1 += share * even
            odd1 += share * odd
    return even0, odd0, even1, odd1


@triton.jit
def _load(p_x, i_n, o_c, d, h, w, C, D, H, W, mask, CHANNELS_LAST: tl.constexpr):
    return tl.load(p_x + offset(i_n, o_c, d, h, w, C, D, H, W, CHANNELS_LAST), mask, other=0.0).to(tl.float32)


@triton.jit
def _store_pair(
    p_y, even, odd, i_n, o_c, d, h, w, C, D, H, W, mask,
    CHANNELS_LAST: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The two outputs along the width, of the large volume's row (d, h)."""
    even, odd = even.to(p_y.dtype.element_ty), odd.to(p_y.dtype.element_ty)
    place = p_y + offset(i_n, o_c, d, h, 2 * w, C, 2 * D, 2 * H, 2 * W, CHANNELS_LAST)  # [BV, BC]
    if CHANNELS_LAST:
        tl.store(place, even, mask)
        tl.store(place + C, odd, mask)
    else:
        places = tl.interleave(tl.trans(place), tl.trans(place + 1))  # [BC, 2 BV]
        both = tl.interleave(tl.trans(even), tl.trans(odd))
        tl.store(places, both, tl.interleave(tl.trans(mask), tl.trans(mask)))


@triton.jit
def _backward(p_dy, p_dx, C, D, H, W, CHANNELS_LAST: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr):
    i_n = tl.program_id(2)
    o_v = (tl.program_id(0) * BV + tl.arange(0, BV))[:, None]
    o_c = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    mask = (o_v < D * H * W) & (o_c < C)
    w, h, d = o_v % W, (o_v // W) % H, o_v // (W * H)
    total = tl.zeros((BV, BC), tl.float32)
    for i in tl.static_range(4):
        plane = tl.minimum(tl.maximum(2 * d + (i - 1), 0), 2 * D - 1)
        of_plane = tl.zeros((BV, BC), tl.float32)
        for j in tl.static_range(4):
            row = tl.minimum(tl.maximum(2 * h + (j - 1), 0), 2 * H - 1)
            of_row = tl.zeros((BV, BC), tl.float32)
            for k in tl.static_range(4):
                column = tl.minimum(tl.maximum(2 * w + (k - 1), 0), 2 * W - 1)
                dy = _load(p_dy, i_n, o_c, plane, row, column, C, 2 * D, 2 * H, 2 * W, mask, CHANNELS_LAST)
                of_row += (0.75 if k == 1 or k == 2 else 0.25) * dy
            of_plane += (0.75 if j == 1 or j == 2 else 0.25) * of_row
        total += (0.75 if i == 1 or i == 2 else 0.25) * of_plane
    place = p_dx + offset(i_n, o_c, d, h, w, C, D, H, W, CHANNELS_LAST)
    tl.store(place, total.to(p_dx.dtype.element_ty), mask)


def forward(x: Tensor, y: Tensor) -> None:
    """Write y, in x's layout."""
    _launch(_forward, x, x, y)


def backward(dy: Tensor, dx: Tensor) -> None:
    """Write dx, in dy's layout."""
    _launch(_backward, dx, dy, dx)


def _launch(kernel: triton.JITFunction, small: Tensor, source: Tensor, result: Tensor) -> None:
    N, C, D, H, W = small.shape
    channels_last = not source.is_contiguous()
    tile = tile_of(C, D * H * W, channels_last, kernel is _backward)
    grid = triton.cdiv(D * H * W, tile["BV"]), triton.cdiv(C, tile["BC"]), N
    kernel[grid](source, result, C, D, H, W, CHANNELS_LAST=channels_last, **tile, num_warps=_WARPS)


def tile_of(C: int, voxels: int, channels_last: bool, backward: bool) -> dict[str, int]:
    """Sides of a tile, powers of two, the axis that is contiguous in memory first served."""
    # The largest at which nothing spills, for any of the three targets and two compilers that were tried.
    elements = _TILE // 2 if channels_last != backward else _TILE
    if channels_last:
        channels = min(triton.next_power_of_2(C), 128)
        return {"BV": elements // channels, "BC": channels}
    along = min(triton.next_power_of_2(voxels), elements)
    return {"BV": along, "BC": min(triton.next_power_of_2(C), elements // along)}


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take a volume, or None."""
    return wrong_dtype(x)


def configurations() -> Iterator[Configuration]:
    """The kernels as the published network calls them: half of the full volume's sides, 64 channels."""
    C, sides = 64, (8, 128, 128)
    for kernel, pointer, channels_last in product((_forward, _backward), ("*fp32", "*bf16"), (False, True)):
        tile = tile_of(C, sides[0] * sides[1] * sides[2], channels_last, kernel is _backward)
        arguments = [pointer, pointer, C, *sides, channels_last, tile["BV"], tile["BC"]]
        yield Configuration("upsample2x_trilinear", kernel, dict(zip(kernel.arg_names, arguments, strict=True)), _WARPS)
