"""A stack of slices in memory, with what its file said of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orthokernels.data.geometry import Turn, plane_of, turn_to_view
from orthokernels.errors import InputError

# Limits on what a header may claim, checked before anything is allocated. The largest clinical knee series seen are
# 0.5 mm isotropic, 400^3 voxels.
MAX_SIDE = 4096
MAX_VOXELS = 2**28

# Published preparation and network both work on slabs of this many slices.
MIN_SLICES = 16


@dataclass(frozen=True)
class Source:
    """What is known of a volume before its voxels are read.

    Times are in milliseconds, None where the file does not say. ``series_hash`` and ``study_hash`` stand for the DICOM
    UIDs (or for a NIfTI file's name), which never leave the reader.
    """

    description: str
    series_hash: str
    study_hash: str
    kind: str  # "DICOM" or "NIfTI"
    paths: tuple[Path, ...]
    series_number: int | None = None
    sequence: str = ""  # DICOM's ScanningSequence: SE, IR, GR, ...
    scan_options: str = ""
    echo_time: float | None = None
    repetition_time: float | None = None
    inversion_time: float | None = None
    laterality: str | None = None
    body_part: str | None = None


@dataclass(frozen=True)
class Volume:
    """Voxels on the scanner's grid.

    Attributes:
        voxels: axes (i, j, k), any real dtype; the order of the file for NIfTI, as dcm2niix would store it for DICOM.
        affine: (4, 4) float64, indices to RAS mm.
        warnings: what was odd about it but did not stop it.
        frames: DICOM file and frame number, from 0, that each slice k was read from; empty for NIfTI.
    """

    voxels: np.ndarray
    affine: np.ndarray
    source: Source
    warnings: tuple[str, ...] = ()
    frames: tuple[tuple[Path, int], ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        i, j, k = self.voxels.shape
        return i, j, k

    @property
    def turn(self) -> Turn:
        """The turn to the usual view of this volume's plane."""
        plane, _ = plane_of(self.affine, self.source.kind)
        if plane is None:
            raise ValueError("the volume lies more than 45 degrees off every plane")
        return turn_to_view(self.affine, plane, self.source.kind)


def hash_of(text: str) -> str:
    """16 hexadecimal digits that stand for an identifier without giving it away to a reader of the results."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_size(shape: tuple[int, ...], path: Path) -> None:
    """Raise InputError where a header claims more than any joint scan holds: before allocation, not after."""
    voxels = 1
    for side in shape:
        voxels *= side
    if min(shape) < 1 or max(shape) > MAX_SIDE or voxels > MAX_VOXELS:
        claimed = " x ".join(str(s) for s in shape)
        raise InputError(
            f"{path}: the header claims {claimed} voxels, which no joint MRI has. Export the series again."
        )


def check_voxels(voxels: np.ndarray, what: str) -> None:
    """Raise InputError for voxels that hold no image: NaN or infinity, or one value everywhere."""
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise InputError(
            f"{what}: {bad} voxels are NaN or infinite. Export the series again, or mask them to a number."
        )
    if voxels.min() == voxels.max():
        raise InputError(f"{what}: every voxel is {voxels.flat[0]:g}, so there is no image. Export the series again.")
