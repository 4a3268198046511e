"""NIfTI files to volumes, through nibabel, their affine respected."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from orthokernels.data.dicom.file import short
from orthokernels.data.volume import Source, Volume, check_size, check_voxels, hash_of
from orthokernels.errors import InputError

SUFFIXES = (".nii", ".nii.gz")

# NIFTI_INTENT_LABEL: the file says itself that its values are names, not intensities.
_INTENT_LABEL = 1002

# Millimetres in the header's unit of length, by its code in the lowest bits of xyzt_units: metre and micrometre. No
# code is taken for millimetres.
_UNIT_BITS, _MM_OF_UNIT = 0b111, {1: 1000.0, 3: 0.001}

_LONGEST_SECONDS = 3600.0  # of a repetition, an echo or an inversion in a side file

_DAMAGE = (
    ValueError, TypeError, KeyError, OSError, EOFError, OverflowError, zlib.error,
    nibabel.filebasedimages.ImageFileError,
)  # fmt: skip


@dataclass(frozen=True)
class NiftiStack:
    """One 3-D volume of a NIfTI file, not yet read. ``time`` is its index along a fourth axis, if there is one."""

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    source: Source
    time: int | None = None
    warnings: tuple[str, ...] = ()

    def load(self) -> Volume:
        """Read the voxels in the file's own order.

        Raises:
            InputError: the file is cut short, or the voxels hold no image.
        """
        try:
            image: Any = nibabel.load(self.path)
            if self.time is None:
                voxels = np.asanyarray(image.dataobj).reshape(self.shape)
            else:
                voxels = np.asanyarray(image.dataobj[..., self.time])
        except _DAMAGE as error:
            raise InputError(f"{self.path}: the voxels can't be read ({short(error)}). Copy the file again.") from error
        if voxels.dtype.kind not in "iuf":
            raise InputError(
                f"{self.path}: holds {voxels.dtype} values, not real intensities. Save the magnitude image."
            )
        if voxels.dtype.itemsize > 4 or voxels.dtype == np.float16:
            with np.errstate(over="ignore"):  # what float32 can not hold becomes infinite, which is refused
                voxels = voxels.astype(np.float32)
        check_voxels(voxels, str(self.path))
        return Volume(voxels, self.affine, self.source, self.warnings)


def read_stacks(path: Path) -> list[NiftiStack]:
    """The volumes a NIfTI file holds, voxels unread.

    Raises:
        InputError: the file is damaged, is a label map, or does not say where it lies in the patient.
    """
    try:
        image: Any = nibabel.load(path)
        header = image.header
        shape = tuple(int(side) for side in image.shape)
        placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        affine = affine_of(image)
    except _DAMAGE as error:
        raise InputError(f"{path}: not a readable NIfTI file ({short(error)}). Copy it again.") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        raise InputError(f"{path}: has {len(shape)} axes; a volume has three (i, j, k). Save the 3-D volume.")
    check_size(shape, path)
    if int(header["intent_code"]) == _INTENT_LABEL:
        raise InputError(f"{path}: is a label map, not an image. Pass the image it was drawn on.")
    if not placed or abs(np.linalg.det(affine[:3, :3])) < 1e-6 or not np.isfinite(affine).all():
        raise InputError(
            f"{path}: does not say how it lies in the patient (sform and qform unset or singular). "
            "Convert the DICOM series again, with dcm2niix for example."
        )
    source = _source(path)
    times = [None] if len(shape) == 3 else list(range(shape[3]))
    sides = (shape[0], shape[1], shape[2])
    return [NiftiStack(path, sides, affine, source if time is None else _of_time(source, time), time) for time in times]


def _of_time(source: Source, time: int) -> Source:
    return replace(source, description=f"{source.description}, volume {time + 1}")


def affine_of(image: Any) -> np.ndarray:
    """The affine of nibabel's image, (4, 4) float64, voxel indices to RAS mm whatever the header's unit."""
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= _MM_OF_UNIT.get(int(image.header["xyzt_units"]) & _UNIT_BITS, 1.0)
    return affine


def _source(path: Path) -> Source:
    """What dcm2niix's side file tells of the sequence, where there is one; times there are in seconds."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    facts: dict[str, Any] = {}
    side_file = path.with_name(stem + ".json")
    try:
        if side_file.is_file() and side_file.stat().st_size < 1 << 20:
            facts = json.loads(side_file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        facts = {}
    if not isinstance(facts, dict):
        facts = {}

    def milliseconds(key: str) -> float | None:
        value = facts.get(key)
        # NaN, infinity and integers of any length are numbers to Python's JSON, and no times.
        return 1000.0 * value if isinstance(value, int | float) and 0 <= value <= _LONGEST_SECONDS else None

    def text(key: str) -> str:
        value = facts.get(key)
        return _writable(value) if isinstance(value, str) else ""

    return Source(
        description=text("SeriesDescription") or _writable(stem),
        series_hash=hash_of(path.name),
        study_hash="",
        kind="NIfTI",
        paths=(path,),
        sequence=text("ScanningSequence").replace("\\", " ").replace("_", " "),
        scan_options=text("ScanOptions").replace("\\", " "),
        echo_time=milliseconds("EchoTime"),
        repetition_time=milliseconds("RepetitionTime"),
        inversion_time=milliseconds("InversionTime"),
        body_part=text("BodyPartExamined") or None,
    )


def _writable(text: str) -> str:
    """Text in which what UTF-8 can not hold, as JSON and file names can, is a question mark."""
    return text.encode("utf-8", "replace").decode()
