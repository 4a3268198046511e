"""Planes resampled onto one grid and mixed, in Triton, forward and backward, both memory formats.

Bytes: forward, planes and gates are read, result and weights written. Backward, planes and weights are read, and all
gradients written; the result's gradient is read for the gates, and for each plane. Instructions are the bound, not
bytes: a voxel of the result has 24 corners.

Forward, a program has a tile of voxels of the result and all groups' channels in turn: few threads have a voxel, and
make its corners once, and take from each as many channels as a vector has. So do the gates' gradients, which sum the
planes' samples over a group's channels.

The volumes' gradients are gathered. A program has voxels of one plane and four blocks of channels at once, and visits
for each the voxels of the result that its support can hold; what lies between the ends of thick slices is long and
narrow, and a box around it is mostly empty. No atomics; sums have a fixed order. No time was taken on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import triton
import triton.language as tl
from torch import Tensor

from orthokernels.backends.triton.configuration import Configuration
from orthokernels.backends.triton.volumes import processors, wrong_dtype

_WARPS = 4
_LOADED = 2048  # bytes of a tile's channels, where they come last: a vector of 16 a thread
_REGISTERS = 255  # of a thread of a volume's gradient: without a bound, Triton 3.6's assembler spills
_BLOCKS = 4  # of channels, that a program of a volume's gradient has


@triton.jit
def _place(p_matrix, d, h, w):
    """A voxel's indices through a [3, 4] matrix of float32."""
    d, h, w = d.to(tl.float32), h.to(tl.float32), w.to(tl.float32)
    m = p_matrix
    x = tl.load(m) * d + tl.load(m + 1) * h + tl.load(m + 2) * w + tl.load(m + 3)
    y = tl.load(m + 4) * d + tl.load(m + 5) * h + tl.load(m + 6) * w + tl.load(m + 7)
    z = tl.load(m + 8) * d + tl.load(m + 9) * h + tl.load(m + 10) * w + tl.load(m + 11)
    return x, y, z


@triton.jit
def _within(x, side):
    """Whether a coordinate lies in a volume or less than half a voxel outside, and the coordinate held to its ends."""
    return (x >= -0.5) & (x <= side - 0.5), tl.minimum(tl.maximum(x, 0.0), side - 1.0)


@triton.jit
def _corner(x, side):
    """The lower neighbour, and how far behind it."""
    low = tl.minimum(x.to(tl.int32), tl.maximum(side - 2, 0))
    return low, x - low.to(tl.float32)


@triton.jit
def _corners(p_matrix, d, h, w, D, H, W):
    """Around voxels of the result, in a plane: whether it has them, the first corner, steps to the others, how far."""
    x, y, z = _place(p_matrix, d, h, w)
    in_x, x = _within(x, D)
    in_y, y = _within(y, H)
    in_z, z = _within(z, W)
    x0, fx = _corner(x, D)
    y0, fy = _corner(y, H)
    z0, fz = _corner(z, W)
    up, down, aside = tl.where(x0 < D - 1, H * W, 0), tl.where(y0 < H - 1, W, 0), tl.where(z0 < W - 1, 1, 0)
    first = (x0.to(tl.int64) * H + y0) * W + z0
    return in_x & in_y & in_z, first, up, down, aside, fx, fy, fz


@triton.jit
def _channels(p, o_v, o_c, C, voxels, CHANNELS_LAST: tl.constexpr):
    """Where channels of a sample's voxels are, 64 bits wide."""
    if CHANNELS_LAST:
        return p + (o_v.to(tl.int64) * C + o_c)
    return p + (o_c.to(tl.int64) * voxels + o_v)


