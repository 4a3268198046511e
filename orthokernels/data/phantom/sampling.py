"""A knee sampled on a series' grid: thick slices, partial volume, and each tissue's grain.

Where a point's clearance says that a block of voxels lies inside one part, the block is filled at once; only voxels
that a border may cross are sampled finely.

Numba's cache looks at the date of this file alone: after a change to ``field``, ``distance`` or ``anatomy``, delete
``__pycache__``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from orthokernels.data.phantom.field import DEEP_FAT, MUSCLE, part_at
from orthokernels.data.phantom.parts import Part

BLOCK = 8

# Distances may overstate clearance where outlines flare and waves bend them.
MARGIN = 1.35

# Where a voxel is sampled, as shares of its size: through the slice in seven even steps, within the pixel by the two
# irrational strides that spread points best (powers of the plastic number's inverse).
SAMPLES = 7
_STRIDES = (0.7548776662466927, 0.5698402909980532)
OFFSETS = np.array(
    [[(n * _STRIDES[0]) % 1.0 - 0.5, (n * _STRIDES[1]) % 1.0 - 0.5, (n + 0.5) / SAMPLES - 0.5] for n in range(SAMPLES)]
)

# Texture of each part: strength, and grain in mm along x, y and z of the knee.
_TEXTURES: dict[Part, tuple[float, float, float, float]] = {
    Part.SUBCUTANEOUS_FAT: (0.16, 3.5, 3.5, 5.0),
    Part.DEEP_FAT: (0.22, 3.0, 3.0, 5.0),
    Part.HOFFA_FAT: (0.20, 3.0, 3.0, 3.5),
    Part.MUSCLE: (0.09, 1.8, 1.8, 14.0),
    Part.SYNOVIUM: (0.30, 1.8, 1.8, 2.4),
    Part.FEMUR_MARROW: (0.13, 1.3, 1.3, 2.6),
    Part.TIBIA_MARROW: (0.13, 1.3, 1.3, 2.6),
    Part.PATELLA_MARROW: (0.11, 1.3, 1.3, 1.3),
    Part.FIBULA_MARROW: (0.11, 1.3, 1.3, 2.6),
    Part.FEMORAL_CARTILAGE: (0.08, 3.0, 3.0, 3.0),
    Part.TIBIAL_CARTILAGE: (0.08, 3.0, 3.0, 3.0),
    Part.PATELLAR_CARTILAGE: (0.08, 3.0, 3.0, 3.0),
    Part.ACL: (0.35, 1.5, 1.5, 9.0),
    Part.PCL: (0.15, 1.5, 1.5, 6.0),
    Part.VEIN: (0.15, 3.0, 3.0, 12.0),
}


class Scan(NamedTuple):
    """A series' grid and contrast, as the sampler reads them.

    Attributes:
        to_knee: (4, 4) float64, voxel indices (i, j, k) to the knee's frame in mm.
        thickness: a slice's thickness as a share of the distance between slices.
        signal: (parts,) float32.
        label: (parts,) uint8.
        texture: (parts, 4) float64, strength and grain.
        lattice: (32, 32, 32) float32, the noise that gives the grain.
    """

    to_knee: np.ndarray
    thickness: float
    signal: np.ndarray
    label: np.ndarray
    texture: np.ndarray
    lattice: np.ndarray


def texture_of_parts() -> np.ndarray:
    """(parts, 4) float64: strength and grain of each part; strength 0 where there is none."""
    table = np.zeros((len(Part), 4))
    table[:, 1:] = 1.0
    for part, texture in _TEXTURES.items():
        table[part] = texture
    return table


@njit(cache=True)
def noise_at(x: float, y: float, z: float, lattice: np.ndarray) -> float:
    """Periodic value noise, trilinear between the points of ``lattice`` (32, 32, 32)."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    i, j, k = int(fx) & 31, int(fy) & 31, int(fz) & 31
    i1, j1, k1 = (i + 1) & 31, (j + 1) & 31, (k + 1) & 31
    tx, ty, tz = x - fx, y - fy, z - fz
    a = (1.0 - tx) * lattice[i, j, k] + tx * lattice[i1, j, k]
    b = (1.0 - tx) * lattice[i, j1, k] + tx * lattice[i1, j1, k]
    c = (1.0 - tx) * lattice[i, j, k1] + tx * lattice[i1, j, k1]
    d = (1.0 - tx) * lattice[i, j1, k1] + tx * lattice[i1, j1, k1]
    return (1.0 - tz) * ((1.0 - ty) * a + ty * b) + tz * ((1.0 - ty) * c + ty * d)


@njit(cache=True)
def knee_point(i: float, j: float, k: float, scan: Scan) -> tuple[float, float, float]:
    """A voxel index in the knee's frame, in mm."""
    m = scan.to_knee
    return (
        m[0, 0] * i + m[0, 1] * j + m[0, 2] * k + m[0, 3],
        m[1, 0] * i + m[1, 1] * j + m[1, 2] * k + m[1, 3],
        m[2, 0] * i + m[2, 1] * j + m[2, 2] * k + m[2, 3],
    )


