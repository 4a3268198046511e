"""The 95th-percentile symmetric surface distance of two label maps, in millimetres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def surface_distance_95(
    a: np.ndarray, b: np.ndarray, spacing: Sequence[float], known: np.ndarray | None = None
) -> float | None:
    """The larger of the two directed 95th percentiles of surface voxels' distances to the other surface, in mm.

    A surface voxel belongs to the mask and shares a face with a voxel outside it; the border of the volume is outside.

    Args:
        a, b: masks of one shape, any dtype; non-zero is inside.
        spacing: mm between voxels along each axis.
        known: where the masks are to be believed; None is everywhere. What lies outside it is in neither mask, and a
            mask that ends where knowledge ends has no surface there.

    Returns:
        None where a mask has no surface to be far from: it is empty, or nothing is known around it.

    Raises:
        ValueError: the shapes differ.
    """
    known = np.ones(a.shape, bool) if known is None else known.astype(bool)
    if not a.shape == b.shape == known.shape:
        raise ValueError(f"masks of shapes {a.shape}, {b.shape} and {known.shape}")
    a, b = a.astype(bool) & known, b.astype(bool) & known
    if not a.any() or not b.any():
        return None
    inside = _box(a | b)  # the distance transform of a whole series would cost a hundred times as much
    a, b = (_surface(mask[inside], known[inside]) for mask in (a, b))
    if not a.any() or not b.any():
        return None
    to_b = ndimage.distance_transform_edt(~b, sampling=spacing)[a]
    to_a = ndimage.distance_transform_edt(~a, sampling=spacing)[b]
    return float(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))


def _surface(mask: np.ndarray, known: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask | ~known)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """A box around a mask that is not empty, with its voxels' neighbours, so that surfaces in it stay the same."""
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, side.start - 1), side.stop + 1) for side in found)
