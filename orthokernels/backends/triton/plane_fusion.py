"""Planes resampled onto one grid and mixed, in Triton, forward and backward, both memory formats.

Forward, each plane is read about once (its eight corners come from the cache), gates once; result and weights are
written. A program has a tile of voxels of the result and the channels of one group, so that the softmax is made once.

Backward in two kernels. Gates: a program walks through its group's channels and keeps the three sums u. Volumes: a
program has voxels of one plane and visits, for each, the box of result voxels that its support may reach. No atomics.
No time was taken on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import triton
import triton.language as tl
from torch import Tensor

from orthokernels.backends.triton.configuration import Configuration
from orthokernels.backends.triton.volumes import offset, wrong_dtype

_TILE = 256  # elements of a tile, two a thread: the corners of three planes take registers
_WARPS = 4


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
def _sample(p, p_matrix, i_n, o_c, d, h, w, C, D, H, W, mask, CHANNELS_LAST: tl.constexpr):
    """A plane [BV, BC] at voxels of the result, and which of them it has [BV, 1]."""
    x, y, z = _place(p_matrix, d, h, w)
    in_x, x = _within(x, D)
    in_y, y = _within(y, H)
    in_z, z = _within(z, W)
    inside = in_x & in_y & in_z
    x0, fx = _corner(x, D)
    y0, fy = _corner(y, H)
    z0, fz = _corner(z, W)
    total = tl.zeros(mask.shape, tl.float32)
    for corner in tl.static_range(8):
        i, j, k = corner // 4, corner // 2 % 2, corner % 2
        share = (fx if i == 1 else 1 - fx) * (fy if j == 1 else 1 - fy) * (fz if k == 1 else 1 - fz)
        place = offset(
            i_n, o_c, tl.minimum(x0 + i, D - 1), tl.minimum(y0 + j, H - 1), tl.minimum(z0 + k, W - 1), C, D, H, W,
            CHANNELS_LAST,
        )  # fmt: skip
        total += share * tl.load(p + place, mask & inside, other=0.0).to(tl.float32)
    return total, inside


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
    A: tl.constexpr, B: tl.constexpr, CC: tl.constexpr, CHANNELS_LAST: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    i_n, i_g = tl.program_id(2) // groups, tl.program_id(2) % groups
    width, voxels = C // groups, D * H * W
    o_v = (tl.program_id(0) * BV + tl.arange(0, BV))[:, None]
    o_w = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    o_c = i_g * width + o_w
    mask = (o_v < voxels) & (o_w < width)
    w, h, d = o_v % W, (o_v // W) % H, o_v // (W * H)
    a, b, c = tl.zeros((BV, BC), tl.float32), tl.zeros((BV, BC), tl.float32), tl.zeros((BV, BC), tl.float32)
    in_a, in_b, in_c = o_v < 0, o_v < 0, o_v < 0
    if A:
        a, in_a = _sample(p_a, p_matrices, i_n, o_c, d, h, w, C, aD, aH, aW, mask, CHANNELS_LAST)
    if B:
        b, in_b = _sample(p_b, p_matrices + 12, i_n, o_c, d, h, w, C, bD, bH, bW, mask, CHANNELS_LAST)
    if CC:
        c, in_c = _sample(p_c, p_matrices + 24, i_n, o_c, d, h, w, C, cD, cH, cW, mask, CHANNELS_LAST)
    ga = _gate(p_gates, i_n, 0, i_g, o_v, groups, voxels, in_a, A)
    gb = _gate(p_gates, i_n, 1, i_g, o_v, groups, voxels, in_b, B)
    gc = _gate(p_gates, i_n, 2, i_g, o_v, groups, voxels, in_c, CC)
    largest = tl.maximum(tl.maximum(ga, gb), gc)
    largest = tl.where(largest == -float("inf"), 0.0, largest)  # no plane is here
    wa, wb, wc = tl.exp(ga - largest), tl.exp(gb - largest), tl.exp(gc - largest)
    total = wa + wb + wc
    total = tl.where(total == 0.0, 1.0, total)
    wa, wb, wc = wa / total, wb / total, wc / total
    out = wa * a + wb * b + wc * c
    tl.store(p_out + offset(i_n, o_c, d, h, w, C, D, H, W, CHANNELS_LAST), out.to(p_out.dtype.element_ty), mask)
    if tl.program_id(1) == 0:
        place = p_weights + (i_n.to(tl.int64) * 3 * groups + i_g) * voxels + o_v
        step = tl.cast(groups, tl.int64) * voxels
        tl.store(place, wa, o_v < voxels)
        tl.store(place + step, wb, o_v < voxels)
        tl.store(place + 2 * step, wc, o_v < voxels)


@triton.jit
def _gate_gradients(
    p_a, p_b, p_c, p_dout, p_weights, p_matrices, p_dgates, aD, aH, aW, bD, bH, bW, cD, cH, cW, C, groups, D, H, W,
    A: tl.constexpr, B: tl.constexpr, CC: tl.constexpr, CHANNELS_LAST: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    i_n, i_g = tl.program_id(1) // groups, tl.program_id(1) % groups
    width, voxels = C // groups, D * H * W
    o_v = (tl.program_id(0) * BV + tl.arange(0, BV))[:, None]
    w, h, d = o_v % W, (o_v // W) % H, o_v // (W * H)
    ua, ub, uc = tl.zeros((BV, 1), tl.float32), tl.zeros((BV, 1), tl.float32), tl.zeros((BV, 1), tl.float32)
    for start in range(0, width, BC):
        o_w = (start + tl.arange(0, BC))[None, :]
        o_c = i_g * width + o_w
        mask = (o_v < voxels) & (o_w < width)
        dout = tl.load(p_dout + offset(i_n, o_c, d, h, w, C, D, H, W, CHANNELS_LAST), mask, other=0.0).to(tl.float32)
        if A:
            value, _ = _sample(p_a, p_matrices, i_n, o_c, d, h, w, C, aD, aH, aW, mask, CHANNELS_LAST)
            ua += tl.sum(value * dout, 1)[:, None]
        if B:
            value, _ = _sample(p_b, p_matrices + 12, i_n, o_c, d, h, w, C, bD, bH, bW, mask, CHANNELS_LAST)
            ub += tl.sum(value * dout, 1)[:, None]
        if CC:
            value, _ = _sample(p_c, p_matrices + 24, i_n, o_c, d, h, w, C, cD, cH, cW, mask, CHANNELS_LAST)
            uc += tl.sum(value * dout, 1)[:, None]
    place = (i_n.to(tl.int64) * 3 * groups + i_g) * voxels + o_v
    step = tl.cast(groups, tl.int64) * voxels
    wa = tl.load(p_weights + place, o_v < voxels, other=0.0)
    wb = tl.load(p_weights + place + step, o_v < voxels, other=0.0)
    wc = tl.load(p_weights + place + 2 * step, o_v < voxels, other=0.0)
    mean = wa * ua + wb * ub + wc * uc
    tl.store(p_dgates + place, (wa * (ua - mean)).to(p_dgates.dtype.element_ty), o_v < voxels)
    tl.store(p_dgates + place + step, (wb * (ub - mean)).to(p_dgates.dtype.element_ty), o_v < voxels)
    tl.store(p_dgates + place + 2 * step, (wc * (uc - mean)).to(p_dgates.dtype.element_ty), o_v < voxels)


@triton.jit
def _share(c, v, side):
    """A voxel's share of a coordinate along one axis; 0 where the coordinate lies outside the volume."""
    inside, held = _within(c, side)
    return tl.where(inside, tl.maximum(1.0 - tl.abs(held - v.to(tl.float32)), 0.0), 0.0)


