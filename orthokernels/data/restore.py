"""Network slices back to the scanner's grid, slab by slab, so that a whole volume's logits are never held.

A slice that several slabs cover gets the sum of their logits, each weighted by how far the slice lies inside its slab.
Once no later slab can touch a slice, its logits are sampled at the native pixels and only the largest class is kept.
"""

from __future__ import annotations

import numba
import numpy as np

from orthokernels.data.prepare import SLAB, WayBack, _source_position, nearest


class Restorer:
    """Collects the logits of one volume's slabs, in order, into a native label map."""

    def __init__(self, way_back: WayBack) -> None:
        self._way_back = way_back
        self._labels = np.zeros(way_back.shape, np.uint8)
        self._view = way_back.turn.apply(self._labels)
        self._open: dict[int, np.ndarray] = {}  # network slice -> weighted logits (C, H, W), until it is complete
        self._next = 0

    def add(self, logits: np.ndarray) -> None:
        """Take the next slab's logits, axes (C, D, H, W) with D = 16, float32."""
        starts = self._way_back.starts
        if self._next == len(starts):
            raise ValueError(f"all {len(starts)} slabs have been added")
        if logits.shape[1:] != (SLAB, self._way_back.size, self._way_back.size):
            raise ValueError(f"logits have shape {logits.shape}; expected (C, {SLAB}, size, size)")
        start = starts[self._next]
        for depth in range(SLAB):
            weight = np.float32(min(depth + 1, SLAB - depth))
            weighted = logits[:, depth] * weight
            known = self._open.get(start + depth)
            self._open[start + depth] = weighted if known is None else known + weighted
        self._next += 1
        covered = starts[self._next] if self._next < len(starts) else self._way_back.slices
        for index in [k for k in self._open if k < covered]:
            sampled = np.ascontiguousarray(self._open.pop(index).transpose(1, 2, 0))
            _largest_class(sampled, self._view[:, :, self._way_back.first + index])

    def labels(self) -> np.ndarray:
        """The label map, axes and shape of the native volume, uint8; zero outside the prepared slices."""
        if self._next < len(self._way_back.starts):
            raise ValueError(f"{self._next} of {len(self._way_back.starts)} slabs have been added")
        return self._labels


@numba.njit(cache=True)
def _largest_class(logits: np.ndarray, out: np.ndarray) -> None:  # pragma: no cover (compiled)
    """Arg-max of ``logits`` (H, W, C), sampled bilinearly at the pixels of ``out`` (I, J); ties go to the lower."""
    height, width, classes = logits.shape
    scale_h, scale_w = height / out.shape[0], width / out.shape[1]
    for i in range(out.shape[0]):
        h0, h1, wh = _source_position(i, scale_h, height)
        for j in range(out.shape[1]):
            w0, w1, ww = _source_position(j, scale_w, width)
            best, largest = 0, -np.inf
            for c in range(classes):
                left = logits[h0, w0, c] * (1.0 - ww) + logits[h0, w1, c] * ww
                right = logits[h1, w0, c] * (1.0 - ww) + logits[h1, w1, c] * ww
                value = left * (1.0 - wh) + right * wh
                if value > largest:
                    best, largest = c, value
            out[i, j] = best


def restore_labels(slices: np.ndarray, way_back: WayBack) -> np.ndarray:
    """A label map on network slices (K', H, W) to the native grid (I, J, K), by the nearest sample, same dtype."""
    labels = np.zeros(way_back.shape, slices.dtype)
    view = way_back.turn.apply(labels)
    h = nearest(view.shape[0], way_back.size)
    w = nearest(view.shape[1], way_back.size)
    view[:, :, way_back.first : way_back.first + way_back.slices] = slices[:, h][:, :, w].transpose(1, 2, 0)
    return labels
