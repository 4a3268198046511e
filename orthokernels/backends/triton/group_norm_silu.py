"""Group normalisation, FiLM and SiLU in Triton, forward and backward, both memory formats.

A volume is (N, C, L), L voxels. Formulas and names are those of ``ops.group_norm_silu``.

Bytes, of a volume of B bytes (all else is small):

    forward     2 B read, 1 B written: moments, then the map (and each chunk's first tile twice in a row, for its pivot)
    backward    4 B read, 1 B written: x and dy for the sums, both again for the gradient

That is what they move; no time was taken on a GPU yet.

Every pass is cut along L into chunks that are as many as fill the device, whatever N and the groups are; what is per
channel is read and folded once a chunk. A chunk that is summed leaves its own numbers in its own place, and one small
kernel adds them up in the order of the chunks: no atomics, two runs give the same bytes.

Moments are taken per channel about a pivot, the mean of the chunk's first tile, and brought together by Chan, Golub and
LeVeque's formula: sums of squares about zero lose the digits of a volume whose mean is a thousand deviations. The time
embedding (``shift``) moves a channel's mean and leaves its deviation, so it is added to the moments and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthokernels.backends.triton.configuration import Configuration
from orthokernels.backends.triton.tuning import Setting, setting
from orthokernels.backends.triton.volumes import processors, wrong_dtype

_TILE = 2048  # elements of a tile, 16 a thread
_WARPS = 4
_WALK = 8  # tiles, at most, for which a map reads its channels' parameters once


@triton.jit
def _load(p_x, p_skip, i_n, o_c, o_l, C1, C2, L, mask, CHANNELS_LAST: tl.constexpr, SKIP: tl.constexpr):
    """A tile [BL, BC] of the volume as float32; behind channel C1 it comes from the second tensor."""
    value = tl.load(_places(p_x, i_n, o_c, o_l, C1, L, CHANNELS_LAST), mask & (o_c < C1)[None, :], other=0.0)
    value = value.to(tl.float32)
    if SKIP:
        places = _places(p_skip, i_n, o_c - C1, o_l, C2, L, CHANNELS_LAST)
        value += tl.load(places, mask & (o_c >= C1)[None, :], other=0.0).to(tl.float32)
    return value


@triton.jit
def _store(p_x, p_skip, value, i_n, o_c, o_l, C1, C2, L, mask, CHANNELS_LAST: tl.constexpr, SKIP: tl.constexpr):
    """The way back of ``_load``."""
    value = value.to(p_x.dtype.element_ty)
    tl.store(_places(p_x, i_n, o_c, o_l, C1, L, CHANNELS_LAST), value, mask & (o_c < C1)[None, :])
    if SKIP:
        tl.store(_places(p_skip, i_n, o_c - C1, o_l, C2, L, CHANNELS_LAST), value, mask & (o_c >= C1)[None, :])


@triton.jit
def _places(p_x, i_n, o_c, o_l, C, L, CHANNELS_LAST: tl.constexpr):
    """Pointers [BL, BC]; offsets are 64 bits wide, a volume may have more than 2^31 elements."""
    p_n = p_x + i_n.to(tl.int64) * C * L
    if CHANNELS_LAST:
        return p_n + (o_l.to(tl.int64) * C)[:, None] + o_c[None, :]
    return p_n + (o_c.to(tl.int64) * L)[None, :] + o_l[:, None]


@triton.jit
def _per_channel(p, i_n, o_c, C, ROW: tl.constexpr, OFFSET: tl.constexpr, GIVEN: tl.constexpr):
    """Numbers [BC] of a row of a (N, ROW C) tensor, from column OFFSET C on; zeros where it was not given."""
    if GIVEN:
        return tl.load(p + i_n * ROW * C + OFFSET * C + o_c, o_c < C, other=0.0).to(tl.float32)
    return tl.zeros(o_c.shape, tl.float32)


@triton.jit
def _parameters(
    i_n, o_c, p_mean, p_rstd, p_weight, p_bias, p_shift, p_film, C, groups,
    AFFINE: tl.constexpr, SHIFT: tl.constexpr, FILM: tl.constexpr,
):  # fmt: skip
    """Of channels, [1, BC]: what x is centred at, rstd, the slope dz / dxhat, and z where xhat is 0."""
    o_g = i_n * groups + o_c // (C // groups)
    mean = tl.load(p_mean + o_g, o_c < C, other=0.0)
    rstd = tl.load(p_rstd + o_g, o_c < C, other=0.0)
    weight = _per_channel(p_weight, 0, o_c, C, 1, 0, AFFINE) + (0.0 if AFFINE else 1.0)
    bias = _per_channel(p_bias, 0, o_c, C, 1, 0, AFFINE)
    scale = 1.0 + _per_channel(p_film, i_n, o_c, C, 2, 0, FILM)
    offset = _per_channel(p_film, i_n, o_c, C, 2, 1, FILM)
    centre = mean - _per_channel(p_shift, i_n, o_c, C, 1, 0, SHIFT)
    return centre[None, :], rstd[None, :], (weight * scale)[None, :], (bias * scale + offset)[None, :]


@triton.jit
def _sigmoid(z, EXACT: tl.constexpr):
    """By the hardware's own approximations, good to about 2^-20, where what is stored has 11 bits or fewer."""
    if EXACT:
        return tl.sigmoid(z)
    root = tl.rsqrt(1.0 + tl.exp2(z * -1.4426950408889634))
    return root * root


