"""The 95th-percentile symmetric surface distance of two label maps, in millimetres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def surface_distance_95(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> float | None:
    """The larger of the two directed 95th percentiles of surface voxels' distances to the other surface, in mm.

    A surface voxel belongs to the mask and shares a face with a voxel outside it; the border of the volume is outside.

    Args:
        a, b: masks of one shape, any dtype; non-zero is inside.
        spacing: mm between voxels along each axis.

    Returns:
        None where a mask is empty: there is no surface to be far from.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"masks of shapes {a.shape} and {b.shape}")
    a, b = a.astype(bool), b.astype(bool)
    if not a.any() or not b.any():
        return None
    inside = _box(a | b)  # the distance transform of a whole series would cost a hundred times as much
    a, b = _surface(a[inside]), _surface(b[inside])
    to_b = ndimage.distance_transform_edt(~b, sampling=spacing)[a]
    to_a = ndimage.distance_transform_edt(~a, sampling=spacing)[b]
    return float(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around a mask that is not empty. Outside it both masks are empty, so surfaces stay the same."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]
