"""Distances to simple solids, in mm: negative inside, zero on the surface.

Each is close to the true distance near the surface and never far above it elsewhere, which is what the sampler needs
to skip a whole block of voxels. A solid's numbers stand in one flat array ``s`` from index ``at``: slicing arrays in
compiled code would cost more than the arithmetic. Ellipsoids follow the first-order bound of Inigo Quilez, value over
gradient.

Functions named in the plural ask about ``count`` points at once. Coordinates and results are rows of WIDTH numbers in
one flat array ``p``: a row is named by the index of its first number. Where their loops over points hold arithmetic and
choices alone, no branches, they become vector instructions: with AVX2, beside other work, an ellipsoid took a quarter
of the time that it takes point by point, a strap a quarter, a cord of seven points a third.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

# Compiled code of the phantom: no counting of references to arrays, whose atomic steps cost more than the arithmetic
# (part_at asked for nothing: 225 ns with it, 120 without), no check for division by zero, and no care for infinities.
# The order of sums stays, so that a machine's vectors do not show in the result.
_OPTIONS: dict[str, Any] = {"_nrt": False, "error_model": "numpy", "fastmath": {"nnan", "ninf", "nsz", "arcp"}}
compiled = njit(**_OPTIONS)
# Put into their callers before anything is compiled: short ones, and long ones that are called from one place, which as
# functions of their own would be optimised again for each level above them.
merged = njit(**_OPTIONS, inline="always")

WIDTH = 64
# Added and taken away again, this rounds to the nearest integer; unlike ``floor``, which converts, on whole vectors.
ROUNDING = 1.5 * 2.0**52

TABLE_START = -120.0
TABLE_STEP = 2.0
TABLE_ROWS = 131


@compiled
def smooth_min(a: float, b: float, radius: float) -> float:
    """The smaller of two distances, with the crease filled over ``radius`` mm: a blended union."""
    h = max(radius - abs(a - b), 0.0) / radius
    return min(a, b) - 0.25 * h * h * radius


@compiled
def smooth_max(a: float, b: float, radius: float) -> float:
    """The larger of two distances, with the edge rounded over ``radius`` mm: a blended intersection."""
    return -smooth_min(-a, -b, radius)


@compiled
def smooth_step(low: float, high: float, value: float) -> float:
    """0 below ``low``, 1 above ``high``, a cubic between."""
    t = min(max((value - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


@compiled
def box(x: float, y: float, z: float, s: np.ndarray, at: int) -> float:
    """At most the distance to a box: the lowest x, y and z, then the highest."""
    return max(s[at] - x, x - s[at + 3], s[at + 1] - y, y - s[at + 4], s[at + 2] - z, z - s[at + 5])


@compiled
def ellipsoid(x: float, y: float, z: float, s: np.ndarray, at: int) -> float:
    """Distance to an axis-aligned ellipsoid: 6 numbers, centre and half-axes."""
    return narrowed_ellipsoid(x, y, z, s, at, 0.0)


@compiled
def narrowed_ellipsoid(x: float, y: float, z: float, s: np.ndarray, at: int, less: float) -> float:
    """``ellipsoid`` with its half-axis along x shorter by ``less`` mm."""
    rx, ry, rz = s[at + 3] - less, s[at + 4], s[at + 5]
    ux, uy, uz = (x - s[at]) / rx, (y - s[at + 1]) / ry, (z - s[at + 2]) / rz
    value = math.sqrt(ux * ux + uy * uy + uz * uz)
    gx, gy, gz = ux / rx, uy / ry, uz / rz
    gradient = math.sqrt(gx * gx + gy * gy + gz * gz)
    smallest = min(rx, ry, rz)
    return -smallest if gradient < 1e-9 else max(value * (value - 1.0) / gradient, -smallest)


@compiled
def column(x: float, y: float, z: float, s: np.ndarray, at: int, ends: int, square: float) -> float:
    """Distance to a solid given by its outline at each height.

    At ``at`` stand TABLE_ROWS rows of 6, TABLE_STEP mm apart from TABLE_START: centre x and y, half-axes x and y,
    cosine and sine of the outline's turn. At ``ends`` stand the lowest and highest z. ``square`` goes from 0, an
    ellipse, to 1, a rounded rectangle.
    """
    low, high = s[ends], s[ends + 1]
    u, v, rx, ry = within_outline(x, y, min(max(z, low), high), s, at)
    return max(outline(u, v, rx, ry, square), low - z, z - high)


@compiled
def within_outline(x: float, y: float, z: float, s: np.ndarray, at: int) -> tuple[float, float, float, float]:
    """A point in the frame of the outline at its height, and the outline's half-axes there."""
    row = (z - TABLE_START) / TABLE_STEP
    i = int(row)
    t = row - i
    a = at + 6 * i
    b = a + 6
    dx = x - (s[a] + t * (s[b] - s[a]))
    dy = y - (s[a + 1] + t * (s[b + 1] - s[a + 1]))
    rx = s[a + 2] + t * (s[b + 2] - s[a + 2])
    ry = s[a + 3] + t * (s[b + 3] - s[a + 3])
    return s[a + 4] * dx + s[a + 5] * dy, s[a + 4] * dy - s[a + 5] * dx, rx, ry


