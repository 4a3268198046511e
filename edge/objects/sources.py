"""What the source images' headers say of patient, study and place, in a form that new objects can be built on.

Each value is held against the rules of its type. One that breaks them is left empty, so that no object of ours is
invalid because its source is; a study that can not be named at all is refused.
"""

from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, TM, validate_value

from orthokernels.data.dicom.file import DAMAGE, quiet_pydicom, read
from orthokernels.errors import InputError

_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

# What tells who the patient is.
OF_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex",
              "IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight")  # fmt: skip

# What the standard wants in every object, if only empty.
_KEPT_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName",
)  # fmt: skip
_KEPT = (
    "IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription",
    "PatientIdentityRemoved", "DeidentificationMethod",
    "Modality", "FrameOfReferenceUID", "PositionReferenceIndicator", "BodyPartExamined", "SliceThickness",
    "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime",
    "LossyImageCompression",
)  # fmt: skip
_MOMENTS = ("Acquisition", "Content", "Series", "Study")
_DEFER_BYTES = 16384  # elements longer than this (pixels, private blobs) stay in the file


def read_sources(paths: Sequence[Path], first: Collection[Path] = ()) -> dict[Path, Dataset]:
    """Cleaned headers of those files that are DICOM objects, by resolved path, in the order of their identifiers.

    What the files are called, and which came first, leaves no trace in an object. Those among ``first`` (resolved) come
    before the others.

    Text is Unicode. Only what this package's objects copy or refer to is kept.

    Raises:
        InputError: no file is a DICOM object with valid identifiers, or they belong to more than one study.
    """
    found: dict[Path, Dataset] = {}
    for path in paths:
        header = _read_header(path)
        if header is not None:
            found[path.resolve()] = header
    where = ", ".join(str(p) for p in paths[:2]) + (" and more" if len(paths) > 2 else "")
    if not found:
        raise InputError(
            f"{where}: no DICOM object with valid study, series and instance UIDs, so no DICOM result can refer to it. "
            "Pass the original DICOM files."
        )
    if len({header.StudyInstanceUID for header in found.values()}) > 1:
        raise InputError(f"{where}: the files belong to more than one study. Pass one study at a time.")
    return dict(sorted(found.items(), key=lambda own: (own[0] not in first, _identifiers(own[1]))))


def _identifiers(header: Dataset) -> tuple[str, str]:
    return str(header.SeriesInstanceUID), str(header.SOPInstanceUID)


def moment(headers: Sequence[Dataset], received: datetime.datetime | None) -> datetime.datetime:
    """The latest moment that the headers name, else when they came: the same for every run over the same images.

    Raises:
        InputError: no header has a date, and nobody knows when they came.
    """
    moments = [at for header in headers if (at := _moment(header)) is not None]
    latest = max(moments, default=received)
    if latest is None:
        raise InputError("no source image has a date, and it is not known when they came; a DICOM result bears one.")
    return latest


def _moment(header: Dataset) -> datetime.datetime | None:
    for event in _MOMENTS:
        day, time = header.get(f"{event}Date"), header.get(f"{event}Time")
        if day:
            return datetime.datetime.combine(DA(day), TM(time) if time else datetime.time())
    return None


def _read_header(path: Path) -> Dataset | None:
    """The cleaned header; None where the file is no DICOM object, or has no valid identifiers."""
    with quiet_pydicom():
        try:
            header = read(path, defer=_DEFER_BYTES)
        except (InvalidDicomError, InputError, *DAMAGE):
            return None
        clean = Dataset()
        clean.SpecificCharacterSet = "ISO_IR 192"
        for keyword in (*_REQUIRED, *_KEPT_EMPTY, *_KEPT):
            value = _valid(header, keyword)
            if value is None and keyword in _REQUIRED:
                return None
            if value is not None or keyword in _KEPT_EMPTY:
                setattr(clean, keyword, value or "")
    if clean.PatientSex not in ("M", "F", "O"):
        clean.PatientSex = ""
    if clean.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in clean:
        clean.DeidentificationMethod = "Not stated by the source images"  # the standard wants one
    return clean


def _valid(header: Dataset, keyword: str) -> str | None:
    """A single value as text, or None where it is missing, manifold, or against the rules of its type."""
    try:
        value = header.get(keyword)
        if value is None or isinstance(value, MultiValue):
            return None
        text, vr = str(value).strip(), dictionary_VR(keyword)
        if not text or any(unicodedata.category(c) == "Cc" for c in text):
            return None
        validate_value(vr, text, RAISE)
        if vr in ("DA", "TM"):
            (DA if vr == "DA" else TM)(text)  # the pattern alone lets 31 February pass
        if vr == "DA" and text.startswith("0"):  # de-identified studies are dated to the year 1, which is no date
            return None
    except DAMAGE:
        return None
    return text
