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

    def covered(self) -> np.ndarray:
        """Which voxels lie in a prepared slice, native (I, J, K), bool."""
        covered = np.zeros(self.shape, bool)
        self.turn.apply(covered)[:, :, self.first : self.first + self.slices] = True
        return covered


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
    axis = slice_axis(volume.affine, volume.source.kind)
    if mode == "published" and axis != 2:
        raise InputError(
            f"{volume.source.description}: its slices lie along axis {axis + 1}, but the "
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


@dataclass(frozen=True)
class _Samples:
    """The two source indices around each output along a side, and the weight of the second, float64."""

    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray


def _samples(outputs: int, inputs: int) -> _Samples:
    """OpenCV's sampling positions; beyond the outermost source's middle there is that source alone."""
    positions = np.clip((np.arange(outputs) + 0.5) * (inputs / outputs) - 0.5, 0.0, inputs - 1)
    lower = positions.astype(np.intp)
    return _Samples(lower, np.minimum(lower + 1, inputs - 1), positions - lower)


def _blended(slices: np.ndarray, samples: _Samples) -> np.ndarray:
    """Sample the first axis, float64. Between two sources it is ``a (1 - w) + b w``, in this order."""
    if not samples.weight.any() and len(samples.lower) == len(slices):
        return slices.astype(np.float64)
    weight = samples.weight[:, np.newaxis]
    blended: np.ndarray = slices[samples.lower] * (1.0 - weight)
    blended += slices[samples.upper] * weight
    return blended


def _resize_and_normalise(view: np.ndarray, first: int, out: np.ndarray) -> tuple[float, float]:
    """Fill ``out`` (K', H, W) from ``view`` (I, J, K), slices from ``first`` on; returns minimum and maximum before.

    The samples' minimum and maximum, not the voxels', map to -1 and 1. Sums are float64, and are rounded when they are
    stored and when they are normalised.
    """
    along_i, along_j = _samples(out.shape[1], view.shape[0]), _samples(out.shape[2], view.shape[1])
    low, high = np.inf, -np.inf
    for k, slot in enumerate(out):
        by_j = _blended(view[:, :, first + k].T, along_j)  # (W, I)
        sampled = _blended(by_j.T, along_i)
        low, high = min(low, float(sampled.min())), max(high, float(sampled.max()))
        slot[...] = sampled
    scale = 2.0 / (high - low + _EPSILON)
    for slot in out:
        slot[...] = (slot.astype(np.float64) - low) * scale - 1.0
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
