"""The anatomy on a series' grid: which parts fill each voxel of a thick slice.

A voxel is asked at SAMPLES points spread through the slice's thickness and, in turn, over the pixel, so a border that
runs obliquely through a slice comes out as the mixture a real slice shows. Blocks of voxels that lie well inside one
part are filled at once.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from orthokernels.data.phantom.anatomy import Knee
from orthokernels.data.phantom.field import part_at

SAMPLES = 8

# Where the samples lie in a voxel: fractions of the pixel along i and j, and of the thickness along k. Depths are
# even; over the pixel the points are those of a base-2 sequence, so neither direction is left out in thin parts.
_OFFSETS = np.array(
    [[(n * 5 % 8 + 0.5) / 8 - 0.5, (n * 3 % 8 + 0.5) / 8 - 0.5, (n + 0.5) / SAMPLES - 0.5] for n in range(SAMPLES)]
)

# Distances are close to true near a surface but not exact: a block counts as filled only this far from the next part.
_MARGIN_FACTOR = 1.35
_MARGIN_MM = 0.4


@njit(cache=True, nogil=True)
def _fill_if_clear(
    parts: np.ndarray, i: int, j: int, size: int, corner: np.ndarray, steps: np.ndarray, knee: Knee, reach: float
) -> bool:
    """Fill ``size`` x ``size`` voxels from (i, j) with the part at their centre, if no other part comes near."""
    ci, cj = i + 0.5 * (size - 1), j + 0.5 * (size - 1)
    x = corner[0] + ci * steps[0, 0] + cj * steps[0, 1]
    y = corner[1] + ci * steps[1, 0] + cj * steps[1, 1]
    z = corner[2] + ci * steps[2, 0] + cj * steps[2, 1]
    part, clearance = part_at(x, y, z, knee)
    if clearance < reach:
        return False
    for ii in range(i, min(i + size, parts.shape[0])):
        for jj in range(j, min(j + size, parts.shape[1])):
            parts[ii, jj] = part
    return True


@njit(cache=True, nogil=True)
def _sample_voxel(
    samples: np.ndarray, i: int, j: int, corner: np.ndarray, steps: np.ndarray, offsets: np.ndarray, knee: Knee
) -> None:
    for n in range(len(offsets)):
        ui, uj, uk = i + offsets[n, 0], j + offsets[n, 1], offsets[n, 2]
        x = corner[0] + ui * steps[0, 0] + uj * steps[0, 1] + uk * steps[0, 2]
        y = corner[1] + ui * steps[1, 0] + uj * steps[1, 1] + uk * steps[1, 2]
        z = corner[2] + ui * steps[2, 0] + uj * steps[2, 1] + uk * steps[2, 2]
        samples[n] = part_at(x, y, z, knee)[0]


@njit(cache=True, nogil=True)
def _sample_slice(
    parts: np.ndarray, corner: np.ndarray, steps: np.ndarray, offsets: np.ndarray, reach: np.ndarray, knee: Knee
) -> None:
    """Fill ``parts`` (i, j, SAMPLES) of one slice in blocks of 16, 4 and 1 voxels; ``reach`` (3,) is theirs in mm."""
    for i in range(0, parts.shape[0], 16):
        for j in range(0, parts.shape[1], 16):
            if _fill_if_clear(parts, i, j, 16, corner, steps, knee, reach[0]):
                continue
            for i4 in range(i, min(i + 16, parts.shape[0]), 4):
                for j4 in range(j, min(j + 16, parts.shape[1]), 4):
                    if _fill_if_clear(parts, i4, j4, 4, corner, steps, knee, reach[1]):
                        continue
                    for i1 in range(i4, min(i4 + 4, parts.shape[0])):
                        for j1 in range(j4, min(j4 + 4, parts.shape[1])):
                            if not _fill_if_clear(parts, i1, j1, 1, corner, steps, knee, reach[2]):
                                _sample_voxel(parts[i1, j1], i1, j1, corner, steps, offsets, knee)


def sample_parts(knee: Knee, to_knee: np.ndarray, shape: tuple[int, int, int], thickness: float) -> np.ndarray:
    """The parts in every voxel of a series, SAMPLES to each.

    Args:
        knee: the anatomy.
        to_knee: (4, 4) from voxel indices (i, j, k) to mm in the knee's frame.
        shape: voxels along i, j and k.
        thickness: of a slice in mm; what lies in the gap between two slices is not seen.

    Returns:
        (k, i, j, SAMPLES) uint8 values of ``Part``; slices first, so that each is contiguous.
    """
    count_i, count_j, count_k = shape
    parts = np.empty((count_k, count_i, count_j, SAMPLES), np.uint8)
    steps = np.ascontiguousarray(to_knee[:3, :3])
    steps[:, 2] *= thickness / np.linalg.norm(steps[:, 2])
    reach = np.array([_reach(steps, size) for size in (16, 4, 1)])

    def fill(k: int) -> None:
        corner = to_knee[:3, 2] * k + to_knee[:3, 3]
        _sample_slice(parts[k], corner, steps, _OFFSETS, reach, knee)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(count_k)))
    return parts


def _reach(steps: np.ndarray, size: int) -> float:
    """How far the next part must be from the centre of a block for the whole block to be one part."""
    half = 0.5 * np.array([size, size, 1.0]) * np.linalg.norm(steps, axis=0)
    return _MARGIN_FACTOR * float(np.linalg.norm(half)) + _MARGIN_MM
