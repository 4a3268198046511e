"""Frames: what a DICOM file's header says of each slice, checked before a pixel is read.

What a header claims is held against the file's size and against limits before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage, MRImageStorage

from orthokernels.data.dicom.file import DAMAGE, quiet_pydicom, read, short
from orthokernels.data.volume import Source, check_size, hash_of
from orthokernels.errors import InputError

_IMAGE_CLASSES = {MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage}
_PIXEL_DATA = 0x7FE00010
_DEFER_BYTES = 16384  # elements longer than this (pixels, private blobs) are skipped while headers are read


@dataclass(frozen=True)
class Frame:
    """One slice: where its pixels are and where it lies. Positions and spacings in mm, in DICOM's LPS frame."""

    path: Path
    index: int
    rows: int
    columns: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, float]  # between rows, between columns
    slope: float
    intercept: float
    instance_uid: str
    image_type: tuple[str, ...]
    time_order: tuple[float, ...]
    source: Source

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def distance(self) -> float:
        """Position along the slices' normal, in mm: what slices are sorted by."""
        return float(self.normal @ np.array(self.position))


def read_frames(path: Path) -> list[Frame]:
    """The frames of a classic or enhanced MR file, pixels unread.

    Raises:
        InputError: the file is damaged, is no MR image, or claims more than it holds; the message says which.
    """
    with quiet_pydicom():
        try:
            dataset = read(path, defer=_DEFER_BYTES)
        except InvalidDicomError:
            raise InputError(
                f"{path}: not a DICOM file (no DICM prefix and meta header). Pass DICOM part 10 or NIfTI files."
            ) from None
        except DAMAGE as error:
            raise InputError(f"{path}: the DICOM header is damaged ({short(error)}). Export the file again.") from error
        try:
            _check_is_mr_image(dataset, path)
            return _frames(dataset, path)
        except DAMAGE as error:
            raise InputError(
                f"{path}: the header has an invalid value ({short(error)}). Export the file again."
            ) from error


def _check_is_mr_image(dataset: Dataset, path: Path) -> None:
    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    if syntax is None:
        raise InputError(f"{path}: the meta header names no transfer syntax, so pixels can't be read. Export it again.")
    if len(dataset) == 0:
        raise InputError(f"{path}: ends after its meta header, so it is cut short. Export the file again.")
    modality = dataset.get("Modality")
    kind = getattr(dataset.get("SOPClassUID"), "name", "an object without SOP class")
    if modality != "MR":
        raise InputError(f"{path}: not an MR image but {modality or 'of no modality'} ({kind}). Pass MR series only.")
    if dataset.get("SOPClassUID") not in _IMAGE_CLASSES:
        raise InputError(f"{path}: not an MR image but {kind}. Pass MR Image or Enhanced MR Image files.")
    if _PIXEL_DATA not in dataset:
        raise InputError(f"{path}: has no pixel data. Export the file again, with its pixels.")
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise InputError(f"{path}: is a colour picture, not a scan. Pass the original series.")
    _check_claims(dataset, path)


def _check_claims(dataset: Dataset, path: Path) -> None:
    """Hold the claimed size against limits and, where pixels are not compressed, against the bytes that are there."""
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    check_size((int(dataset.Columns), int(dataset.Rows), frames), path)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        return
    raw: Any = dataset.get_item(_PIXEL_DATA, keep_deferred=True)
    value = raw.value
    if value is None:  # deferred: only its length and place in the file are known
        value = range(min(int(raw.length), path.stat().st_size - int(raw.value_tell)))
    needed = int(dataset.Columns) * int(dataset.Rows) * frames * int(dataset.BitsAllocated) // 8
    if (there := len(value)) < needed:
        raise InputError(f"{path}: is cut short: {there} of {needed} bytes of pixels are there. Export the file again.")


def _frames(dataset: Dataset, path: Path) -> list[Frame]:
    shared = dataset.get("SharedFunctionalGroupsSequence", [Dataset()])[0]
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or [Dataset()]
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    if count != len(groups):
        raise InputError(
            f"{path}: has {count} frames but describes {len(groups)}, so their places are unknown. Export it again."
        )
    return [_frame(dataset, _Groups(dataset, shared, group), index, path) for index, group in enumerate(groups)]


class _Groups:
    """Looks an attribute up where enhanced and classic files keep it: the frame's group, the shared one, the top."""

    def __init__(self, dataset: Dataset, shared: Dataset, own: Dataset) -> None:
        self._places = (own, shared)
        self._top = dataset

    def get(self, sequence: str, keyword: str, classic: str | None = None) -> Any:
        for place in self._places:
            items = place.get(sequence)
            if items and items[0].get(keyword) not in (None, ""):
                return items[0].get(keyword)
        value = self._top.get(classic or keyword)
        return None if value == "" else value