@triton.jit
def _moments(
    p_x, p_skip, p_moments, C1, C2, L, chunk, chunks,
    CHANNELS_LAST: tl.constexpr, SKIP: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each channel in a chunk of voxels: [N, chunks, C, 2]."""
    i_chunk, i_n = tl.program_id(0), tl.program_id(2)
    C = C1 + C2
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    begin = i_chunk * chunk
    end = tl.minimum(begin + chunk, L)
    o_l = begin + tl.arange(0, BL)
    mask = (o_l < end)[:, None] & (o_c < C)[None, :]
    first = _load(p_x, p_skip, i_n, o_c, o_l, C1, C2, L, mask, CHANNELS_LAST, SKIP)
    pivot = tl.sum(first, 0) / tl.minimum(end - begin, BL).to(tl.float32)  # [BC]
    sums = tl.zeros((BL, BC), tl.float32)
    squares = tl.zeros((BL, BC), tl.float32)
    for start in range(begin, end, BL):
        o_l = start + tl.arange(0, BL)
        mask = (o_l < end)[:, None] & (o_c < C)[None, :]
        x = _load(p_x, p_skip, i_n, o_c, o_l, C1, C2, L, mask, CHANNELS_LAST, SKIP)
        away = tl.where(mask, x - pivot[None, :], 0.0)
        sums += away
        squares += away * away
    count = (end - begin).to(tl.float32)
    mean = tl.sum(sums, 0) / count
    place = p_moments + ((i_n * chunks + i_chunk) * C + o_c) * 2
    tl.store(place, pivot + mean, o_c < C)
    tl.store(place + 1, tl.maximum(tl.sum(squares, 0) - count * mean * mean, 0.0), o_c < C)


@triton.jit
def _group_moments(
    p_moments, p_shift, p_mean, p_rstd, C, L, groups, chunk, chunks, eps, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):
    """Mean and reciprocal deviation of each group, out of its channels' and chunks' moments: [N, groups]."""
    i_g, i_n = tl.program_id(0), tl.program_id(1)
    width = C // groups
    entries = chunks * width
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, entries, BLOCK):
        mean, count, _ = _entry(p_moments, p_shift, start, i_n, i_g, C, L, width, chunk, chunks, SHIFT, BLOCK)
        total += mean * count
    voxels = width * tl.cast(L, tl.float32)
    centre = tl.sum(total, 0) / voxels
    spread = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, entries, BLOCK):
        mean, count, own = _entry(p_moments, p_shift, start, i_n, i_g, C, L, width, chunk, chunks, SHIFT, BLOCK)
        spread += own + count * (mean - centre) * (mean - centre)
    variance = tl.sum(spread, 0) / voxels
    tl.store(p_mean + i_n * groups + i_g, centre)
    tl.store(p_rstd + i_n * groups + i_g, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _entry(p_moments, p_shift, start, i_n, i_g, C, L, width, chunk, chunks, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """Means with the shift, numbers of voxels and sums of squared deviations of so many of a group's entries."""
    o_e = start + tl.arange(0, BLOCK)
    mask = o_e < chunks * width
    i_chunk, o_c = o_e // width, i_g * width + o_e % width
    place = p_moments + ((i_n * chunks + i_chunk) * C + o_c) * 2
    mean = tl.load(place, mask, other=0.0)
    if SHIFT:
        mean += tl.load(p_shift + i_n * C + o_c, mask, other=0.0).to(tl.float32)
    count = tl.where(mask, tl.minimum(chunk, L - i_chunk * chunk), 0).to(tl.float32)
    return mean, count, tl.load(place + 1, mask, other=0.0)


@triton.jit
def _forward(
    p_x, p_skip, p_y, p_mean, p_rstd, p_weight, p_bias, p_shift, p_film, C1, C2, L, groups, chunk,
    CHANNELS_LAST: tl.constexpr, SKIP: tl.constexpr, AFFINE: tl.constexpr, SHIFT: tl.constexpr, FILM: tl.constexpr,
    SILU: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(2)
    C = C1 + C2
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    centre, rstd, slope, offset = _parameters(
        i_n, o_c, p_mean, p_rstd, p_weight, p_bias, p_shift, p_film, C, groups, AFFINE, SHIFT, FILM
    )
    slope *= rstd
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, L)
    for start in range(begin, end, BL):
        o_l = start + tl.arange(0, BL)
        mask = (o_l < end)[:, None] & (o_c < C)[None, :]
        x = _load(p_x, p_skip, i_n, o_c, o_l, C1, C2, L, mask, CHANNELS_LAST, SKIP)
        z = (x - centre) * slope + offset
        y = z * _sigmoid(z, p_y.dtype.element_ty == tl.float32) if SILU else z
        tl.store(_places(p_y, i_n, o_c, o_l, C, L, CHANNELS_LAST), y.to(p_y.dtype.element_ty), mask)


@triton.jit
def _dz(p_dy, z, i_n, o_c, o_l, C, L, mask, CHANNELS_LAST: tl.constexpr, SILU: tl.constexpr):
    dy = tl.load(_places(p_dy, i_n, o_c, o_l, C, L, CHANNELS_LAST), mask, other=0.0).to(tl.float32)
    if SILU:
        share = _sigmoid(z, p_dy.dtype.element_ty == tl.float32)
        dy = dy * share * (1.0 + z * (1.0 - share))
    return dy


@triton.jit
def _sums(
    p_x, p_skip, p_dy, p_sums, p_mean, p_rstd, p_weight, p_bias, p_shift, p_film, C1, C2, L, groups, chunk, chunks,
    CHANNELS_LAST: tl.constexpr, SKIP: tl.constexpr, AFFINE: tl.constexpr, SHIFT: tl.constexpr, FILM: tl.constexpr,
    SILU: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sums over a chunk's voxels of dz, dz xhat and xhat: [N, chunks, C, 3]."""
    i_chunk, i_n = tl.program_id(0), tl.program_id(2)
    C = C1 + C2
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    centre, rstd, slope, offset = _parameters(
        i_n, o_c, p_mean, p_rstd, p_weight, p_bias, p_shift, p_film, C, groups, AFFINE, SHIFT, FILM
    )
    begin = i_chunk * chunk
    end = tl.minimum(begin + chunk, L)
    of_dz = tl.zeros((BL, BC), tl.float32)
    of_both = tl.zeros((BL, BC), tl.float32)
    of_xhat = tl.zeros((BL, BC), tl.float32)
    for start in range(begin, end, BL):
        o_l = start + tl.arange(0, BL)
        mask = (o_l < end)[:, None] & (o_c < C)[None, :]
        x = _load(p_x, p_skip, i_n, o_c, o_l, C1, C2, L, mask, CHANNELS_LAST, SKIP)
        xhat = (x - centre) * rstd
        dz = _dz(p_dy, xhat * slope + offset, i_n, o_c, o_l, C, L, mask, CHANNELS_LAST, SILU)  # 0 outside, as dy is
        of_dz += dz
        of_both += dz * xhat
        of_xhat += tl.where(mask, xhat, 0.0)
    place = p_sums + ((i_n * chunks + i_chunk) * C + o_c) * 3
    tl.store(place, tl.sum(of_dz, 0), o_c < C)
    tl.store(place + 1, tl.sum(of_both, 0), o_c < C)
    tl.store(place + 2, tl.sum(of_xhat, 0), o_c < C)


@triton.jit
def _small_gradients(
    p_sums, p_means, p_rstd, p_weight, p_bias, p_film, p_dweight, p_dbias, p_dshift, p_dfilm, C, L, groups, chunks,
    AFFINE: tl.constexpr, FILM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Of a group: the two means that the gradient of x needs, and a sample's gradients of all that is per channel."""
    i_g, i_n = tl.program_id(0), tl.program_id(1)
    width = C // groups
    o_w = tl.arange(0, BC)
    mask = o_w < width
    o_c = i_g * width + o_w
    dz = tl.zeros((BC,), tl.float32)
    both = tl.zeros((BC,), tl.float32)
    xhat = tl.zeros((BC,), tl.float32)
    for i_chunk in range(0, chunks):
        place = p_sums + ((i_n * chunks + i_chunk) * C + o_c) * 3
        dz += tl.load(place, mask, other=0.0)
        both += tl.load(place + 1, mask, other=0.0)
        xhat += tl.load(place + 2, mask, other=0.0)
    if AFFINE:
        weight = tl.load(p_weight + o_c, mask, other=0.0).to(tl.float32)
        bias = tl.load(p_bias + o_c, mask, other=0.0).to(tl.float32)
    else:
        weight = tl.where(mask, 1.0, 0.0)
        bias = tl.zeros((BC,), tl.float32)
    scale = tl.where(mask, 1.0, 0.0)
    if FILM:
        scale += tl.load(p_film + i_n * 2 * C + o_c, mask, other=0.0).to(tl.float32)
    slope = weight * scale
    voxels = width * tl.cast(L, tl.float32)
    mean = tl.sum(slope * dz, 0) / voxels
    mean_both = tl.sum(slope * both, 0) / voxels
    rstd = tl.load(p_rstd + i_n * groups + i_g)
    place = p_means + (i_n * groups + i_g) * 2
    tl.store(place, mean)
    tl.store(place + 1, mean_both)
    o_nc = i_n * C + o_c
    tl.store(p_dweight + o_nc, scale * both, mask)
    tl.store(p_dbias + o_nc, scale * dz, mask)
    tl.store(p_dshift + o_nc, rstd * (slope * dz - tl.cast(L, tl.float32) * mean - mean_both * xhat), mask)
    tl.store(p_dfilm + i_n * 2 * C + o_c, weight * both + bias * dz, mask)
    tl.store(p_dfilm + i_n * 2 * C + C + o_c, dz, mask)


@triton.jit
def _backward(
    p_x, p_skip, p_dy, p_dx, p_dskip, p_means, p_mean, p_rstd, p_weight, p_bias, p_shift, p_film, C1, C2, L, groups,
    chunk, CHANNELS_LAST: tl.constexpr, SKIP: tl.constexpr, AFFINE: tl.constexpr, SHIFT: tl.constexpr,
    FILM: tl.constexpr, SILU: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(2)
    C = C1 + C2
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    centre, rstd, slope, offset = _parameters(
        i_n, o_c, p_mean, p_rstd, p_weight, p_bias, p_shift, p_film, C, groups, AFFINE, SHIFT, FILM
    )
    place = p_means + (i_n * groups + o_c // (C // groups)) * 2
    mean = tl.load(place, o_c < C, other=0.0)[None, :] * rstd
    mean_both = tl.load(place + 1, o_c < C, other=0.0)[None, :] * rstd
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, L)
    for start in range(begin, end, BL):
        o_l = start + tl.arange(0, BL)
        mask = (o_l < end)[:, None] & (o_c < C)[None, :]
        x = _load(p_x, p_skip, i_n, o_c, o_l, C1, C2, L, mask, CHANNELS_LAST, SKIP)
        xhat = (x - centre) * rstd
        dz = _dz(p_dy, xhat * slope + offset, i_n, o_c, o_l, C, L, mask, CHANNELS_LAST, SILU)
        dx = dz * (slope * rstd) - (mean + xhat * mean_both)
        _store(p_dx, p_dskip, dx, i_n, o_c, o_l, C1, C2, L, mask, CHANNELS_LAST, SKIP)


def forward(
    x: Tensor,
    skip: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    scale_shift: Tensor | None,
    silu: bool,
    eps: float,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """Write y, and the groups' mean and reciprocal deviation, float32 [N, groups]. All volumes share one layout."""
    if not y.numel():
        for moments in (mean, rstd):  # of no voxels
            moments.fill_(float("nan"))
        return

    def run(cut: Setting) -> None:
        _run_forward(cut, x, skip, groups, weight, bias, shift, scale_shift, silu, eps, y, mean, rstd)

    run(_cut("forward", x, skip, run))


def _run_forward(
    cut: Setting, x: Tensor, skip: Tensor | None, groups: int, weight: Tensor | None, bias: Tensor | None,
    shift: Tensor | None, scale_shift: Tensor | None, silu: bool, eps: float, y: Tensor, mean: Tensor, rstd: Tensor,
) -> None:  # fmt: skip
    at = _Shape(x, skip, cut["TILE"])
    flags = {"CHANNELS_LAST": at.channels_last, "SKIP": skip is not None}
    given = {"AFFINE": weight is not None, "SHIFT": shift is not None, "FILM": scale_shift is not None}
    moments = torch.empty(at.N, at.chunks, at.C, 2, dtype=torch.float32, device=x.device)
    second = x if skip is None else skip
    _moments[(at.chunks, at.blocks, at.N)](
        x, second, moments, at.C1, at.C2, at.L, at.chunk, at.chunks, **flags, **at.tile,
        num_warps=cut["num_warps"],
    )  # fmt: skip
    _group_moments[(groups, at.N)](
        moments, shift if shift is not None else x, mean, rstd, at.C, at.L, groups, at.chunk, at.chunks, eps,
        SHIFT=shift is not None, BLOCK=1024, num_warps=_WARPS,
    )  # fmt: skip
    _forward[(triton.cdiv(at.L, at.walk), at.blocks, at.N)](
        x, second, y, mean, rstd, *_or(x, weight, bias, shift, scale_shift), at.C1, at.C2, at.L, groups, at.walk,
        **flags, **given, SILU=silu, **at.tile, num_warps=cut["num_warps"],
    )  # fmt: skip


def backward(
    dy: Tensor,
    x: Tensor,
    skip: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    scale_shift: Tensor | None,
    silu: bool,
    mean: Tensor,
    rstd: Tensor,
    dx: Tensor,
    dskip: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write dx and dskip; returns dweight and dbias [N, C] of each sample, dshift [N, C], dscale_shift [N, 2 C]."""
    if not dy.numel():
        zeros = dy.new_zeros(dy.shape[:2], dtype=torch.float32)
        return zeros, zeros, zeros, dy.new_zeros((dy.shape[0], 2 * dy.shape[1]), dtype=torch.float32)

    def run(cut: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _run_backward(cut, dy, x, skip, groups, weight, bias, shift, scale_shift, silu, mean, rstd, dx, dskip)

    return run(_cut("backward", x, skip, run))


def _run_backward(
    cut: Setting, dy: Tensor, x: Tensor, skip: Tensor | None, groups: int, weight: Tensor | None, bias: Tensor | None,
    shift: Tensor | None, scale_shift: Tensor | None, silu: bool, mean: Tensor, rstd: Tensor, dx: Tensor,
    dskip: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    at = _Shape(x, skip, cut["TILE"])
    flags = {"CHANNELS_LAST": at.channels_last, "SKIP": skip is not None}
    given = {"AFFINE": weight is not None, "SHIFT": shift is not None, "FILM": scale_shift is not None}
    second = x if skip is None else skip

    def new(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=x.device)

    sums, means = new(at.N, at.chunks, at.C, 3), new(at.N, groups, 2)
    small = new(at.N, at.C), new(at.N, at.C), new(at.N, at.C), new(at.N, 2 * at.C)
    per_channel = _or(x, weight, bias, shift, scale_shift)
    _sums[(at.chunks, at.blocks, at.N)](
        x, second, dy, sums, mean, rstd, *per_channel, at.C1, at.C2, at.L, groups, at.chunk, at.chunks,
        **flags, **given, SILU=silu, **at.tile, num_warps=cut["num_warps"],
    )  # fmt: skip
    weight_, bias_, _, film = per_channel
    _small_gradients[(groups, at.N)](
        sums, means, rstd, weight_, bias_, film, *small, at.C, at.L, groups, at.chunks,
        AFFINE=weight is not None, FILM=scale_shift is not None, BC=triton.next_power_of_2(at.C // groups),
        num_warps=_WARPS,
    )  # fmt: skip
    _backward[(triton.cdiv(at.L, at.walk), at.blocks, at.N)](
        x, second, dy, dx, dx if dskip is None else dskip, means, mean, rstd, *per_channel, at.C1, at.C2, at.L, groups,
        at.walk, **flags, **given, SILU=silu, **at.tile, num_warps=cut["num_warps"],
    )  # fmt: skip
    return small


def _cut(what: str, x: Tensor, skip: Tensor | None, run: Callable[[Setting], object]) -> Setting:
    """Elements of a tile and warps: the default, or what was found faster on this device."""
    sizes = (_TILE, _WARPS), (1024, 4), (2048, 8), (4096, 8), (8192, 8)
    candidates = [{"TILE": tile, "num_warps": own} for tile, own in sizes]
    kind = (what, *x.shape, 0 if skip is None else skip.shape[1], x.dtype, x.is_contiguous())
    return setting("group_norm_silu", kind, candidates, x.device, run)


def _or(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """A kernel takes a pointer for each; it never reads one that was not given."""
    return [x if tensor is None else tensor for tensor in tensors]


class _Shape:
    """A volume's sizes, and how it is cut: ``tile`` of [BL, BC], ``blocks`` of channels, ``chunks`` of voxels.

    Where nothing is summed a program has ``walk`` voxels.
    """

    def __init__(self, x: Tensor, skip: Tensor | None, tile: int) -> None:
        self.N, self.C1 = x.shape[:2]
        self.C2 = 0 if skip is None else skip.shape[1]
        self.C = self.C1 + self.C2
        self.L = x[0, 0].numel()
        self.channels_last = not x.is_contiguous()
        self.tile = tile_of(self.C, self.L, self.channels_last, tile)
        self.blocks = triton.cdiv(self.C, self.tile["BC"])
        self.chunk, self.chunks = chunks_of(self.N * self.blocks, self.L, self.tile["BL"], processors(x.device))
        self.walk = min(self.chunk, _WALK * self.tile["BL"])


def tile_of(C: int, L: int, channels_last: bool, elements: int = _TILE) -> dict[str, int]:
    """Sides of a tile, powers of two, the axis that is contiguous in memory first served."""
    if channels_last:
        channels = min(triton.next_power_of_2(C), 256)
        return {"BL": max(1, elements // channels), "BC": channels}
    voxels = min(triton.next_power_of_2(L), elements)
    return {"BL": voxels, "BC": min(triton.next_power_of_2(C), max(1, elements // voxels))}


def chunks_of(others: int, L: int, tile: int, processors: int) -> tuple[int, int]:
    """Voxels of a chunk, whole tiles, and how many chunks: four programs a multiprocessor in all, where L allows."""
    tiles = triton.cdiv(L, tile)
    wanted = max(1, min(tiles, triton.cdiv(4 * processors, others)))
    chunk = triton.cdiv(tiles, wanted) * tile
    return chunk, triton.cdiv(L, chunk)


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take a volume, or None."""
    return wrong_dtype(x)


def configurations() -> Iterator[Configuration]:
    """The kernels as the published network calls them: both formats, single and half precision, with a skip and not."""
    C1, groups, L, processors_ = 64, 32, 16 * 256 * 256, 132
    for pointer, channels_last, skip in [("*fp32", True, False), *product(("*bf16",), (False, True), (False, True))]:
        C2 = 64 if skip else 0
        tile = tile_of(C1 + C2, L, channels_last)
        blocks = triton.cdiv(C1 + C2, tile["BC"])
        chunk, chunks = chunks_of(blocks, L, tile["BL"], processors_)
        volumes = {"p_x": pointer, "p_skip": pointer}
        moments = {"p_mean": "*fp32", "p_rstd": "*fp32"}
        small = dict.fromkeys(("p_weight", "p_bias", "p_shift", "p_film"), "*fp32")
        sizes, cut = {"C1": C1, "C2": C2, "L": L}, {"chunk": chunk, "chunks": chunks}
        walk = {"chunk": _WALK * tile["BL"]}
        layout = {"CHANNELS_LAST": channels_last, "SKIP": skip}
        given = {"AFFINE": True, "SHIFT": True, "FILM": False, "SILU": True}
        yield _configuration(_moments, volumes, {"p_moments": "*fp32"}, sizes, cut, layout, tile)
        yield _configuration(
            _forward, volumes, {"p_y": pointer}, moments, small, sizes, {"groups": groups}, walk, layout, given, tile
        )
        yield _configuration(
            _sums, volumes, {"p_dy": pointer, "p_sums": "*fp32"}, moments, small, sizes, {"groups": groups}, cut,
            layout, given, tile,
        )  # fmt: skip
        yield _configuration(
            _backward, volumes, {"p_dy": pointer, "p_dx": pointer, "p_dskip": pointer, "p_means": "*fp32"}, moments,
            small, sizes, {"groups": groups}, walk, layout, given, tile,
        )  # fmt: skip
    sizes = {"C": C1, "L": L, "groups": groups}
    yield _configuration(
        _group_moments, {"p_moments": "*fp32", "p_shift": "*fp32", "p_mean": "*fp32", "p_rstd": "*fp32"}, sizes,
        {"chunk": 2048, "chunks": 512, "eps": 1e-5, "SHIFT": True, "BLOCK": 1024},
    )  # fmt: skip
    pointers = ("sums", "means", "rstd", "weight", "bias", "film", "dweight", "dbias", "dshift", "dfilm")
    for groups in (32, 1):
        sizes = {"C": 512, "L": L, "groups": groups, "chunks": 512}
        yield _configuration(
            _small_gradients, {f"p_{name}": "*fp32" for name in pointers}, sizes,
            {"AFFINE": True, "FILM": True, "BC": 512 // groups},
        )  # fmt: skip


def _configuration(kernel: triton.JITFunction, *arguments: Mapping[str, object]) -> Configuration:
    joined = {name: value for part in arguments for name, value in part.items()}
    return Configuration("group_norm_silu", kernel, {name: joined[name] for name in kernel.arg_names}, _WARPS)
