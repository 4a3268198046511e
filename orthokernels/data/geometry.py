"""Where voxels lie in the patient: planes, spacing, and the turn that brings a volume to its plane's usual view.

Affines map voxel indices (i, j, k) to millimetres in RAS (NIfTI's frame: right, anterior and superior are positive).
DICOM's LPS frame has the first two signs reversed; ``data.dicom`` converts once, on reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orthokernels.tasks import PLANES

# A volume nearer to the next plane than to its own has none: features were trained on planes, not on 45 degrees.
# Headers round: directions of two or three digits are off by a few hundredths of a degree.
MAX_OBLIQUITY_DEGREES = 45.0
_ROUNDING_DEGREES = 0.05

# A file whose voxels are longer along one axis by this factor was cut across that axis.
_THICK_SLICE_RATIO = 1.5

# The usual view of each plane: where (i, j, k) point, as a signed RAS axis. i runs along an image row, j up the image,
# k along DICOM's slice normal (row direction x column direction). This is how dcm2niix stores an untilted scan, and
# the published loader turns its mask pictures by exactly this much.
_VIEW = {
    "sagittal": np.array([[0, -1, 0], [0, 0, 1], [1, 0, 0]]),  # posterior, superior, right
    "coronal": np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]),  # left, superior, posterior
    "axial": np.array([[-1, 0, 0], [0, 1, 0], [0, 0, 1]]),  # left, anterior, superior
}


def spacing(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel size in mm along (i, j, k)."""
    i, j, k = np.linalg.norm(affine[:3, :3], axis=0)
    return float(i), float(j), float(k)


def slice_axis(affine: np.ndarray, kind: str = "NIfTI") -> int:
    """The array axis across the slices: the last in DICOM; in a NIfTI file that with clearly the longest voxels."""
    if kind == "DICOM":
        return 2
    sizes = np.array(spacing(affine))
    longest = int(np.argmax(sizes))
    others = np.delete(sizes, longest)
    return longest if sizes[longest] > _THICK_SLICE_RATIO * others.max() else 2


def plane_of(affine: np.ndarray, kind: str = "NIfTI") -> tuple[str | None, float]:
    """The anatomical plane a volume's slices lie nearest to, and its obliquity in degrees.

    Obliquity is the angle between the slices' normal and the plane's own. The plane is None beyond 45 degrees, which
    only a doubly oblique stack reaches.
    """
    axis = slice_axis(affine, kind)
    first, second = (affine[:3, a] for a in range(3) if a != axis)
    normal = np.cross(first, second)
    cosines = np.abs(normal) / np.linalg.norm(normal)
    nearest = int(np.argmax(cosines))
    obliquity = float(np.degrees(np.arccos(min(1.0, cosines[nearest]))))
    near = obliquity <= MAX_OBLIQUITY_DEGREES + _ROUNDING_DEGREES
    return (PLANES[nearest] if near else None), obliquity


@dataclass(frozen=True)
class Turn:
    """A permutation of array axes followed by flips: ``axes[n]`` is the native axis that becomes axis n."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def is_identity(self) -> bool:
        return self.axes == (0, 1, 2) and not any(self.flips)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The turned array, as a view: axes (i, j, k) native in, (i, j, k) of the view out."""
        return array.transpose(self.axes)[tuple(slice(None, None, -1 if f else 1) for f in self.flips)]

    def undo(self, array: np.ndarray) -> np.ndarray:
        """The way back, as a view."""
        unflipped = array[tuple(slice(None, None, -1 if f else 1) for f in self.flips)]
        return unflipped.transpose(np.argsort(self.axes))

    def apply_affine(self, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """The affine of the turned array; ``shape`` is the native one."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for new, (old, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            matrix[old, new] = -1.0 if flip else 1.0
            matrix[old, 3] = shape[old] - 1.0 if flip else 0.0
        return affine @ matrix


IDENTITY = Turn((0, 1, 2), (False, False, False))


def turn_to_view(affine: np.ndarray, plane: str, kind: str = "NIfTI") -> Turn:
    """The turn that brings a volume to the usual view of ``plane``, slices last.

    Of the two ways to assign the in-plane axes, the one that agrees better with the view's directions is taken.
    """
    view = _VIEW[plane]
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    across = slice_axis(affine, kind)
    a, b = (axis for axis in range(3) if axis != across)

    def agreement(axes: tuple[int, int, int]) -> float:
        return sum(abs(float(view[new] @ directions[:, old])) for new, old in enumerate(axes))

    axes = max(((a, b, across), (b, a, across)), key=agreement)
    first, second, third = (bool(view[new] @ directions[:, old] < 0) for new, old in enumerate(axes))
    return Turn(axes, (first, second, third))