@njit(cache=True)
def textured(part: int, x: float, y: float, z: float, scan: Scan) -> float:
    """A part's signal with its grain; muscle is crossed by strands of fat."""
    signal = float(scan.signal[part])
    strength = scan.texture[part, 0]
    if strength == 0.0:
        return signal
    fine = noise_at(x / scan.texture[part, 1], y / scan.texture[part, 2], z / scan.texture[part, 3], scan.lattice)
    broad = noise_at(x / 11.0 + 7.3, y / 11.0 + 2.9, z / 16.0 + 5.1, scan.lattice)
    signal *= max(1.0 + strength * (fine + 0.5 * broad), 0.2)
    if part == MUSCLE:
        strand = noise_at(x / 4.5 + 3.7, y / 4.5 + 1.3, z / 26.0 + 8.2, scan.lattice)
        share = max(0.0, 1.0 - abs(strand - 0.55) / 0.13) * max(0.0, min(1.0, broad + 0.6))
        signal += 0.7 * share * (scan.signal[DEEP_FAT] - signal)
    return signal


@njit(cache=True)
def scattered(i: int, j: int, k: int) -> float:
    """A number in [0, 1) for every voxel, unlike its neighbours': an integer hash, the same on every machine."""
    h = (i * 73856093 ^ j * 19349663 ^ k * 83492791) & 0x7FFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0x7FFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF) / 65536.0


@njit(cache=True)
def mean_of_samples(i: int, j: int, k: int, knee: np.ndarray, scan: Scan, counts: np.ndarray) -> tuple[float, int]:
    """A voxel's mean signal and the label that most of its samples have; ``counts`` (labels,) is scratch.

    Samples go through the slice in order, and one that lies within the clearance of the last point asked is not asked.
    Each voxel's samples are shifted by its own share of a step, or borders that graze a slice would show as terraces.
    """
    counts[:] = 0
    total = 0.0
    shift = (scattered(i, j, k) - 0.5) / SAMPLES
    part, clear = 0, 0.0
    ax, ay, az = 0.0, 0.0, 0.0
    for n in range(SAMPLES):
        w = k + scan.thickness * (OFFSETS[n, 2] + shift)
        x, y, z = knee_point(i + OFFSETS[n, 0], j + OFFSETS[n, 1], w, scan)
        if (x - ax) ** 2 + (y - ay) ** 2 + (z - az) ** 2 >= clear * clear:
            part, clear = part_at(x, y, z, knee)
            clear /= MARGIN
            ax, ay, az = x, y, z
        total += textured(part, x, y, z, scan)
        counts[scan.label[part]] += 1
    return total / SAMPLES, int(np.argmax(counts))


@njit(cache=True)
def block_radius(side: int, scan: Scan) -> float:
    """Distance in mm from the centre of a block of ``side`` x ``side`` voxels of one slice to its corner."""
    m = scan.to_knee
    i = side * math.sqrt(m[0, 0] ** 2 + m[1, 0] ** 2 + m[2, 0] ** 2)
    j = side * math.sqrt(m[0, 1] ** 2 + m[1, 1] ** 2 + m[2, 1] ** 2)
    k = scan.thickness * math.sqrt(m[0, 2] ** 2 + m[1, 2] ** 2 + m[2, 2] ** 2)
    return 0.5 * math.sqrt(i * i + j * j + k * k)


@njit(cache=True)
def fill_block(
    i0: int, j0: int, k: int, side: int, part: int, knee: np.ndarray, scan: Scan, voxels: np.ndarray, labels: np.ndarray
) -> None:
    """Give every voxel of a block the signal and the label of ``part``."""
    for i in range(i0, min(i0 + side, voxels.shape[0])):
        for j in range(j0, min(j0 + side, voxels.shape[1])):
            x, y, z = knee_point(i, j, k, scan)
            voxels[i, j, k] = textured(part, x, y, z, scan)
            labels[i, j, k] = scan.label[part]


@njit(cache=True, nogil=True)
def sample_grid(knee: np.ndarray, scan: Scan, block: int, voxels: np.ndarray, labels: np.ndarray) -> None:
    """Fill ``voxels`` (i, j, k) float32 and ``labels`` (i, j, k) uint8 with a knee as ``scan`` sees it.

    ``knee`` is a packed knee, (numbers,) float64.
    ``block`` is the side in voxels, a power of two, of the blocks to try to fill at once; 0 samples every voxel finely.
    """
    ni, nj, nk = voxels.shape
    counts = np.zeros(256, np.int64)
    waiting = np.empty((64, 3), np.int64)
    first = max(block, 1)
    for k in range(nk):
        for big_i in range(0, ni, first):
            for big_j in range(0, nj, first):
                waiting[0, 0], waiting[0, 1], waiting[0, 2] = big_i, big_j, first
                left = 1
                while left > 0:
                    left -= 1
                    i, j, side = waiting[left, 0], waiting[left, 1], waiting[left, 2]
                    x, y, z = knee_point(i + 0.5 * (side - 1), j + 0.5 * (side - 1), k, scan)
                    part, clearance = part_at(x, y, z, knee)
                    if block > 0 and clearance > MARGIN * block_radius(side, scan):
                        fill_block(i, j, k, side, part, knee, scan, voxels, labels)
                    elif side > 1:
                        half = side // 2
                        for n in range(4):
                            a, b = i + half * (n // 2), j + half * (n % 2)
                            if a < ni and b < nj:
                                waiting[left, 0], waiting[left, 1], waiting[left, 2] = a, b, half
                                left += 1
                    else:
                        voxels[i, j, k], labels[i, j, k] = mean_of_samples(i, j, k, knee, scan, counts)
