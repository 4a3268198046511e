"""What is measured on a label map: volumes, connected components, neighbours, and which knee it looks like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

# What each structure lies on, whatever the patient has.
NEIGHBOURS = {
    "femoral_cartilage": "femur",
    "tibial_cartilage": "tibia",
    "patellar_cartilage": "patella",
    "medial_meniscus": "tibial_cartilage",
    "lateral_meniscus": "tibial_cartilage",
}

_TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a corner touch


@dataclass(frozen=True)
class StructureMeasures:
    """Of one structure.

    Attributes:
        ml: volume.
        largest_share: of its voxels that its largest connected component holds; 0 without a voxel.
        touching_share: of its voxels that touch the structure it lies on; None where either has no voxel.
    """

    ml: float
    largest_share: float
    touching_share: float | None


def measure(labels: np.ndarray, affine: np.ndarray, names: tuple[str, ...]) -> dict[str, StructureMeasures]:
    """Measure every structure of a label map.

    Args:
        labels: uint8 with axes (i, j, k).
        affine: (4, 4) float64, indices to RAS mm.
        names: by label value, background first.
    """
    ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0  # per voxel
    boxes = ndimage.find_objects(labels, max_label=len(names) - 1)
    return {
        name: StructureMeasures(0.0, 0.0, None) if box is None else _measure(labels, value, name, box, ml, names)
        for value, (name, box) in enumerate(zip(names[1:], boxes, strict=True), start=1)
    }


def _measure(
    labels: np.ndarray, value: int, name: str, box: tuple[slice, ...], ml: float, names: tuple[str, ...]
) -> StructureMeasures:
    # One voxel of rim, so that a neighbour just outside the box is seen.
    rim = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
    mask = labels[rim] == value
    voxels = int(mask.sum())
    components, _ = ndimage.label(mask, _TOUCHING)
    largest = int(np.bincount(components.ravel())[1:].max())
    touching = None
    beneath = NEIGHBOURS.get(name)
    if beneath in names and (labels == names.index(beneath)).any():
        near = ndimage.binary_dilation(labels[rim] == names.index(beneath), _TOUCHING)
        touching = int((mask & near).sum()) / voxels
    return StructureMeasures(voxels * ml, largest / voxels, touching)


def lateral_offset(labels: np.ndarray, affine: np.ndarray, names: tuple[str, ...]) -> float | None:
    """How far the lateral meniscus lies to the patient's right of the medial one, in mm; None where one is missing.

    Positive in a right knee, negative in a left one.
    """
    right = []
    for name in ("lateral_meniscus", "medial_meniscus"):
        places = np.argwhere(labels == names.index(name)) if name in names else np.empty((0, 3))
        if not len(places):
            return None
        right.append(float(affine[0, :3] @ places.mean(axis=0)))
    return right[0] - right[1]