@compiled
def outline(x: float, y: float, rx: float, ry: float, square: float) -> float:
    """Distance within a plane to an outline around 0 with half-axes ``rx`` and ``ry``; ``square`` as of ``column``."""
    u, v = abs(x) / rx, abs(y) / ry
    smallest = min(rx, ry)
    round_norm = math.sqrt(u * u + v * v)
    box_norm = math.sqrt(math.sqrt(u * u * u * u + v * v * v * v))
    value = (1.0 - square) * round_norm + square * box_norm
    p, q = (1.0 - square) / round_norm, square / (box_norm * box_norm * box_norm)
    gx = (p * u + q * u * u * u) / rx
    gy = (p * v + q * v * v * v) / ry
    across = max((value - 1.0) / math.sqrt(gx * gx + gy * gy), -smallest)
    return -smallest if round_norm < 1e-6 else across


@compiled
def cone(x: float, y: float, z: float, s: np.ndarray, a: int) -> float:
    """Distance to a round cone between two points of 4 numbers: x, y, z and radius."""
    bx, by, bz = s[a + 4] - s[a], s[a + 5] - s[a + 1], s[a + 6] - s[a + 2]
    px, py, pz = x - s[a], y - s[a + 1], z - s[a + 2]
    t = min(max((px * bx + py * by + pz * bz) / (bx * bx + by * by + bz * bz), 0.0), 1.0)
    dx, dy, dz = px - t * bx, py - t * by, pz - t * bz
    return math.sqrt(dx * dx + dy * dy + dz * dz) - ((1.0 - t) * s[a + 3] + t * s[a + 7])


@compiled
def cord(x: float, y: float, z: float, s: np.ndarray, at: int, count: int, blend: float) -> float:
    """Distance to a chain of round cones: ``count`` points of 4 numbers, x, y, z and radius."""
    best = cone(x, y, z, s, at)
    for i in range(1, count - 1):
        best = smooth_min(best, cone(x, y, z, s, at + 4 * i), blend)
    return best


@compiled
def band(x: float, y: float, z: float, s: np.ndarray, a: int) -> float:
    """Distance to a flat band between two points as of ``strap``."""
    b = a + 8
    bx, by, bz = s[b] - s[a], s[b + 1] - s[a + 1], s[b + 2] - s[a + 2]
    px, py, pz = x - s[a], y - s[a + 1], z - s[a + 2]
    t = min(max((px * bx + py * by + pz * bz) / (bx * bx + by * by + bz * bz), 0.0), 1.0)
    dx, dy, dz = px - t * bx, py - t * by, pz - t * bz
    along = dx * s[a + 5] + dy * s[a + 6] + dz * s[a + 7]
    rest = math.sqrt(max(dx * dx + dy * dy + dz * dz - along * along, 0.0))
    half_width = (1.0 - t) * s[a + 3] + t * s[b + 3]
    half_thickness = (1.0 - t) * s[a + 4] + t * s[b + 4]
    over = max(abs(along) - (half_width - half_thickness), 0.0)
    share = along / half_width
    thinner = half_thickness * min(0.6 * share * share, 0.6)
    return math.sqrt(over * over + rest * rest) - half_thickness + thinner