def _frame(dataset: Dataset, groups: _Groups, index: int, path: Path) -> Frame:
    position = groups.get("PlanePositionSequence", "ImagePositionPatient")
    orientation = groups.get("PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = groups.get("PixelMeasuresSequence", "PixelSpacing")
    if position is None or orientation is None or spacing is None:
        raise InputError(
            f"{path}: has no position, orientation or pixel spacing, so its place is unknown. "
            "Export the original series, not a derived picture."
        )
    orientation = _direction_cosines([float(v) for v in orientation], path)
    spacing = tuple(float(v) for v in spacing)
    place = tuple(float(v) for v in position)
    if not (min(spacing) > 0 and len(spacing) == 2 and len(place) == 3 and np.isfinite([*spacing, *place]).all()):
        raise InputError(f"{path}: pixel spacing or position is no valid number of mm. Export the file again.")
    image_type = groups.get("MRImageFrameTypeSequence", "FrameType", "ImageType") or ()
    component = groups.get("MRImageFrameTypeSequence", "ComplexImageComponent")  # enhanced files say it here alone
    return Frame(
        path=path,
        index=index,
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        position=place,
        orientation=orientation,
        pixel_spacing=spacing,
        slope=float(groups.get("PixelValueTransformationSequence", "RescaleSlope") or 1.0),
        intercept=float(groups.get("PixelValueTransformationSequence", "RescaleIntercept") or 0.0),
        instance_uid=str(dataset.get("SOPInstanceUID") or path),
        image_type=((image_type,) if isinstance(image_type, str) else tuple(image_type))
        + ((str(component),) if component else ()),
        time_order=_time_order(dataset, groups),
        source=_source(dataset, groups, path),
    )


def _direction_cosines(values: list[float], path: Path) -> tuple[float, ...]:
    row, column = np.array(values[:3]), np.array(values[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    # Headers carry six digits; files rounded to two or three still describe a right angle to within a degree or so.
    if (
        len(values) != 6
        or not np.isfinite(values).all()
        or abs(lengths[0] - 1) > 0.02
        or abs(lengths[1] - 1) > 0.02
        or abs(row @ column) > 0.02
    ):
        raise InputError(f"{path}: the image orientation is no pair of perpendicular unit vectors. Export it again.")
    return (*(row / lengths[0]).tolist(), *(column / lengths[1]).tolist())


def _time_order(dataset: Dataset, groups: _Groups) -> tuple[float, ...]:
    """What tells repeated acquisitions of one location apart, earliest first."""
    keys = (
        groups.get("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIdentifier"),
        groups.get("FrameContentSequence", "FrameAcquisitionNumber", "AcquisitionNumber"),
        dataset.get("TriggerTime"),
        dataset.get("InstanceNumber"),
    )
    return tuple(_number(key) or 0.0 for key in keys)


def _source(dataset: Dataset, groups: _Groups, path: Path) -> Source:
    options = dataset.get("ScanOptions") or ""
    suppression = groups.get("MRModifierSequence", "SpectrallySelectedSuppression")
    sequence = dataset.get("ScanningSequence") or dataset.get("EchoPulseSequence") or ""
    inversion = groups.get("MRModifierSequence", "InversionTimes", "InversionTime")
    number = dataset.get("SeriesNumber")
    name = dataset.get("SeriesDescription") or dataset.get("ProtocolName") or f"series {number or '?'}"
    return Source(
        description=_joined(name),
        series_hash=hash_of(str(dataset.get("SeriesInstanceUID") or path.parent)),  # who de-identifies may empty it
        study_hash=hash_of(str(dataset.get("StudyInstanceUID", path))),
        kind="DICOM",
        paths=(path,),
        series_number=None if number is None else int(number),
        sequence={"SPIN": "SE", "GRADIENT": "GR", "BOTH": "SE GR"}.get(_joined(sequence), _joined(sequence)),
        scan_options=_joined(options) + (" FS" if suppression in ("FAT", "BOTH") else ""),
        echo_time=_number(groups.get("MREchoSequence", "EffectiveEchoTime", "EchoTime")),
        repetition_time=_number(groups.get("MRTimingAndRelatedParametersSequence", "RepetitionTime")),
        inversion_time=_number(inversion[0] if isinstance(inversion, Sequence) and len(inversion) else inversion),
        laterality=_side(groups.get("FrameAnatomySequence", "FrameLaterality", "Laterality"))
        or _side(dataset.get("ImageLaterality")),
        body_part=_joined(dataset.get("BodyPartExamined") or "") or None,
    )


def _side(value: Any) -> str | None:
    """R or L; DICOM's others (U, unpaired; B, both) and several values together tell no side."""
    side = value.strip().upper() if isinstance(value, str) else ""
    return side if side in ("R", "L") else None


def _joined(value: Any) -> str:
    """A text, or the texts that a backslash in it made of it."""
    return " ".join(map(str, value)) if isinstance(value, MultiValue) else str(value)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
