"""Distances to simple solids, in mm: negative inside, zero on the surface.

Each is close to the true distance near the surface and never far above it elsewhere, which is what the sampler needs
to skip a whole block of voxels. A solid's numbers stand in one flat array ``s`` from index ``at``: slicing arrays in
compiled code would cost more than the arithmetic. Ellipsoids follow the first-order bound of Inigo Quilez, value over
gradient.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Compiled code of the phantom: no counting of references to arrays, whose atomic steps cost more than the arithmetic
# (part_at asked for nothing: 225 ns with it, 120 without), no check for division by zero, and no care for infinities.
# The order of sums stays, so that a machine's vectors do not show in the result.
compiled = njit(  # type: ignore[call-overload]
    _nrt=False, error_model="numpy", fastmath={"nnan", "ninf", "nsz", "arcp"}
)

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
    if gradient < 1e-9:
        return -smallest
    return max(value * (value - 1.0) / gradient, -smallest)


@compiled
def column(x: float, y: float, z: float, s: np.ndarray, at: int, ends: int, square: float) -> float:
    """Distance to a solid given by its outline at each height.

    At ``at`` stand TABLE_ROWS rows of 6, TABLE_STEP mm apart from TABLE_START: centre x and y, half-axes x and y,
    cosine and sine of the outline's turn. At ``ends`` stand the lowest and highest z. ``square`` goes from 0, an
    ellipse, to 1, a rounded rectangle.
    """
    low, high = s[ends], s[ends + 1]
    above = max(low - z, z - high)
    row = (min(max(z, low), high) - TABLE_START) / TABLE_STEP
    i = int(row)
    t = row - i
    a = at + 6 * i
    b = a + 6
    dx = x - (s[a] + t * (s[b] - s[a]))
    dy = y - (s[a + 1] + t * (s[b + 1] - s[a + 1]))
    rx = s[a + 2] + t * (s[b + 2] - s[a + 2])
    ry = s[a + 3] + t * (s[b + 3] - s[a + 3])
    u = abs(s[a + 4] * dx + s[a + 5] * dy) / rx
    v = abs(s[a + 4] * dy - s[a + 5] * dx) / ry
    smallest = min(rx, ry)
    round_norm = math.sqrt(u * u + v * v)
    if round_norm < 1e-6:
        return max(-smallest, above)
    box_norm = math.sqrt(math.sqrt(u * u * u * u + v * v * v * v))
    value = (1.0 - square) * round_norm + square * box_norm
    p, q = (1.0 - square) / round_norm, square / (box_norm * box_norm * box_norm)
    gx = (p * u + q * u * u * u) / rx
    gy = (p * v + q * v * v * v) / ry
    across = max((value - 1.0) / math.sqrt(gx * gx + gy * gy), -smallest)
    return max(across, above)


@compiled
def cord(x: float, y: float, z: float, s: np.ndarray, at: int, count: int, blend: float) -> float:
    """Distance to a chain of round cones: ``count`` points of 4 numbers, x, y, z and radius."""
    best = 1e9
    for i in range(count - 1):
        a = at + 4 * i
        bx, by, bz = s[a + 4] - s[a], s[a + 5] - s[a + 1], s[a + 6] - s[a + 2]
        px, py, pz = x - s[a], y - s[a + 1], z - s[a + 2]
        t = min(max((px * bx + py * by + pz * bz) / (bx * bx + by * by + bz * bz), 0.0), 1.0)
        dx, dy, dz = px - t * bx, py - t * by, pz - t * bz
        d = math.sqrt(dx * dx + dy * dy + dz * dz) - ((1.0 - t) * s[a + 3] + t * s[a + 7])
        best = smooth_min(best, d, blend)
    return best


@compiled
def strap(x: float, y: float, z: float, s: np.ndarray, at: int, count: int) -> float:
    """Distance to a flat band along a chain, thinner towards its edges.

    ``count`` points of 8 numbers: x, y, z, half the width, half the thickness, the unit vector across the band's width.
    """
    best = 1e9
    for i in range(count - 1):
        a = at + 8 * i
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
        thinner = half_thickness * min(0.6 * (along / half_width) ** 2, 0.6)
        best = min(best, math.sqrt(over * over + rest * rest) - half_thickness + thinner)
    return best
