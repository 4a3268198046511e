"""A phantom study as files: classic MR Image Storage, or NIfTI with label maps.

Everything is written to a folder beside the target, which takes the target's name when it is complete, so a folder of
that name is always whole. Unique identifiers come from what they identify: the same seed gives the same ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from orthokernels.data.phantom.study import PhantomSeries, PhantomStudy
from orthokernels.errors import InputError
from orthokernels.folders import umask
from orthokernels.tasks import STRUCTURES

_LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_INTENT_LABEL = 1002  # NIFTI_INTENT_LABEL: the values are names, not intensities
_DATE, _TIME = "20250101", "120000"  # nobody was examined; a fixed day keeps files the same from run to run


def write_dicom(study: PhantomStudy, folder: str | Path, *, beside: Mapping[str, str] | None = None) -> None:
    """Write one folder of single-frame MR images for each series, slices in ascending order of k.

    Args:
        study: what ``make_study`` gave.
        folder: new or empty; made with its parents.
        beside: text files to lie beside the series, by name.

    Raises:
        InputError: ``folder`` is not empty, or is a file.
    """
    with _new_folder(Path(folder)) as target:
        for number, series in enumerate(study.series, 1):
            below = target / f"{number}_{series.plane}"
            below.mkdir()
            brightest = round(float(np.percentile(series.voxels, 99.5)))
            for k in range(series.voxels.shape[2]):
                image = _image(study, series, number, k)
                image.WindowCenter, image.WindowWidth = str(brightest // 2), str(max(brightest, 2))
                image.save_as(below / f"{k + 1:04d}.dcm", enforce_file_format=True)
        _save_texts(beside, target)


def write_nifti(study: PhantomStudy, folder: str | Path, *, beside: Mapping[str, str] | None = None) -> None:
    """Write ``<plane>.nii.gz`` for each series; of a knee also ``<plane>_labels.nii.gz``, and ``labels.json``.

    Args:
        study: what ``make_study`` gave.
        folder: new or empty; made with its parents.
        beside: text files to lie beside the images, by name.

    Raises:
        InputError: ``folder`` is not empty, or is a file.
    """
    with _new_folder(Path(folder)) as target:
        for series in study.series:
            nibabel.save(_nifti(series.voxels, series.affine, series.description), target / f"{series.plane}.nii.gz")
        if study.labelled:
            _save_labels(study, target)
        _save_texts(beside, target)


def write_labels(study: PhantomStudy, folder: str | Path) -> None:
    """Write what ``write_nifti`` writes without the images: the label maps that go with a study in DICOM.

    Args:
        study: what ``make_study`` gave.
        folder: new or empty, outside the study's own folder, or a reader of that would list them as left out.

    Raises:
        InputError: ``folder`` is not empty, or is a file.
    """
    with _new_folder(Path(folder)) as target:
        _save_labels(study, target)


def _save_labels(study: PhantomStudy, target: Path) -> None:
    for series in study.series:
        labels = _nifti(series.labels, series.affine, "labels of " + series.description)
        labels.header.set_intent(_INTENT_LABEL, name="structures")
        nibabel.save(labels, target / f"{series.plane}_labels.nii.gz")
    names = {"0": "background"} | {str(s.index): s.key for s in STRUCTURES}
    (target / "labels.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")


def _save_texts(texts: Mapping[str, str] | None, target: Path) -> None:
    for name, text in (texts or {}).items():
        (target / name).write_text(text, encoding="utf-8")


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` when the block ends well, and is removed when it does not."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target}: is not a folder. Give a new or an empty one.")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target}: the folder is not empty, and nothing is overwritten. Give a new or an empty one.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"{target}: can't be written ({error.strerror}). Choose another place.") from error
    try:
        temporary.chmod(0o777 & ~umask())  # mkdtemp's 0700 would make the study the writer's alone
        yield temporary
        if target.is_dir():
            target.rmdir()  # fails, as it should, where somebody has put something in meanwhile
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _uid(*names: object) -> UID:
    """A UID under 2.25, the root for UUIDs, from a hash of what it names."""
    digest = hashlib.sha256("/".join(str(n) for n in ("orthokernels phantom", *names)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


def _nifti(array: np.ndarray, affine: np.ndarray, description: str) -> nibabel.Nifti1Image:
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header["descrip"] = description.encode()
    return image


def _image(study: PhantomStudy, series: PhantomSeries, number: int, k: int) -> FileDataset:
    """Slice ``k`` of a series as an MR image: rows run down the picture, so j is reversed."""
    rows, columns = series.voxels.shape[1], series.voxels.shape[0]
    found = ",".join(key for key, present in study.findings.items() if present)
    identity = (study.anatomy, study.seed, study.joint, study.side, study.contrast, found, rows, columns)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(*identity, "image", series.plane, k)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation")
    meta.ImplementationVersionName = "ORTHOKERNELS"
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID = MRImageStorage
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    _describe_study(image, study, identity)
    _describe_series(image, study, series, number, _uid(*identity, "series", series.plane))
    _describe_acquisition(image, series)
    _place(image, series, k)
    image.InstanceNumber = k + 1
    image.AcquisitionNumber = number
    pixels = np.ascontiguousarray(series.voxels[:, ::-1, k].T, dtype="<u2")  # [rows, columns]
    _describe_pixels(image, pixels)
    return image


def _describe_study(image: Dataset, study: PhantomStudy, identity: tuple[object, ...]) -> None:
    image.SpecificCharacterSet = "ISO_IR 192"
    image.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = _DATE
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = _TIME
    image.AccessionNumber = ""
    image.Manufacturer = "orthokernels"
    image.ManufacturerModelName = "digital phantom"
    image.ReferringPhysicianName = ""
    image.StudyDescription = f"{study.joint.capitalize()} phantom"
    image.PatientName = f"Phantom^{study.joint.capitalize()}"
    image.PatientID = f"PHANTOM{study.seed}"
    image.PatientBirthDate = ""
    image.PatientSex = "O"
    image.PatientIdentityRemoved = "YES"
    image.DeidentificationMethod = "Computed; there is no patient"
    image.StudyInstanceUID = _uid(*identity, "study")
    image.StudyID = "1"
    image.FrameOfReferenceUID = _uid(*identity, "frame of reference")
    image.PositionReferenceIndicator = ""
    image.Laterality = "R" if study.side == "right" else "L"


def _describe_series(image: Dataset, study: PhantomStudy, series: PhantomSeries, number: int, uid: UID) -> None:
    image.Modality = "MR"
    image.SeriesInstanceUID = uid
    image.SeriesNumber = number
    image.SeriesDescription = series.description
    image.ProtocolName = series.description
    image.BodyPartExamined = study.joint.upper()
    image.PatientPosition = "HFS" if study.joint == "shoulder" else "FFS"


def _describe_acquisition(image: Dataset, series: PhantomSeries) -> None:
    image.ScanningSequence = "SE"
    image.SequenceVariant = "SK"
    image.ScanOptions = "FS" if series.fat_suppressed else ""
    image.MRAcquisitionType = "2D"
    image.EchoTime = series.echo_time_ms
    image.RepetitionTime = series.repetition_time_ms
    image.EchoTrainLength = series.echo_train_length
    image.EchoNumbers = 1
    image.NumberOfAverages = 1
    image.MagneticFieldStrength = 3
    image.ImagedNucleus = "1H"
    image.ImagingFrequency = 127.7
    image.FlipAngle = 90


def _place(image: Dataset, series: PhantomSeries, k: int) -> None:
    """Position and orientation in LPS: the first pixel sent is the picture's upper left, (i, j) = (0, last)."""
    affine = _LPS_OF_RAS @ series.affine
    along_row, up, across = affine[:3, 0], affine[:3, 1], affine[:3, 2]
    position = affine @ [0.0, series.voxels.shape[1] - 1.0, float(k), 1.0]
    width, height = np.linalg.norm(along_row), np.linalg.norm(up)
    image.ImagePositionPatient = _decimals(position[:3])
    image.ImageOrientationPatient = _decimals([*(along_row / width), *(-up / height)])
    image.PixelSpacing = _decimals([height, width])
    image.SliceThickness = _decimals([series.slice_thickness_mm])[0]
    image.SpacingBetweenSlices = _decimals([np.linalg.norm(across)])[0]
    normal = np.cross(along_row / width, -up / height)
    image.SliceLocation = _decimals([float(normal @ position[:3])])[0]


def _decimals(values: Iterable[float | np.floating]) -> list[str]:
    """Decimal strings of the 16 characters that DICOM allows at most: ten decimals below 10000."""
    return [f"{float(v):.10f}"[:16] for v in values]


def _describe_pixels(image: Dataset, pixels: np.ndarray) -> None:
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated = 16
    image.BitsStored = 12
    image.HighBit = 11
    image.PixelRepresentation = 0
    image.SmallestImagePixelValue = int(pixels.min())
    image.LargestImagePixelValue = int(pixels.max())
    image.LossyImageCompression = "00"
    image.PixelData = pixels.tobytes()
