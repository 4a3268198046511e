"""Structures drawn over a slice: a light fill, and a thin contour half way between a structure's voxels and others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from PIL import Image

from orthokernels.montage_layout import LegendEntry

FILL = 0.25  # share of a structure's colour inside its contour
_FINE = 3  # samples along each side of a pixel: edges of fills and contours are as smooth as that
# What a pixel takes of a colour by how many of its samples are covered, in steps of 1/255.
_SHARES = np.rint(np.arange(_FINE**2 + 1) * (255 / _FINE**2)).astype(np.float32) / np.float32(255)


def with_structures(grey: np.ndarray, labels: np.ndarray, legend: Sequence[LegendEntry]) -> np.ndarray:
    """Lay the structures of the legend over a picture.

    Args:
        grey: the picture (row, column), uint8.
        labels: of the slice's voxels, the same field of view in rows and columns of its own.
        legend: structures with their label and colour; later ones' contours lie over earlier ones'.

    Returns:
        Pixels (row, column, RGB), uint8.
    """
    # A colour at a time, so that what is mixed lies in a row.
    planes = np.repeat(grey[np.newaxis], 3, axis=0).astype(np.float32)
    contours = []
    for entry in legend:
        mask = labels == entry.index
        if mask.any():
            place, inside = _sampled(mask, grey.shape)
            _mix(planes, place, entry.colour, _share(inside, _SHARES * np.float32(FILL)))
            contours.append((place, entry.colour, _share(_contour(inside), _SHARES)))
    for place, colour, share in contours:
        _mix(planes, place, colour, share)
    return np.ascontiguousarray(np.rint(planes).astype(np.uint8).transpose(1, 2, 0))


def _mix(planes: np.ndarray, place: tuple[slice, slice], colour: tuple[int, int, int], share: np.ndarray) -> None:
    change = np.empty_like(share)
    for plane, level in zip(planes, colour, strict=True):
        pixels = plane[place]
        np.subtract(np.float32(level), pixels, out=change)
        change *= share
        pixels += change


def _sampled(mask: np.ndarray, size: tuple[int, ...]) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where a mask's pixels lie on a picture of ``size``, and which fine samples of them are inside it.

    A sample is inside where the mask, interpolated between the middles of its voxels, is at least a half.
    """
    places, boxes = [], []
    for side, other in ((0, 1), (1, 0)):
        voxels = np.flatnonzero(mask.any(axis=other))
        scale = size[side] / mask.shape[side]
        # Half a voxel around the mask are not 0 yet, and the contour's outer half lies in a pixel beyond.
        first = max(0, int((voxels[0] - 1) * scale) - 1)
        stop = min(size[side], int((voxels[-1] + 2) * scale) + 2)
        places.append(slice(first, stop))
        boxes.append((first / scale, min(stop / scale, mask.shape[side])))
    rows, columns = places
    fine = ((columns.stop - columns.start) * _FINE, (rows.stop - rows.start) * _FINE)
    box = (boxes[1][0], boxes[0][0], boxes[1][1], boxes[0][1])
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(fine, Image.Resampling.BILINEAR, box)
    return (rows, columns), np.asarray(picture) >= 128


def _contour(inside: np.ndarray) -> np.ndarray:
    """Samples within two of the border, on either side: a line of four thirds of a pixel. The picture's edge is one."""
    return _grown(inside, beyond=False) & _grown(~inside, beyond=True)


def _grown(samples: np.ndarray, *, beyond: bool) -> np.ndarray:
    """Whether any of the 21 samples around each is set: of five by five all but the corners.

    ``beyond`` the picture all are, or none.
    """
    rows, columns = samples.shape
    step = columns + 4
    framed = np.full((rows + 4, step), beyond)
    framed[2:-2, 2:-2] = samples
    # One row after the other in one line, where a neighbour is always as many samples away. What runs over a row's end
    # lands in the frame.
    line = framed.reshape(-1)
    three, five = line.copy(), np.empty_like(line)
    three[1:] |= line[:-1]
    three[:-1] |= line[1:]
    np.logical_or(three[:-2], three[2:], out=five[1:-1])
    five[0] = five[-1] = beyond
    found = line  # its samples are in three and five
    np.logical_or(five[step:-step], five[2 * step :], out=found[step:-step])
    found[step:-step] |= five[: -2 * step]
    found[2 * step : -2 * step] |= three[: -4 * step]
    found[2 * step : -2 * step] |= three[4 * step :]
    return framed[2:-2, 2:-2]


def _share(samples: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """``shares`` by how many samples of each pixel are set, float32 (row, column)."""
    rows = reduce(np.add, (samples.view(np.uint8)[n::_FINE] for n in range(_FINE)))
    return shares.take(reduce(np.add, (rows[:, n::_FINE] for n in range(_FINE))))