@compiled
def strap(x: float, y: float, z: float, s: np.ndarray, at: int, count: int) -> float:
    """Distance to a flat band along a chain, thinner towards its edges.

    ``count`` points of 8 numbers: x, y, z, half the width, half the thickness, the unit vector across the band's width.
    """
    best = band(x, y, z, s, at)
    for i in range(1, count - 1):
        best = min(best, band(x, y, z, s, at + 8 * i))
    return best


@compiled
def boxes(p: np.ndarray, count: int, x: int, y: int, z: int, s: np.ndarray, at: int, out: int) -> None:
    """``box`` of many points."""
    for n in range(count):
        p[out + n] = box(p[x + n], p[y + n], p[z + n], s, at)


@compiled
def ellipsoids(
    p: np.ndarray, count: int, x: int, y: int, z: int, s: np.ndarray, at: int, less: float, out: int
) -> None:
    """``narrowed_ellipsoid`` of many points."""
    for n in range(count):
        p[out + n] = narrowed_ellipsoid(p[x + n], p[y + n], p[z + n], s, at, less)


@compiled
def columns(
    p: np.ndarray, count: int, x: int, y: int, z: int, s: np.ndarray, at: int, ends: int, square: float, out: int,
    rows: int,
) -> None:  # fmt: skip
    """``column`` of many points; the four rows from ``rows`` are scratch."""
    low, high = s[ends], s[ends + 1]
    for n in range(count):  # the table's rows differ from point to point, and are read one by one
        u, v, rx, ry = within_outline(p[x + n], p[y + n], min(max(p[z + n], low), high), s, at)
        p[rows + n], p[rows + WIDTH + n] = u, v
        p[rows + 2 * WIDTH + n], p[rows + 3 * WIDTH + n] = rx, ry
    for n in range(count):
        across = outline(p[rows + n], p[rows + WIDTH + n], p[rows + 2 * WIDTH + n], p[rows + 3 * WIDTH + n], square)
        p[out + n] = max(across, low - p[z + n], p[z + n] - high)


@compiled
def cords(
    p: np.ndarray, count: int, x: int, y: int, z: int, s: np.ndarray, at: int, points: int, blend: float, out: int
) -> None:
    """``cord`` of many points."""
    for n in range(count):
        p[out + n] = cone(p[x + n], p[y + n], p[z + n], s, at)
    for i in range(1, points - 1):
        for n in range(count):
            p[out + n] = smooth_min(p[out + n], cone(p[x + n], p[y + n], p[z + n], s, at + 4 * i), blend)


@compiled
def straps(p: np.ndarray, count: int, x: int, y: int, z: int, s: np.ndarray, at: int, points: int, out: int) -> None:
    """``strap`` of many points."""
    for n in range(count):
        p[out + n] = band(p[x + n], p[y + n], p[z + n], s, at)
    for i in range(1, points - 1):
        for n in range(count):
            p[out + n] = min(p[out + n], band(p[x + n], p[y + n], p[z + n], s, at + 8 * i))


@merged
def least(p: np.ndarray, count: int, row: int) -> float:
    """The smallest of a row's numbers."""
    found = p[row]
    for n in range(1, count):
        found = min(found, p[row + n])
    return found


@merged
def most(p: np.ndarray, count: int, row: int) -> float:
    """The largest of a row's numbers."""
    found = p[row]
    for n in range(1, count):
        found = max(found, p[row + n])
    return found


@merged
def assign(p: np.ndarray, count: int, row: int, value: float) -> None:
    """Give a row one value."""
    for n in range(count):
        p[row + n] = value
