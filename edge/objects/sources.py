"""What the source images' headers say of patient, study and place, in a form that new objects can be built on.

Each value is held against the rules of its type. One that breaks them is left empty, so that no object of ours is
invalid because its source is; a study that can not be named at all is refused.
"""

from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import HTJ2K, JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless
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
)  # fmt: skip
# What tells of pixels that lossy compression has changed (PS3.3 section C.7.6.1.1.5).
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")

# Methods of the transfer syntaxes that may lose something. Those of the first always do, whatever the header says; of
# the others the header may say that nothing was lost, and where it does not, something may have been.
_ALWAYS_LOSSY = {JPEGBaseline8Bit: "ISO_10918_1", JPEGExtended12Bit: "ISO_10918_1"}
_MAYBE_LOSSY = {JPEGLSNearLossless: "ISO_14495_1", JPEG2000: "ISO_15444_1", HTJ2K: "ISO_15444_15"}
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
        with suppress(*DAMAGE):
            _keep_loss(header, clean)
    if clean.PatientSex not in ("M", "F", "O"):
        clean.PatientSex = ""
    if clean.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in clean:
        clean.DeidentificationMethod = "Not stated by the source images"  # the standard wants one
    return clean


def _keep_loss(header: Dataset, clean: Dataset) -> None:
    """What the header says of lossy compression; where that is too little, what its transfer syntax does.

    Images that came decompressed and name neither ratio nor method keep that secret: nothing here knows them.
    """
    said = _valid(header, "LossyImageCompression")
    ratios, methods = (_all_valid(header, keyword) for keyword in _LOSSY[1:])
    syntax = header.file_meta.get("TransferSyntaxUID")
    method = _ALWAYS_LOSSY.get(syntax) or (_MAYBE_LOSSY.get(syntax) if said != "00" else None)
    if method is not None:
        methods = methods or [method]
        ratios = ratios or _ratio(header)
    elif said == "00":
        clean.LossyImageCompression = said
        return
    elif said != "01" and not (ratios and methods):
        return
    for keyword, values in zip(_LOSSY, (["01"], ratios, methods), strict=True):
        if values:
            setattr(clean, keyword, values if len(values) > 1 else values[0])


def _ratio(header: Dataset) -> list[str]:
    """By how much the pixels became smaller, measured, as the standard lets it be; nothing where that is no ratio."""
    try:
        size = len(header.get_item("PixelData").value)
        pixels = header.Rows * header.Columns * header.get("SamplesPerPixel", 1) * (header.get("NumberOfFrames") or 1)
        ratio = pixels * header.BitsAllocated / 8 / size
    except DAMAGE:
        return []
    return [f"{ratio:.2f}"] if 0.01 <= ratio < 1e6 else []


def tell_loss(made: Dataset, sources: Iterable[Dataset]) -> None:
    """An object that is made of several images says that lossy compression has changed them where it has changed one
    of them (PS3.3 sections C.7.6.1.1.5 and C.8.20.2.2), in the words of the first whose words are complete."""
    lossy = [source for source in sources if source.get("LossyImageCompression") == "01"]
    if lossy:
        told = next((one for one in lossy if all(keyword in one for keyword in _LOSSY)), lossy[0])
        for keyword in _LOSSY:
            if keyword in told:
                setattr(made, keyword, told[keyword].value)
            elif keyword in made:
                delattr(made, keyword)


def _all_valid(header: Dataset, keyword: str) -> list[str]:
    """Every value as text; none where one is against the rules of its type."""
    try:
        value = header.get(keyword)
    except DAMAGE:
        return []
    if value is None:
        return []
    values = [_text(keyword, one) for one in (value if isinstance(value, MultiValue) else [value])]
    return [one for one in values if one is not None] if None not in values else []


def _valid(header: Dataset, keyword: str) -> str | None:
    """A single value as text, or None where it is missing, manifold, or against the rules of its type."""
    try:
        value = header.get(keyword)
    except DAMAGE:
        return None
    return None if value is None or isinstance(value, MultiValue) else _text(keyword, value)


def _text(keyword: str, value: object) -> str | None:
    try:
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
