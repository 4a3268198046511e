"""DICOM files to frames, frames to stacks, stacks to volumes.

Headers are read first and pixels only of the stack that was chosen. What a header claims is held against the file's
size and against limits before anything is allocated. Geometry comes from position and orientation alone.
"""

from __future__ import annotations

import gzip
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    EnhancedMRImageStorage,
    JPEGExtended12Bit,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from orthokernels.data.volume import MIN_SLICES, Source, Volume, check_size, check_voxels, hash_of
from orthokernels.errors import InputError

_IMAGE_CLASSES = {MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage}
_PIXEL_DATA = 0x7FE00010
_DEFER_BYTES = 16384  # elements longer than this (pixels, private blobs) are skipped while headers are read
_MAX_UNZIPPED = 2**30

# What pydicom and its plugins raise on damaged files; anything else is our own mistake and should be seen.
_DAMAGE = (
    ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError, OSError, RuntimeError,
    OverflowError, EOFError, ArithmeticError,
)  # fmt: skip


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


@dataclass(frozen=True)
class DicomStack:
    """Evenly spaced frames in ascending order along their normal: a volume not yet decoded."""

    frames: tuple[Frame, ...]
    source: Source
    warnings: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames[0].columns, self.frames[0].rows, len(self.frames)

    @property
    def affine(self) -> np.ndarray:
        """Voxel (i, j, k) to RAS mm; i is the column, j the row counted from below, k the slice along the normal."""
        first, last = self.frames[0], self.frames[-1]
        between_rows, between_columns = first.pixel_spacing
        along_row, down_column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
        affine = np.eye(4)
        affine[:3, 0] = along_row * between_columns
        affine[:3, 1] = -down_column * between_rows
        start = np.array(first.position)
        if len(self.frames) > 1:
            affine[:3, 2] = (np.array(last.position) - start) / (len(self.frames) - 1)
        else:
            affine[:3, 2] = first.normal
        affine[:3, 3] = start + down_column * between_rows * (first.rows - 1)
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    def load(self) -> Volume:
        """Decode the frames; those that can not be decoded are left out with a warning, if enough remain.

        Raises:
            InputError: too few slices can be decoded, or the voxels hold no image.
        """
        pixels, damage = _decode(self.frames)
        stack: DicomStack | None = self
        notes = list(self.warnings)
        if damage:
            notes += [f"left out: {reason}" for reason in damage]
            readable = [frame for frame in self.frames if (frame.path, frame.index) in pixels]
            stacks, _ = stacks_of(readable)
            stack = max(stacks, key=lambda s: len(s.frames), default=None)
            if stack is None or len(stack.frames) < MIN_SLICES:
                raise InputError(f"too few slices can be decoded; {damage[0]}")
            notes += stack.warnings
        assert stack is not None
        voxels = _assemble(stack.frames, pixels)
        check_voxels(voxels, stack.source.description)
        return Volume(voxels, stack.affine, stack.source, tuple(notes))


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """pydicom comments on every oddity of a file; ours are told once, in the result."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def read_frames(path: Path) -> list[Frame]:
    """The frames of a classic or enhanced MR file, pixels unread.

    Raises:
        InputError: the file is damaged, is no MR image, or claims more than it holds; the message says which.
    """
    with quiet_pydicom():
        try:
            dataset = _read(path, defer=_DEFER_BYTES)
        except InvalidDicomError:
            raise InputError(
                f"{path}: not a DICOM file (no DICM prefix and meta header). Pass DICOM part 10 or NIfTI files."
            ) from None
        except _DAMAGE as error:
            raise InputError(
                f"{path}: the DICOM header is damaged ({_short(error)}). Export the file again."
            ) from error
        try:
            _check_is_mr_image(dataset, path)
            return _frames(dataset, path)
        except _DAMAGE as error:
            raise InputError(
                f"{path}: the header has an invalid value ({_short(error)}). Export the file again."
            ) from error


def _read(path: Path, defer: int | None = None) -> Dataset:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if not zipped:
        return pydicom.dcmread(path, defer_size=defer)
    return pydicom.dcmread(_unzip(path))


def _unzip(path: Path) -> BinaryIO:
    with gzip.open(path) as file:
        content = file.read(_MAX_UNZIPPED + 1)
    if len(content) > _MAX_UNZIPPED:
        raise InputError(f"{path}: unzips to more than {_MAX_UNZIPPED >> 20} MB. Unzip and check it by hand.")
    return io.BytesIO(content)


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
    between_rows, between_columns = (float(v) for v in spacing)
    if not (between_rows > 0 and between_columns > 0 and np.isfinite([*map(float, position)]).all()):
        raise InputError(f"{path}: pixel spacing or position is no valid number of mm. Export the file again.")
    image_type = groups.get("MRImageFrameTypeSequence", "FrameType", "ImageType") or ()
    return Frame(
        path=path,
        index=index,
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        position=tuple(float(v) for v in position),
        orientation=orientation,
        pixel_spacing=(between_rows, between_columns),
        slope=float(groups.get("PixelValueTransformationSequence", "RescaleSlope") or 1.0),
        intercept=float(groups.get("PixelValueTransformationSequence", "RescaleIntercept") or 0.0),
        instance_uid=str(dataset.get("SOPInstanceUID", path)),
        image_type=(image_type,) if isinstance(image_type, str) else tuple(image_type),
        time_order=_time_order(dataset, groups),
        source=_source(dataset, groups, path),
    )


def _direction_cosines(values: list[float], path: Path) -> tuple[float, ...]:
    row, column = np.array(values[:3]), np.array(values[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    # Headers carry six digits; files rounded to two or three still describe a right angle to within a degree or so.
    if len(values) != 6 or abs(lengths[0] - 1) > 0.02 or abs(lengths[1] - 1) > 0.02 or abs(row @ column) > 0.02:
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
    return Source(
        description=str(dataset.get("SeriesDescription") or dataset.get("ProtocolName") or f"series {number or '?'}"),
        series_hash=hash_of(str(dataset.get("SeriesInstanceUID", path))),
        study_hash=hash_of(str(dataset.get("StudyInstanceUID", path))),
        kind="DICOM",
        paths=(path,),
        series_number=None if number is None else int(number),
        sequence={"SPIN": "SE", "GRADIENT": "GR", "BOTH": "SE GR"}.get(_joined(sequence), _joined(sequence)),
        scan_options=_joined(options) + (" FS" if suppression in ("FAT", "BOTH") else ""),
        echo_time=_number(groups.get("MREchoSequence", "EffectiveEchoTime", "EchoTime")),
        repetition_time=_number(groups.get("MRTimingAndRelatedParametersSequence", "RepetitionTime")),
        inversion_time=_number(inversion[0] if isinstance(inversion, Sequence) and len(inversion) else inversion),
        laterality=groups.get("FrameAnatomySequence", "FrameLaterality", "Laterality")
        or dataset.get("ImageLaterality")
        or None,
        body_part=str(dataset.get("BodyPartExamined") or "") or None,
    )


def _joined(value: Any) -> str:
    return value if isinstance(value, str) else " ".join(value)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def stacks_of(frames: Sequence[Frame]) -> tuple[list[DicomStack], list[tuple[str, str]]]:
    """Sort the frames of one series into stacks, one per echo, orientation, image type and time.

    Returns the stacks, and for each group of frames that makes none its name and the reason.
    """
    stacks: list[DicomStack] = []
    reasons: list[tuple[str, str]] = []
    echoes = len({frame.source.echo_time for frame in frames})
    for group in _groups(frames):
        repetitions = _repetitions(group)
        for number, (leftovers, repetition) in enumerate(repetitions, start=1):
            name = frames[0].source.description
            if echoes > 1:
                name += f", echo {group[0].source.echo_time:g} ms"
            if len(repetitions) > 1:
                name += f", repetition {number}"
            try:
                stacks.append(_stack(repetition, leftovers, name))
            except InputError as error:
                reasons.append((name, str(error)))
    return stacks, reasons


def _groups(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames that could lie in one volume. Orientations are compared with a tolerance, since headers round them."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _alike(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _alike(a: Frame, b: Frame) -> bool:
    return (
        (a.rows, a.columns, a.image_type) == (b.rows, b.columns, b.image_type)
        and a.source.echo_time == b.source.echo_time
        and np.allclose(a.pixel_spacing, b.pixel_spacing, rtol=1e-3, atol=0)
        and np.allclose(a.orientation, b.orientation, rtol=0, atol=1e-2)
    )


# Two images nearer than this along the normal are at one location; the thinnest 3-D scans have slices of 0.3 mm.
_SAME_PLACE_MM = 0.05


def _repetitions(frames: Sequence[Frame]) -> list[tuple[int, list[Frame]]]:
    """Split frames that repeat every location equally often, by time. Each comes with the number of leftovers."""
    places: list[list[Frame]] = []
    for frame in sorted(frames, key=lambda f: f.distance):
        if places and frame.distance - places[-1][0].distance < _SAME_PLACE_MM:
            places[-1].append(frame)
        else:
            places.append([frame])
    for place in places:
        place.sort(key=lambda f: (f.time_order, f.index, str(f.path)))
    counts = {len(place) for place in places}
    if len(places) > 1 and len(counts) == 1:
        return [(0, [place[n] for place in places]) for n in range(counts.pop())]
    if len(places) == 1:
        return [(len(frames) - 1, places[0])]
    return [(sum(len(p) - 1 for p in places), [place[0] for place in places])]


def _stack(frames: Sequence[Frame], leftovers: int, name: str) -> DicomStack:
    """Evenly spaced slices out of sorted ones: the longest even run, where a slice is missing."""
    if len(frames) > 1 and frames[-1].distance - frames[0].distance < _SAME_PLACE_MM:
        raise InputError(f"{len(frames)} images of one location over time, not a stack of slices")
    notes = []
    if leftovers:
        notes.append(f"{leftovers} further images at the same positions were left out")
    start, stop = _longest_even_run(np.array([frame.distance for frame in frames]))
    if stop - start < len(frames):
        notes.append(
            f"slices are missing (the gaps differ), so only slices {start + 1} to {stop} of {len(frames)} are used"
        )
    run = tuple(frames[start:stop])
    if len(run) > 2:
        _check_straight(run)
    paths = tuple(dict.fromkeys(frame.path for frame in run))
    return DicomStack(run, replace(run[0].source, description=name, paths=paths), tuple(notes))


def _longest_even_run(distances: np.ndarray) -> tuple[int, int]:
    """First and last-plus-one of the longest run whose steps are the usual one to 5 % (headers round positions)."""
    if len(distances) < 3:
        return 0, len(distances)
    steps = np.diff(distances)
    usual = float(np.median(steps))
    best, start = (0, 1), 0
    for n, step in enumerate([*steps.tolist(), np.inf]):
        if abs(step - usual) > 0.05 * usual + 0.01:
            best = max(best, (start, n + 1), key=lambda run: run[1] - run[0])
            start = n + 1
    return best


def _check_straight(frames: Sequence[Frame]) -> None:
    """Slices must step along a straight line, or no affine describes them."""
    positions = np.array([frame.position for frame in frames])
    line = np.linspace(positions[0], positions[-1], len(positions))
    worst = float(np.abs(positions - line).max())
    if worst > 0.5 * min(frames[0].pixel_spacing):
        raise InputError(
            f"the slices are shifted against each other by up to {worst:.1f} mm, so they are no one volume"
        )


def _decode(frames: Sequence[Frame]) -> tuple[dict[tuple[Path, int], np.ndarray], list[str]]:
    """Pixels by (path, frame), axes (row, column), native byte order; and a sentence for each file that failed."""
    wanted: dict[Path, list[Frame]] = {}
    for frame in frames:
        wanted.setdefault(frame.path, []).append(frame)
    pixels: dict[tuple[Path, int], np.ndarray] = {}
    damage = []
    with quiet_pydicom():
        for path, own in wanted.items():
            try:
                decoded = _pixels(path)
                for frame in own:
                    pixels[path, frame.index] = decoded[frame.index]
            except InputError as error:
                damage.append(str(error))
            except _DAMAGE as error:
                damage.append(f"{path}: the pixels can't be decoded ({_short(error)}). Export the file again.")
    return pixels, damage


def _pixels(path: Path) -> np.ndarray:
    """Stored values of every frame, axes (frame, row, column), native byte order."""
    dataset = _read(path)
    shape = (int(dataset.get("NumberOfFrames", 1) or 1), int(dataset.Rows), int(dataset.Columns))
    if dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit and dataset.BitsStored > 8:
        array = _gdcm_pixels(path, shape)
    else:
        array = dataset.pixel_array
    array = array.reshape(shape)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        array = array.max() - array
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _gdcm_pixels(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """12-bit JPEG by GDCM's own reader; none of pydicom's plugins takes it."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise InputError(f"{path}: the 12-bit JPEG pixels can't be decoded. Export the file uncompressed.")
    image = reader.GetImage()
    kinds = {"UINT16": np.uint16, "INT16": np.int16, "UINT12": np.uint16}
    kind = image.GetPixelFormat().GetScalarTypeAsString()
    if kind not in kinds:
        raise InputError(f"{path}: has pixels of type {kind}, which is not read. Export the file uncompressed.")
    # GDCM's binding hands bytes over as text in which the undecodable ones are escaped.
    return np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), kinds[kind]).reshape(shape)


def _assemble(frames: Sequence[Frame], pixels: dict[tuple[Path, int], np.ndarray]) -> np.ndarray:
    """Voxels with axes (i, j, k); rescaled to float32 only where the file asks for it."""
    planes = [pixels[frame.path, frame.index] for frame in frames]
    rescaled = any((frame.slope, frame.intercept) != (1.0, 0.0) for frame in frames)
    kind = np.float32 if rescaled else np.result_type(*planes)
    stack = np.empty((len(frames), frames[0].rows, frames[0].columns), kind)
    for slot, frame, plane in zip(stack, frames, planes, strict=True):
        slot[...] = plane[::-1]
        if rescaled:
            slot *= frame.slope
            slot += frame.intercept
    return stack.transpose(2, 1, 0)


def _short(error: BaseException) -> str:
    """The first line of a library's message, without a trailing full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(". ")[:160]) if lines else type(error).__name__
