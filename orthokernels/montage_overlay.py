"""Structures drawn over a slice: a light fill, and a thin contour half way between a structure's voxels and others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from orthokernels.montage_layout import LegendEntry

FILL = 0.25  # share of a structure's colour inside its contour
_FINE = 3  # samples along each side of a pixel: edges of fills and contours are as smooth as that


def with_structures(grey: np.ndarray, labels: np.ndarray, legend: Sequence[LegendEntry]) -> np.ndarray:
    """Lay the structures of the legend over a picture.

    Args:
        grey: the picture (row, column), uint8.
        labels: of the slice's voxels, the same field of view in rows and columns of its own.
        legend: structures with their label and colour; later ones' contours lie over earlier ones'.

    Returns:
        Pixels (row, column, RGB), uint8.
    """
    pixels = np.repeat(grey[:, :, np.newaxis], 3, axis=2).astype(np.float32)
    contours = []
    for entry in legend:
        mask = labels == entry.index
        if mask.any():
            colour = np.array(entry.colour, np.float32)
            place, inside = _sampled(mask, grey.shape)
            _mix(pixels[place], colour, _share(inside) * np.float32(FILL))
            contours.append((place, colour, _share(_contour(inside))))
    for place, colour, share in contours:
        _mix(pixels[place], colour, share)
    return np.rint(pixels).astype(np.uint8)


def _mix(pixels: np.ndarray, colour: np.ndarray, share: np.ndarray) -> None:
    pixels += (colour - pixels) * share[:, :, np.newaxis]


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
    grown = _neighbours(_neighbours(inside, np.logical_or, corners=False), np.logical_or, corners=True)
    kept = _neighbours(_neighbours(inside, np.logical_and, corners=False), np.logical_and, corners=True)
    return grown & ~kept


def _neighbours(samples: np.ndarray, either: np.ufunc, *, corners: bool) -> np.ndarray:
    """Each sample and its four neighbours, or all eight of them, by ``either``; beyond the picture is False."""
    padded = np.pad(samples, 1)
    along = either(either(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
    if corners:
        found = either(either(along[:-2], along[1:-1]), along[2:])
    else:
        found = either(either(padded[:-2, 1:-1], padded[2:, 1:-1]), along[1:-1])
    return np.asarray(found)


def _share(samples: np.ndarray) -> np.ndarray:
    """How much of each pixel its samples cover, float32."""
    return np.asarray(Image.fromarray(samples.astype(np.uint8) * 255).reduce(_FINE), np.float32) / np.float32(255)
