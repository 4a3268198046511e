"""Distances to simple solids, in mm: negative inside, zero on the surface.

Each is close to the true distance near the surface and never far above it elsewhere, which is what the sampler needs
to skip a whole block of voxels. Ellipsoids follow the first-order bound of Inigo Quilez, value over gradient.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

TABLE_START = -120.0
TABLE_STEP = 2.0
TABLE_ROWS = 131


@njit(cache=True)
def smooth_min(a: float, b: float, radius: float) -> float:
    """The smaller of two distances, with the crease filled over ``radius`` mm: a blended union."""
    h = max(radius - abs(a - b), 0.0) / radius
    return min(a, b) - 0.25 * h * h * radius


@njit(cache=True)
def smooth_max(a: float, b: float, radius: float) -> float:
    """The larger of two distances, with the edge rounded over ``radius`` mm: a blended intersection."""
    return -smooth_min(-a, -b, radius)


@njit(cache=True)
def smooth_step(low: float, high: float, value: float) -> float:
    """0 below ``low``, 1 above ``high``, a cubic between."""
    t = min(max((value - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


@njit(cache=True)
def ellipsoid(x: float, y: float, z: float, e: np.ndarray) -> float:
    """Distance to an axis-aligned ellipsoid; ``e`` is (6,): centre and half-axes."""
    return narrowed_ellipsoid(x, y, z, e, 0.0)


@njit(cache=True)
def narrowed_ellipsoid(x: float, y: float, z: float, e: np.ndarray, less: float) -> float:
    """``ellipsoid`` with its half-axis along x shorter by ``less`` mm."""
    rx = e[3] - less
    ux, uy, uz = (x - e[0]) / rx, (y - e[1]) / e[4], (z - e[2]) / e[5]
    value = math.sqrt(ux * ux + uy * uy + uz * uz)
    gx, gy, gz = ux / rx, uy / e[4], uz / e[5]
    gradient = math.sqrt(gx * gx + gy * gy + gz * gz)
    smallest = min(rx, e[4], e[5])
    if gradient < 1e-9:
        return -smallest
    return max(value * (value - 1.0) / gradient, -smallest)


@njit(cache=True)
def column(x: float, y: float, z: float, table: np.ndarray, ends: np.ndarray, square: float) -> float:
    """Distance to a solid given by its outline at each height.

    ``table`` is (TABLE_ROWS, 6): centre x and y, half-axes x and y, cosine and sine of the outline's turn, in rows of
    TABLE_STEP mm from TABLE_START. ``ends`` is (2,), the lowest and highest z. ``square`` goes from 0, an ellipse, to
    1, a rounded rectangle.
    """
    above = max(ends[0] - z, z - ends[1])
    row = (min(max(z, ends[0]), ends[1]) - TABLE_START) / TABLE_STEP
    i = int(row)
    t = row - i
    s = 1.0 - t
    dx = x - (s * table[i, 0] + t * table[i + 1, 0])
    dy = y - (s * table[i, 1] + t * table[i + 1, 1])
    rx = s * table[i, 2] + t * table[i + 1, 2]
    ry = s * table[i, 3] + t * table[i + 1, 3]
    cosine, sine = table[i, 4], table[i, 5]
    u = abs(cosine * dx + sine * dy) / rx
    v = abs(cosine * dy - sine * dx) / ry
    smallest = min(rx, ry)
    round_norm = math.sqrt(u * u + v * v)
    if round_norm < 1e-6:
        return max(-smallest, above)
    box_norm = math.sqrt(math.sqrt(u**4 + v**4))
    value = (1.0 - square) * round_norm + square * box_norm
    gx = ((1.0 - square) * u / round_norm + square * (u / box_norm) ** 3) / rx
    gy = ((1.0 - square) * v / round_norm + square * (v / box_norm) ** 3) / ry
    across = max((value - 1.0) / math.sqrt(gx * gx + gy * gy), -smallest)
    return max(across, above)


@njit(cache=True)
def cord(x: float, y: float, z: float, points: np.ndarray, blend: float) -> float:
    """Distance to a chain of round cones; ``points`` is (n, 4): x, y, z and radius."""
    best = 1e9
    for i in range(len(points) - 1):
        a, b = points[i], points[i + 1]
        bx, by, bz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
        px, py, pz = x - a[0], y - a[1], z - a[2]
        t = min(max((px * bx + py * by + pz * bz) / (bx * bx + by * by + bz * bz), 0.0), 1.0)
        dx, dy, dz = px - t * bx, py - t * by, pz - t * bz
        d = math.sqrt(dx * dx + dy * dy + dz * dz) - ((1.0 - t) * a[3] + t * b[3])
        best = smooth_min(best, d, blend)
    return best


@njit(cache=True)
def strap(x: float, y: float, z: float, points: np.ndarray) -> float:
    """Distance to a flat band along a chain.

    ``points`` is (n, 8): x, y, z, half the width, half the thickness, and the unit vector across the band's width.
    """
    best = 1e9
    for i in range(len(points) - 1):
        a, b = points[i], points[i + 1]
        bx, by, bz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
        px, py, pz = x - a[0], y - a[1], z - a[2]
        t = min(max((px * bx + py * by + pz * bz) / (bx * bx + by * by + bz * bz), 0.0), 1.0)
        dx, dy, dz = px - t * bx, py - t * by, pz - t * bz
        along = dx * a[5] + dy * a[6] + dz * a[7]
        rest = math.sqrt(max(dx * dx + dy * dy + dz * dz - along * along, 0.0))
        half_width = (1.0 - t) * a[3] + t * b[3]
        half_thickness = (1.0 - t) * a[4] + t * b[4]
        over = max(abs(along) - (half_width - half_thickness), 0.0)
        best = min(best, math.sqrt(over * over + rest * rest) - half_thickness)
    return best