@triton.jit
def _volume_gradient(
    p_dout, p_weights, p_matrix, p_inverse, p_gradient, i_plane, boxD, boxH, boxW, pD, pH, pW, C, groups, D, H, W,
    CHANNELS_LAST: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Of one plane, whose sides are p*: each voxel visits the box of result voxels around its own place."""
    i_n, i_g = tl.program_id(2) // groups, tl.program_id(2) % groups
    width, voxels = C // groups, D * H * W
    o_v = (tl.program_id(0) * BV + tl.arange(0, BV))[:, None]
    o_w = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    o_c = i_g * width + o_w
    mask = (o_v < pD * pH * pW) & (o_w < width)
    v2, v1, v0 = o_v % pW, (o_v // pW) % pH, o_v // (pW * pH)
    x, y, z = _place(p_inverse, v0, v1, v2)
    # The first voxel of the box; a hair lower, since the box was counted in float64 and the place is float32.
    x0, y0, z0 = _first(x, boxD), _first(y, boxH), _first(z, boxW)
    p_w = p_weights + ((i_n.to(tl.int64) * 3 + i_plane) * groups + i_g) * voxels
    total = tl.zeros((BV, BC), tl.float32)
    for i in range(0, boxD):
        for j in range(0, boxH):
            for k in range(0, boxW):
                d, h, w = x0 + i, y0 + j, z0 + k
                there = (d >= 0) & (d < D) & (h >= 0) & (h < H) & (w >= 0) & (w < W) & (o_v < pD * pH * pW)
                a, b, c = _place(p_matrix, d, h, w)
                share = _share(a, v0, pD) * _share(b, v1, pH) * _share(c, v2, pW)
                weight = tl.load(p_w + (d.to(tl.int64) * H + h) * W + w, there, other=0.0)
                place = p_dout + offset(i_n, o_c, d, h, w, C, D, H, W, CHANNELS_LAST)
                total += share * weight * tl.load(place, there & mask, other=0.0).to(tl.float32)
    place = p_gradient + offset(i_n, o_c, v0, v1, v2, C, pD, pH, pW, CHANNELS_LAST)
    tl.store(place, total.to(p_gradient.dtype.element_ty), mask)


@triton.jit
def _first(x, box):
    return tl.floor(x - (box - 1) * 0.5).to(tl.int32)


def forward(volumes: Sequence[Tensor | None], gates: Tensor, to_plane: Tensor, out: Tensor, weights: Tensor) -> None:
    """Write the result and the planes' weights."""
    given, has, sides = _given(volumes, out)
    channels_last, tile, blocks = _cut(out, gates.shape[2])
    grid = triton.cdiv(_voxels(out), tile["BV"]), blocks, out.shape[0] * gates.shape[2]
    _forward[grid](
        *given, gates, to_plane.float().contiguous(), out, weights, *sides, out.shape[1], gates.shape[2],
        *out.shape[2:], **has, CHANNELS_LAST=channels_last, **tile, num_warps=_WARPS,
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
    channels_last, tile, blocks = _cut(dout, gates.shape[2])
    there, back = to_plane.float().contiguous(), to_result.float().contiguous()
    C, groups, result = dout.shape[1], gates.shape[2], dout.shape[2:]
    _gate_gradients[(triton.cdiv(_voxels(dout), tile["BV"]), dout.shape[0] * groups)](
        *given, dout, weights, there, dgates, *sides, C, groups, *result, **has, CHANNELS_LAST=channels_last, **tile,
        num_warps=_WARPS,
    )  # fmt: skip
    for n, gradient in enumerate(gradients):
        if gradient is None:
            continue
        # One voxel more than the support can reach: the box begins at a whole voxel.
        box = [side + 1 for side in boxes[3 * n : 3 * n + 3]]
        _volume_gradient[(triton.cdiv(_voxels(gradient), tile["BV"]), blocks, dout.shape[0] * groups)](
            dout, weights, there[n], back[n], gradient, n, *box, *gradient.shape[2:], C, groups, *result,
            CHANNELS_LAST=channels_last, **tile, num_warps=_gradient_warps(channels_last),
        )  # fmt: skip


def _given(volumes: Sequence[Tensor | None], other: Tensor) -> tuple[list[Tensor], dict[str, bool], list[int]]:
    """A pointer for each plane (never read where it is missing), which are there, and their sides."""
    given = [other if volume is None else volume for volume in volumes]
    has = dict(zip(("A", "B", "CC"), (volume is not None for volume in volumes), strict=True))
    return given, has, [side for volume in given for side in volume.shape[2:]]


def _cut(x: Tensor, groups: int) -> tuple[bool, dict[str, int], int]:
    channels_last = not x.is_contiguous()
    tile = tile_of(x.shape[1] // groups, channels_last)
    return channels_last, tile, triton.cdiv(x.shape[1] // groups, tile["BC"])


def tile_of(width: int, channels_last: bool) -> dict[str, int]:
    """Sides of a tile, for groups of so many channels."""
    channels = min(triton.next_power_of_2(width), 64 if channels_last else 4)
    return {"BV": _TILE // channels, "BC": channels}


def _gradient_warps(channels_last: bool) -> int:
    """Of a volume's gradient: with the other number it spills, channels first on sm_100 and channels last on sm_80."""
    return 4 if channels_last else 8


def _voxels(x: Tensor) -> int:
    return x[0, 0].numel()


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take a volume, or None."""
    return wrong_dtype(x)


def configurations() -> Iterator[Configuration]:
    """Three planes' features at half of the published size, 64 channels in 4 groups, on a grid of 1.5 mm."""
    sides = {f"{plane}{axis}": side for plane in "abc" for axis, side in zip("DHW", (8, 128, 128), strict=True)}
    sizes = {"C": 64, "groups": 4, "D": 96, "H": 96, "W": 96, "pD": 8, "pH": 128, "pW": 128}
    boxes = {"i_plane": 2, "boxD": 6, "boxH": 3, "boxW": 3}
    pointers = dict.fromkeys(("p_weights", "p_matrices", "p_matrix", "p_inverse", "p_gates", "p_dgates"), "*fp32")
    for kernel, pointer, last in product(
        (_forward, _gate_gradients, _volume_gradient), ("*fp32", "*bf16"), (False, True)
    ):
        named = {**sides, **sizes, **boxes, **pointers, "A": True, "B": True, "CC": True, "CHANNELS_LAST": last}
        named |= tile_of(16, last)
        arguments = {name: named.get(name, pointer) for name in kernel.arg_names}
        warps = _gradient_warps(last) if kernel is _volume_gradient else _WARPS
        yield Configuration("plane_fusion", kernel, arguments, warps)
