"""A volume to the network's input, and the way back kept.

Two modes. ``published`` gives the array of the published preparation: the centre 16 slices in the file's own order,
each resized to 256 x 256 bilinearly, then mapped from the minimum and maximum of what is left to [-1, 1]. ``full``
turns the volume to its plane's usual view first, covers every slice with overlapping slabs of 16, and takes minimum and
maximum over all of them, so that overlapping slabs agree.

The network's axes are (D, H, W) = (k, i, j) of the volume, as the published loader stacks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np

from orthokernels.data.geometry import IDENTITY, Turn, slice_axis
from orthokernels.data.volume import MIN_SLICES, Volume
from orthokernels.errors import InputError

Mode = Literal["published", "full"]

SLAB = MIN_SLICES
SIZE = 256

# Neighbouring slabs share at least this many slices: the outermost slices of a slab have no neighbours on one side.
_MIN_OVERLAP = 4

_EPSILON = 1e-8  # of the published min-max normalisation


@dataclass(frozen=True)
class WayBack:
    """How network slices relate to the volume they came from.

    Attributes:
        shape: native (I, J, K).
        turn: from native axes to the view that was prepared.
        first: the view's slice that became network slice 0.
        slices: how many slices were prepared.
        starts: network slice at which each slab of 16 begins.
        size: side of the network's square slices.
        low, high: intensities that became -1 and 1.
    """

    shape: tuple[int, int, int]
    turn: Turn
    first: int
    slices: int
    starts: tuple[int, ...]
    size: int
    low: float
    high: float


@dataclass(frozen=True)
class Prepared:
    """``slices``: (K', H, W) float32 in [-1, 1]; slabs are views of it."""

    slices: np.ndarray
    way_back: WayBack

    def slab(self, number: int) -> np.ndarray:
        """Slab ``number``, axes (C, D, H, W) = (1, 16, H, W), float32; a view."""
        start = self.way_back.starts[number]
        return self.slices[np.newaxis, start : start + SLAB]


def prepare(volume: Volume, mode: Mode = "full", size: int = SIZE) -> Prepared:
    """Crop, resize and normalise.

    Raises:
        InputError: fewer than 16 slices, or (``published``) a file whose slices do not lie along its third axis.
    """
    if mode == "published" and slice_axis(volume.affine) != 2:
        raise InputError(
            f"{volume.source.description}: its slices lie along axis {slice_axis(volume.affine) + 1}, but the "
            "published preparation cuts along the third. Use --preparation full."
        )
    turn = IDENTITY if mode == "published" else volume.turn
    view = turn.apply(volume.voxels)
    depth = view.shape[2]
    if depth < SLAB:
        raise InputError(f"{volume.source.description}: {depth} slices; at least {SLAB} are needed.")
    first, slices = (depth // 2 - SLAB // 2, SLAB) if mode == "published" else (0, depth)
    out = np.empty((slices, size, size), np.float32)
    low, high = _resize_and_normalise(view, first, out)
    way_back = WayBack(volume.shape, turn, first, slices, slab_starts(slices), size, float(low), float(high))
    return Prepared(out, way_back)


def slab_starts(slices: int) -> tuple[int, ...]:
    """First slice of each slab: as few as cover all slices with at least 4 shared, spread evenly."""
    count = 1 + max(0, -(-(slices - SLAB) // (SLAB - _MIN_OVERLAP)))
    return tuple(round(n * (slices - SLAB) / max(1, count - 1)) for n in range(count))


@numba.njit(cache=True)
def _source_position(index: int, scale: float, length: int) -> tuple[int, int, float]:  # pragma: no cover (compiled)
    """The two source indices around an output index and the weight of the second, at OpenCV's sampling positions."""
    position = (index + 0.5) * scale - 0.5
    if position <= 0.0:
        return 0, 0, 0.0
    if position >= length - 1:
        return length - 1, length - 1, 0.0
    lower = int(position)
    return lower, lower + 1, position - lower


@numba.njit(cache=True)
def _resize_and_normalise(
    view: np.ndarray, first: int, out: np.ndarray
) -> tuple[float, float]:  # pragma: no cover (compiled)
    """Fill ``out`` (K', H, W) from ``view`` (I, J, K), slices from ``first`` on; returns minimum and maximum before.

    One pass reads each voxel and writes each sample; the second runs over the samples alone, since their minimum and
    maximum, not the voxels', map to -1 and 1.
    """
    slices, height, width = out.shape
    scale_i, scale_j = view.shape[0] / height, view.shape[1] / width
    low, high = np.inf, -np.inf
    for k in range(slices):
        for h in range(height):
            i0, i1, wi = _source_position(h, scale_i, view.shape[0])
            for w in range(width):
                j0, j1, wj = _source_position(w, scale_j, view.shape[1])
                left = view[i0, j0, first + k] * (1.0 - wj) + view[i0, j1, first + k] * wj
                right = view[i1, j0, first + k] * (1.0 - wj) + view[i1, j1, first + k] * wj
                value = left * (1.0 - wi) + right * wi
                out[k, h, w] = value
                low = min(low, value)
                high = max(high, value)
    scale = 2.0 / (high - low + _EPSILON)
    for k in range(slices):
        for h in range(height):
            for w in range(width):
                out[k, h, w] = (out[k, h, w] - low) * scale - 1.0
    return low, high


def prepare_labels(labels: np.ndarray, way_back: WayBack) -> np.ndarray:
    """A label map on the native grid (I, J, K) to network slices (K', H, W), by the nearest voxel, same dtype."""
    view = way_back.turn.apply(labels)
    h = nearest(way_back.size, view.shape[0])
    w = nearest(way_back.size, view.shape[1])
    chosen = view[:, :, way_back.first : way_back.first + way_back.slices]
    return np.ascontiguousarray(chosen[np.ix_(h, w)].transpose(2, 0, 1))


def nearest(outputs: int, inputs: int) -> np.ndarray:
    """For each of ``outputs`` samples over a side the nearest of ``inputs``; ties go to the lower."""
    positions = (np.arange(outputs) + 0.5) * (inputs / outputs) - 0.5
    return np.clip(np.ceil(positions - 0.5), 0, inputs - 1).astype(np.intp)
