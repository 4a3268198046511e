"""One series of a data set: where its image lies, what is known of it, and how label pictures are turned onto it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from orthokernels.data import nifti
from orthokernels.data.nifti import SUFFIXES
from orthokernels.data.study import Stack, read_study
from orthokernels.data.volume import Volume
from orthokernels.errors import InputError
from orthokernels.tasks import STRUCTURES

IGNORED = -1  # label of voxels that nobody labelled
NOT_LABELLED = 255  # the same in a stored label map
LABEL_VALUES = len(STRUCTURES) + 1
MIN_MASKED_SLICES = 2  # of the published loader


@dataclass(frozen=True)
class Record:
    """One series.

    Attributes:
        study: the examination; series of one study share their findings.
        patient: what splits go by.
        plane: of ``tasks.PLANES``.
        image: a NIfTI file, or a folder with the DICOM files of a study.
        labels: NIfTI label map on the image's grid: 0 background, indices of ``tasks.STRUCTURES``, 255 not labelled.
        masks: label pictures of single slices, (slice number from 1 as the file name counts, file).
        findings: 0 or 1 for each label of the joint in ``tasks.LABELS``' order; NaN where unknown.
        split: "train", "validate" or "test" where the data set says so.
        masks_decreasing: the pictures' numbers run against the file's slices.
        masks_mirrored: the pictures were drawn on images with left and right exchanged.
    """

    study: str
    patient: str
    plane: str
    image: Path
    labels: Path | None = None
    masks: tuple[tuple[int, Path], ...] = ()
    findings: tuple[float, ...] | None = None
    split: str | None = None
    masks_decreasing: bool = False
    masks_mirrored: bool = False

    @property
    def labelled(self) -> bool:
        return self.labels is not None or bool(self.masks)

    def files(self) -> list[Path]:
        """The files of the image, sorted."""
        if self.image.is_dir():
            return sorted(path for path in self.image.rglob("*") if path.is_file())
        return [self.image]

    def label_files(self) -> list[Path]:
        """The files of the labels."""
        return [self.labels] if self.labels is not None else [path for _, path in self.masks]


def stack_of(record: Record) -> Stack:
    """The record's image with its header read and its voxels not.

    Raises:
        InputError: the file is missing or damaged, or the folder holds no usable series of the plane.
    """
    if record.image.name.lower().endswith(SUFFIXES):
        if not record.image.is_file():
            raise InputError(f"{record.image}: no such file.")
        stacks = nifti.read_stacks(record.image)
        if len(stacks) != 1:
            raise InputError(f"{record.image}: holds {len(stacks)} volumes along a fourth axis; one is wanted.")
        return stacks[0]
    return read_study([record.image], [record.plane]).stacks[record.plane][0]


def load_volume(record: Record) -> Volume:
    """The record's image.

    Raises:
        InputError: it can not be read.
    """
    return stack_of(record).load()


def load_labels(record: Record, volume: Volume) -> np.ndarray:
    """Labels on the volume's own grid, int8 (I, J, K), -1 where nobody labelled.

    Raises:
        InputError: a file is unreadable, of another shape, or holds values that are no label.
    """
    if record.labels is not None:
        return _label_map(record.labels, volume)
    labels = np.full(volume.shape, IGNORED, np.int8)
    depth = volume.shape[2]
    for number, path in record.masks:
        index = depth - number if record.masks_decreasing else number - 1
        picture = read_mask(path, mirrored=record.masks_mirrored)
        if not 0 <= index < depth:
            raise InputError(f"{path}: is slice {number} of an image with {depth} slices.")
        if picture.shape != volume.shape[:2]:
            raise InputError(
                f"{path}: {_times(picture.shape)} once turned onto its image, which has {_times(volume.shape[:2])}."
            )
        labels[:, :, index] = picture
    return labels


def _label_map(path: Path, volume: Volume) -> np.ndarray:
    try:
        image: Any = nibabel.load(path)
        stored = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel, zlib and the system each have their own
        raise InputError(f"{path}: not a readable label map ({str(error).splitlines()[0]}).") from error
    if stored.shape != volume.shape:
        raise InputError(f"{path}: {_times(stored.shape)}, but its image has {_times(volume.shape)}.")
    return checked_labels(stored, path)


def checked_labels(stored: np.ndarray, path: Path) -> np.ndarray:
    """Stored values as int8 labels: 255 becomes -1.

    Raises:
        InputError: values that are neither a label nor 255.
    """
    unlabelled = (stored == NOT_LABELLED) | (stored == IGNORED)
    wrong = ~unlabelled & ((stored < 0) | (stored >= LABEL_VALUES) | (stored != np.floor(stored)))
    if wrong.any():
        values = ", ".join(f"{value:g}" for value in np.unique(stored[wrong])[:5])
        raise InputError(
            f"{path}: holds {values}; labels are 0 to {LABEL_VALUES - 1}, and {NOT_LABELLED} for voxels not labelled."
        )
    return np.where(unlabelled, IGNORED, stored).astype(np.int8)


def read_mask(path: Path, *, mirrored: bool = False) -> np.ndarray:
    """A label picture as the published loader reads it: int8 (i, j), -1 for values that are no label.

    The first channel counts; the picture is mirrored if asked, then turned so that axis 0 runs along a row and axis 1
    up the picture, as dcm2niix stores slices.

    Raises:
        InputError: the file is missing or no picture.
    """
    try:
        with Image.open(path) as opened:
            picture = np.asarray(opened)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: not a readable picture ({str(error).splitlines()[0]}).") from error
    picture = picture[..., 0] if picture.ndim == 3 else picture
    picture = np.fliplr(picture) if mirrored else picture
    values = np.rot90(picture.astype(np.int64), k=3)
    return np.where((values < 0) | (values >= LABEL_VALUES), IGNORED, values).astype(np.int8)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
