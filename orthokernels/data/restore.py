"""Network slices back to the scanner's grid, slab by slab, so that a whole volume's logits are never held.

A slice that several slabs cover gets the sum of their logits, each weighted by how far the slice lies inside its slab.
Once no later slab can touch a slice, its logits are sampled at the native pixels and only the largest class is kept.
"""

from __future__ import annotations

import numpy as np

from orthokernels import _native
from orthokernels.data.prepare import SLAB, WayBack, nearest


class Restorer:
    """Collects the logits of one volume's slabs, in order, into a native label map.

    Args:
        way_back: of the prepared volume.
        threads: that share the work; the labels do not depend on them.
    """

    def __init__(self, way_back: WayBack, *, threads: int = 1) -> None:
        self._way_back, self._threads = way_back, threads
        self._labels = np.zeros(way_back.shape, np.uint8)
        self._view = way_back.turn.apply(self._labels)
        # Network slice -> logits (C, H, W) of each slab so far and their weights, until it is complete.
        self._open: dict[int, list[tuple[np.ndarray, float]]] = {}
        self._next = 0

    def add(self, logits: np.ndarray) -> None:
        """Take the next slab's logits, axes (C, D, H, W) with D = 16, float32."""
        starts = self._way_back.starts
        if self._next == len(starts):
            raise ValueError(f"all {len(starts)} slabs have been added")
        if logits.shape[1:] != (SLAB, self._way_back.size, self._way_back.size):
            raise ValueError(f"logits have shape {logits.shape}; expected (C, {SLAB}, size, size)")
        start = starts[self._next]
        self._next += 1
        covered = starts[self._next] if self._next < len(starts) else self._way_back.slices
        for depth in range(SLAB):
            index, weight = start + depth, float(min(depth + 1, SLAB - depth))
            parts = self._open.pop(index, [])
            if index < covered:
                self._label(index, [*parts, (logits[:, depth], weight)])
            else:  # a copy, since the slab's memory is the caller's
                self._open[index] = [*parts, (logits[:, depth].copy(order="K"), weight)]

    def _label(self, index: int, parts: list[tuple[np.ndarray, float]]) -> None:
        """Sample a slice bilinearly at the native pixels, at OpenCV's positions; ties go to the lower class."""
        _native.largest_class(parts, self._view[:, :, self._way_back.first + index], threads=self._threads)

    def labels(self) -> np.ndarray:
        """The label map, axes and shape of the native volume, uint8; zero outside the prepared slices."""
        if self._next < len(self._way_back.starts):
            raise ValueError(f"{self._next} of {len(self._way_back.starts)} slabs have been added")
        return self._labels


def restore_labels(slices: np.ndarray, way_back: WayBack) -> np.ndarray:
    """A label map on network slices (K', H, W) to the native grid (I, J, K), by the nearest sample, same dtype."""
    labels = np.zeros(way_back.shape, slices.dtype)
    view = way_back.turn.apply(labels)
    h = nearest(view.shape[0], way_back.size)
    w = nearest(view.shape[1], way_back.size)
    view[:, :, way_back.first : way_back.first + way_back.slices] = slices[:, h][:, :, w].transpose(1, 2, 0)
    return labels