@triton.jit
def _of_block(i_g, block, width, BC: tl.constexpr, WHOLE: tl.constexpr):
    """The channels of a group's block. Where all are whole, the compiler sees that they begin where a vector can."""
    if WHOLE:
        return (i_g * (width // BC) + block) * BC + tl.arange(0, BC)
    return i_g * width + block * BC + tl.arange(0, BC)


@triton.jit
def _sample(p, around, o_c, C, voxels, mask, CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr):
    """A plane [BV, BC] at voxels of the result; 0 where it has none of them."""
    inside, first, up, down, aside, fx, fy, fz = around
    total = tl.zeros(mask.shape, tl.float32)
    for corner in tl.static_range(8):
        share = (fx if corner // 4 == 1 else 1 - fx) * (fy if corner // 2 % 2 == 1 else 1 - fy)
        share *= fz if corner % 2 == 1 else 1 - fz
        o_v = first + (up if corner // 4 == 1 else 0) + (down if corner // 2 % 2 == 1 else 0)
        o_v += aside if corner % 2 == 1 else 0
        place = _channels(p, o_v, o_c, C, voxels, CHANNELS_LAST)
        if WHOLE:  # every corner is a voxel of the plane, held to its ends
            total += share * tl.load(place).to(tl.float32)
        else:
            total += share * tl.load(place, mask, other=0.0).to(tl.float32)
    return tl.where(inside, total, 0.0)


@triton.jit
def _gate(p_gates, i_n, i_plane, i_g, o_v, groups, voxels, inside, HAS: tl.constexpr):
    """A plane's logits [BV, 1]; minus infinity where it has no such voxel."""
    if HAS:
        place = p_gates + ((i_n.to(tl.int64) * 3 + i_plane) * groups + i_g) * voxels + o_v
        return tl.where(inside, tl.load(place, o_v < voxels, other=0.0).to(tl.float32), -float("inf"))
    return tl.full(inside.shape, -float("inf"), tl.float32)


@triton.jit
def _forward(
    p_a, p_b, p_c, p_gates, p_matrices, p_out, p_weights, aD, aH, aW, bD, bH, bW, cD, cH, cW, C, groups, D, H, W,
    A: tl.constexpr, B: tl.constexpr, CC: tl.constexpr, CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr,
    BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(2).to(tl.int64)
    width, voxels = C // groups, D * H * W
    o_v = (tl.program_id(0) * BV + tl.arange(0, BV))[:, None]
    there = o_v < voxels
    o_v = tl.minimum(o_v, voxels - 1)
    w, h, d = o_v % W, (o_v // W) % H, o_v // (W * H)
    in_a, in_b, in_c = o_v < 0, o_v < 0, o_v < 0
    if A:
        p_a += i_n * C * aD * aH * aW
        around_a = _corners(p_matrices, d, h, w, aD, aH, aW)
        in_a = around_a[0]
    if B:
        p_b += i_n * C * bD * bH * bW
        around_b = _corners(p_matrices + 12, d, h, w, bD, bH, bW)
        in_b = around_b[0]
    if CC:
        p_c += i_n * C * cD * cH * cW
        around_c = _corners(p_matrices + 24, d, h, w, cD, cH, cW)
        in_c = around_c[0]
    p_out += i_n * C * voxels
    for i_g in range(tl.program_id(1), groups, tl.num_programs(1)):
        ga = _gate(p_gates, i_n, 0, i_g, o_v, groups, voxels, in_a, A)
        gb = _gate(p_gates, i_n, 1, i_g, o_v, groups, voxels, in_b, B)
        gc = _gate(p_gates, i_n, 2, i_g, o_v, groups, voxels, in_c, CC)
        largest = tl.maximum(tl.maximum(ga, gb), gc)
        largest = tl.where(largest == -float("inf"), 0.0, largest)  # no plane is here
        wa, wb, wc = tl.exp(ga - largest), tl.exp(gb - largest), tl.exp(gc - largest)
        total = wa + wb + wc
        total = tl.where(total == 0.0, 1.0, total)
        wa, wb, wc = wa / total, wb / total, wc / total
        place = p_weights + (i_n * 3 * groups + i_g) * voxels + o_v
        step = tl.cast(groups, tl.int64) * voxels
        tl.store(place, wa, there)
        tl.store(place + step, wb, there)
        tl.store(place + 2 * step, wc, there)
        for block in range(0, tl.cdiv(width, BC)):
            o_c = _of_block(i_g, block, width, BC, WHOLE)[None, :]
            mask = there & (o_c < (i_g + 1) * width)
            out = tl.zeros((BV, BC), tl.float32)
            if A:
                out += wa * _sample(p_a, around_a, o_c, C, tl.cast(aD, tl.int64) * aH * aW, mask, CHANNELS_LAST, WHOLE)
            if B:
                out += wb * _sample(p_b, around_b, o_c, C, tl.cast(bD, tl.int64) * bH * bW, mask, CHANNELS_LAST, WHOLE)
            if CC:
                out += wc * _sample(p_c, around_c, o_c, C, tl.cast(cD, tl.int64) * cH * cW, mask, CHANNELS_LAST, WHOLE)
            own = _channels(p_out, o_v, o_c, C, voxels, CHANNELS_LAST)
            tl.store(own, out.to(p_out.dtype.element_ty), mask)


@triton.jit
def _gate_gradients(
    p_a, p_b, p_c, p_dout, p_weights, p_matrices, p_dgates, aD, aH, aW, bD, bH, bW, cD, cH, cW, C, groups, D, H, W,
    A: tl.constexpr, B: tl.constexpr, CC: tl.constexpr, CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr,
    BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(2).to(tl.int64)
    width, voxels = C // groups, D * H * W
    o_v = (tl.program_id(0) * BV + tl.arange(0, BV))[:, None]
    there = o_v < voxels
    o_v = tl.minimum(o_v, voxels - 1)
    w, h, d = o_v % W, (o_v // W) % H, o_v // (W * H)
    if A:
        p_a += i_n * C * aD * aH * aW
        around_a = _corners(p_matrices, d, h, w, aD, aH, aW)
    if B:
        p_b += i_n * C * bD * bH * bW
        around_b = _corners(p_matrices + 12, d, h, w, bD, bH, bW)
    if CC:
        p_c += i_n * C * cD * cH * cW
        around_c = _corners(p_matrices + 24, d, h, w, cD, cH, cW)
    p_dout += i_n * C * voxels
    for i_g in range(tl.program_id(1), groups, tl.num_programs(1)):
        ua, ub, uc = tl.zeros((BV, BC), tl.float32), tl.zeros((BV, BC), tl.float32), tl.zeros((BV, BC), tl.float32)
        for block in range(0, tl.cdiv(width, BC)):
            o_c = _of_block(i_g, block, width, BC, WHOLE)[None, :]
            mask = there & (o_c < (i_g + 1) * width)
            dout = tl.load(_channels(p_dout, o_v, o_c, C, voxels, CHANNELS_LAST), mask, other=0.0).to(tl.float32)
            if A:
                ua += dout * _sample(p_a, around_a, o_c, C, tl.cast(aD, tl.int64) * aH * aW, mask, CHANNELS_LAST, WHOLE)
            if B:
                ub += dout * _sample(p_b, around_b, o_c, C, tl.cast(bD, tl.int64) * bH * bW, mask, CHANNELS_LAST, WHOLE)
            if CC:
                uc += dout * _sample(p_c, around_c, o_c, C, tl.cast(cD, tl.int64) * cH * cW, mask, CHANNELS_LAST, WHOLE)
        sa, sb, sc = tl.sum(ua, 1)[:, None], tl.sum(ub, 1)[:, None], tl.sum(uc, 1)[:, None]
        place = (i_n * 3 * groups + i_g) * voxels + o_v
        step = tl.cast(groups, tl.int64) * voxels
        wa = tl.load(p_weights + place, there, other=0.0)
        wb = tl.load(p_weights + place + step, there, other=0.0)
        wc = tl.load(p_weights + place + 2 * step, there, other=0.0)
        mean = wa * sa + wb * sb + wc * sc
        tl.store(p_dgates + place, (wa * (sa - mean)).to(p_dgates.dtype.element_ty), there)
        tl.store(p_dgates + place + step, (wb * (sb - mean)).to(p_dgates.dtype.element_ty), there)
        tl.store(p_dgates + place + 2 * step, (wc * (sc - mean)).to(p_dgates.dtype.element_ty), there)


@triton.jit
def _line(p_matrix, axis):
    """A column of a [3, 4] matrix."""
    return tl.load(p_matrix + axis), tl.load(p_matrix + 4 + axis), tl.load(p_matrix + 8 + axis)


@triton.jit
def _share(away, v, side):
    """A voxel's share along one axis of what lies so far behind it; beyond the volume's ends all is the end's."""
    behind = tl.where(v < side - 1, 1.0, 0.0) * away
    before = tl.where(v > 0, -1.0, 0.0) * away
    return tl.maximum(1.0 - tl.maximum(behind, before), 0.0)


@triton.jit
def _across(r1, r2, s1, s2, rL, sL, er, es):
    """Where two of the three coordinates are less than 1 from a voxel, along an axis of the result.

    From where, by how much further at each place x along the first axis, and how many places. Of r1 x1 + r2 x2 + rL x
    + er and the same of s, both between -1 and 1: at a given x a parallelogram, whose width along x1 is told. What lies
    within 1e-5 of its ends may be left out: its share is as small.
    """
    det = r1 * s2 - r2 * s1
    by_r, by_s = s2 / det, -r2 / det
    half = tl.abs(by_r) + tl.abs(by_s)
    places = tl.maximum(tl.ceil(2.0 * half - 1e-5), 1.0)
    return -(by_r * er + by_s * es) - half, -(by_r * rL + by_s * sL), tl.minimum(places, 2.0**30).to(tl.int32)


@triton.jit
def _block(
    block, p_dout, p_weights, C, groups, voxels, CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """A block's channels in the result's gradient and weights, which of them there are, and their numbers.

    Behind the last block it is the last: what it sums is not kept.
    """
    width = C // groups
    of_group = tl.cdiv(width, BC)
    block = tl.minimum(block, groups * of_group - 1)
    i_g = block // of_group
    o_c = _of_block(i_g, block % of_group, width, BC, WHOLE)
    o_c = o_c[None, :] if CHANNELS_LAST else o_c[:, None]
    p_dout = _channels(p_dout, tl.zeros((1, 1), tl.int32), o_c, C, voxels, CHANNELS_LAST)
    return p_dout, p_weights + tl.cast(i_g, tl.int64) * voxels, o_c < (i_g + 1) * width, o_c


@triton.jit
def _add(total, block, share, o_x, m_x, C, CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr):
    """What a voxel of the result gives to a block's channels."""
    p_dout, p_weights, m_c, _ = block
    weight = tl.load(p_weights + o_x, m_x, other=0.0)
    p_dout += o_x.to(tl.int64) * C if CHANNELS_LAST else o_x
    dout = tl.load(p_dout, m_x if WHOLE else m_x & m_c, other=0.0)
    return total + (share * weight) * dout.to(tl.float32)


@triton.jit
def _keep(total, block, p_gradient, o_v, m_v, C, voxels, CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr):
    _, _, m_c, o_c = block
    place = _channels(p_gradient, o_v, o_c, C, voxels, CHANNELS_LAST)
    tl.store(place, total.to(p_gradient.dtype.element_ty), m_v if WHOLE else m_v & m_c)


@triton.jit
def _volume_gradient(
    p_dout, p_weights, p_matrix, p_inverse, p_gradient, i_plane, box, axis, axis1, axis2, side, side1, side2,
    step, step1, step2, pD, pH, pW, C, groups,
    CHANNELS_LAST: tl.constexpr, WHOLE: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Of one plane, whose sides are p*: a voxel visits those of the result that its support may hold.

    They are walked along the axis of the result along which the support is longest, box places. At each, two of the
    plane's coordinates bound the places along the other two axes: those whose lines cross most steeply.
    """
    i_n, first_block = tl.program_id(2).to(tl.int64), tl.program_id(1) * 4  # _BLOCKS
    voxels = side * side1 * side2
    o_v = tl.program_id(0) * BV + tl.arange(0, BV)
    o_v = o_v[:, None] if CHANNELS_LAST else o_v[None, :]
    v2, v1, v0 = o_v % pW, (o_v // pW) % pH, o_v // (pW * pH)
    aL, bL, cL = _line(p_matrix, axis)
    a1, b1, c1 = _line(p_matrix, axis1)
    a2, b2, c2 = _line(p_matrix, axis2)
    aT, bT, cT = _line(p_matrix, 3)
    ea, eb, ec = aT - v0.to(tl.float32), bT - v1.to(tl.float32), cT - v2.to(tl.float32)
    ab, ac, bc = tl.abs(a1 * b2 - a2 * b1), tl.abs(a1 * c2 - a2 * c1), tl.abs(b1 * c2 - b2 * c1)
    no_a, has_c = (bc >= ab) & (bc >= ac), (bc >= ab) | (ac >= ab)
    rL, r1, r2, er = tl.where(no_a, bL, aL), tl.where(no_a, b1, a1), tl.where(no_a, b2, a2), tl.where(no_a, eb, ea)
    sL, s1, s2, es = tl.where(has_c, cL, bL), tl.where(has_c, c1, b1), tl.where(has_c, c2, b2), tl.where(has_c, ec, eb)
    from1, slope1, places1 = _across(r1, r2, s1, s2, rL, sL, er, es)
    from2, slope2, places2 = _across(r2, r1, s2, s1, rL, sL, er, es)
    places1, places2 = tl.minimum(places1, side1), tl.minimum(places2, side2)
    back = p_inverse + 4 * axis
    by_0, by_1, by_2 = tl.load(back), tl.load(back + 1), tl.load(back + 2)
    centre = by_0 * v0.to(tl.float32) + by_1 * v1.to(tl.float32) + by_2 * v2.to(tl.float32) + tl.load(back + 3)
    first = tl.floor(centre - (tl.abs(by_0) + tl.abs(by_1) + tl.abs(by_2))).to(tl.int32) + 1
    p_w = p_weights + (i_n * 3 + i_plane) * groups * voxels
    p_dout += i_n * C * voxels
    block0 = _block(first_block, p_dout, p_w, C, groups, voxels, CHANNELS_LAST, WHOLE, BC)
    block1 = _block(first_block + 1, p_dout, p_w, C, groups, voxels, CHANNELS_LAST, WHOLE, BC)
    block2 = _block(first_block + 2, p_dout, p_w, C, groups, voxels, CHANNELS_LAST, WHOLE, BC)
    block3 = _block(first_block + 3, p_dout, p_w, C, groups, voxels, CHANNELS_LAST, WHOLE, BC)
    total0 = tl.zeros((BV, BC) if CHANNELS_LAST else (BC, BV), tl.float32)
    total1, total2, total3 = total0, total0, total0
    for i in range(0, box):
        x = first + i
        f = x.to(tl.float32)
        m = (x >= 0) & (x < side) & (v0 < pD)
        x1 = tl.maximum(tl.floor(from1 + slope1 * f).to(tl.int32) + 1, 0)
        x2 = tl.maximum(tl.floor(from2 + slope2 * f).to(tl.int32) + 1, 0)
        for j in range(0, places1):
            for k in range(0, places2):
                f1, f2 = (x1 + j).to(tl.float32), (x2 + k).to(tl.float32)
                share = _share(aL * f + a1 * f1 + a2 * f2 + ea, v0, pD)
                share *= _share(bL * f + b1 * f1 + b2 * f2 + eb, v1, pH)
                share *= _share(cL * f + c1 * f1 + c2 * f2 + ec, v2, pW)
                # Half a voxel outside of the plane a share may be left, but no weight.
                m_x = m & (x1 + j < side1) & (x2 + k < side2) & (share > 0.0)
                o_x = x * step + (x1 + j) * step1 + (x2 + k) * step2
                total0 = _add(total0, block0, share, o_x, m_x, C, CHANNELS_LAST, WHOLE)
                total1 = _add(total1, block1, share, o_x, m_x, C, CHANNELS_LAST, WHOLE)
                total2 = _add(total2, block2, share, o_x, m_x, C, CHANNELS_LAST, WHOLE)
                total3 = _add(total3, block3, share, o_x, m_x, C, CHANNELS_LAST, WHOLE)
    m_v, own = v0 < pD, pD * pH * pW
    p_gradient += i_n * C * own
    blocks = groups * tl.cdiv(C // groups, BC)
    _keep(total0, block0, p_gradient, o_v, m_v, C, own, CHANNELS_LAST, WHOLE)
    if first_block + 1 < blocks:
        _keep(total1, block1, p_gradient, o_v, m_v, C, own, CHANNELS_LAST, WHOLE)
    if first_block + 2 < blocks:
        _keep(total2, block2, p_gradient, o_v, m_v, C, own, CHANNELS_LAST, WHOLE)
    if first_block + 3 < blocks:
        _keep(total3, block3, p_gradient, o_v, m_v, C, own, CHANNELS_LAST, WHOLE)


def forward(volumes: Sequence[Tensor | None], gates: Tensor, to_plane: Tensor, out: Tensor, weights: Tensor) -> None:
    """Write the result and the planes' weights."""
    given, has, sides = _given(volumes, out)
    flags, tile, grid = _cut(out, gates.shape[2])
    _forward[grid](
        *given, gates, to_plane.float().contiguous(), out, weights, *sides, out.shape[1], gates.shape[2],
        *out.shape[2:], **has, **flags, **tile, num_warps=_WARPS,
    )  # fmt: skip


def backward(
    dout: Tensor,
    weights: Tensor,
    volumes: Sequence[Tensor | None],
    gates: Tensor,
    to_plane: Tensor,
    to_result: Tensor,
    boxes: list[int],
    gradients: Sequence[Tensor | None],
    dgates: Tensor,
) -> None:
    """Write the gradients of the volumes that are there, and of the gates."""
    given, has, sides = _given(volumes, dout)
    there, back = to_plane.float().contiguous(), to_result.float().contiguous()
    N, C, groups, result = dout.shape[0], dout.shape[1], gates.shape[2], dout.shape[2:]
    flags, tile, grid = _cut(dout, groups)
    _gate_gradients[grid](
        *given, dout, weights, there, dgates, *sides, C, groups, *result, **has, **flags, **tile, num_warps=_WARPS
    )
    channels_last = flags["CHANNELS_LAST"]
    tile = gradient_tile_of(C // groups, channels_last, dout.element_size())
    blocks = triton.cdiv(groups * triton.cdiv(C // groups, tile["BC"]), _BLOCKS)
    for n, gradient in enumerate(gradients):
        if gradient is not None:
            walk = walk_of(boxes[3 * n : 3 * n + 3], result)
            _volume_gradient[(triton.cdiv(_voxels(gradient), tile["BV"]), blocks, N)](
                dout, weights, there[n], back[n], gradient, n, *walk, *gradient.shape[2:], C, groups,
                CHANNELS_LAST=channels_last, WHOLE=(C // groups) % tile["BC"] == 0, **tile,
                num_warps=gradient_warps(channels_last), maxnreg=_REGISTERS,
            )  # fmt: skip


def walk_of(box: Sequence[int], sides: Sequence[int]) -> list[int]:
    """How a gradient walks the result: places along the longest axis of the box; axes, that one first; sides, steps."""
    axes = sorted(range(3), key=lambda axis: -box[axis])
    steps = sides[1] * sides[2], sides[2], 1
    return [box[axes[0]], *axes, *(sides[axis] for axis in axes), *(steps[axis] for axis in axes)]


def _given(volumes: Sequence[Tensor | None], other: Tensor) -> tuple[list[Tensor], dict[str, bool], list[int]]:
    """A pointer for each plane (never read where it is missing), which are there, and their sides."""
    given = [other if volume is None else volume for volume in volumes]
    has = dict(zip(("A", "B", "CC"), (volume is not None for volume in volumes), strict=True))
    return given, has, [side for volume in given for side in volume.shape[2:]]


def _cut(x: Tensor, groups: int) -> tuple[dict[str, bool], dict[str, int], tuple[int, int, int]]:
    channels_last, width = not x.is_contiguous(), x.shape[1] // groups
    tile = tile_of(width, channels_last, x.element_size())
    programs = triton.cdiv(_voxels(x), tile["BV"])
    # The groups' programs make the same corners anew: as few as fill the device.
    parts = min(groups, triton.cdiv(4 * processors(x.device), programs * x.shape[0]))
    flags = {"CHANNELS_LAST": channels_last, "WHOLE": width % tile["BC"] == 0}
    return flags, tile, (programs, parts, x.shape[0])


def tile_of(width: int, channels_last: bool, size: int) -> dict[str, int]:
    """Sides of a tile, for groups of so many channels of so many bytes: few threads make a voxel's corners."""
    if not channels_last:
        return {"BV": 32 * _WARPS, "BC": 1}
    channels = min(triton.next_power_of_2(width), 16)
    return {"BV": _LOADED // size // channels, "BC": channels}


def gradient_tile_of(width: int, channels_last: bool, size: int) -> dict[str, int]:
    """The same, of each of a volume's gradient's blocks."""
    if not channels_last:
        return {"BV": 32, "BC": min(triton.next_power_of_2(width), 4)}
    return tile_of(width, channels_last, size)


def gradient_warps(channels_last: bool) -> int:
    """Of a volume's gradient: where channels come first, a thread has a voxel, and all of a block's channels."""
    return _WARPS if channels_last else 1


def _voxels(x: Tensor) -> int:
    return x[0, 0].numel()


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take a volume, or None."""
    return wrong_dtype(x)


def configurations() -> Iterator[Configuration]:
    """Three planes' features at half of the published size, 64 channels in 4 groups, on a grid of 1.5 mm."""
    own = (96, 96, 96)
    sides = {f"{plane}{axis}": side for plane in "abc" for axis, side in zip("DHW", (8, 128, 128), strict=True)}
    sizes = {"C": 64, "groups": 4, **dict(zip("DHW", own, strict=True)), "pD": 8, "pH": 128, "pW": 128, "i_plane": 2}
    names = ("box", "axis", "axis1", "axis2", "side", "side1", "side2", "step", "step1", "step2")
    sizes |= dict(zip(names, walk_of((26, 6, 3), own), strict=True))
    pointers = dict.fromkeys(("p_weights", "p_matrices", "p_matrix", "p_inverse", "p_gates", "p_dgates"), "*fp32")
    for kernel, pointer, last in product(
        (_forward, _gate_gradients, _volume_gradient), ("*fp32", "*bf16"), (False, True)
    ):
        named = {**sides, **sizes, **pointers, "A": True, "B": True, "CC": True, "CHANNELS_LAST": last, "WHOLE": True}
        of_gradient = kernel is _volume_gradient
        named |= (gradient_tile_of if of_gradient else tile_of)(16, last, 4 if pointer == "*fp32" else 2)
        arguments = {name: named.get(name, pointer) for name in kernel.arg_names}
        warps, registers = (gradient_warps(last), _REGISTERS) if of_gradient else (_WARPS, None)
        yield Configuration("plane_fusion", kernel, arguments, warps, registers=registers)
