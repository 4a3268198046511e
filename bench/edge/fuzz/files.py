"""Part-10 files, read as the worker reads a study: headers, completeness, and pixels."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from orthokernels.bench.edge.fuzz.target import Target
from orthokernels.edge.completeness import examine
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)

from orthokernels.data.dicom import read_frames
from orthokernels.data.dicom.pixels import decode
from orthokernels.data.study import read_study
from orthokernels.errors import InputError
from orthokernels.tasks import PLANES

_SLICES, _ROWS, _COLUMNS = 16, 6, 8


class Files(Target):
    """One file at a time; a multi-frame one makes a whole volume, so that the way to the voxels is gone to its end."""

    fragments = (
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff",  # an item without end
        b"\xfe\xff\xdd\xe0\x00\x00\x00\x00",  # a sequence's end
        b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff" * 40,  # sequences in sequences
        b"\xe0\x7f\x10\x00OW\x00\x00\xff\xff\xff\xff",  # pixels without end
        b"\x28\x00\x08\x00IS\x0a\x002147483647",  # NumberOfFrames
        b"\x28\x00\x10\x00US\x02\x00\xff\xff",  # Rows
        b"\x08\x00\x05\x00CS\x10\x00ISO 2022 IR 1490",
        b"1e400\\-1e400\\nan",
    )

    def __init__(self, folder: Path) -> None:
        self._path = folder / "image.dcm"
        self.seeds = list(seeds())

    def take(self, content: bytes) -> str:
        self._path.write_bytes(content)
        verdict, _ = examine([self._path], PLANES)
        try:
            decode(read_frames(self._path))
            study = read_study([self._path], PLANES)
        except InputError:
            return "refused"
        loaded = [study.load(plane) for plane in PLANES]
        return "taken" if verdict != "unfit" and any(loaded) else "refused"


def seeds() -> Iterator[bytes]:
    """Classic and enhanced images in the encodings that are read without a plugin, and one compressed file."""
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        yield _encoded(_classic(), syntax)
    yield _encoded(_enhanced(), ExplicitVRLittleEndian)
    yield _encoded(_enhanced(), ImplicitVRLittleEndian)
    compressed = _enhanced()
    compressed.PixelData = encapsulate([_rle_frame()] * _SLICES)
    yield _encoded(compressed, RLELossless)
    yield gzip.compress(_encoded(_enhanced(), ExplicitVRLittleEndian), mtime=0)


def _pixels(frames: int) -> bytes:
    return np.random.default_rng(0).integers(0, 4096, (frames, _ROWS, _COLUMNS), dtype=np.uint16).tobytes()


def _common(sop_class: UID) -> Dataset:
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = sop_class, "1.2.3.1.1"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.Modality = "1.2.3", "1.2.3.1", "MR"
    image.SpecificCharacterSet, image.PatientName, image.StudyDate = "ISO_IR 192", "A^B", "20260101"
    image.SeriesDescription, image.SeriesNumber, image.InstanceNumber = "sagittal PD FS", 3, 1
    image.Rows, image.Columns = _ROWS, _COLUMNS
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    return image


def _classic() -> Dataset:
    image = _common(MRImageStorage)
    image.ImageOrientationPatient, image.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [-40, -60, 50]
    image.PixelSpacing, image.SliceThickness, image.EchoTime, image.RepetitionTime = [0.5, 0.7], 3, 35, 3000
    image.ImageType, image.ScanningSequence = ["ORIGINAL", "PRIMARY", "M"], "SE"
    image.AcquisitionNumber, image.ImagesInAcquisition = 1, "1"
    image.PixelData = _pixels(1)
    return image


_ORIENTATIONS = {"sagittal": (0, 1, 0, 0, 0, -1), "coronal": (1, 0, 0, 0, 0, -1), "axial": (1, 0, 0, 0, 1, 0)}


def enhanced_data_set(plane: str, study: str, series: str, uid: str, description: str) -> bytes:
    """A small volume of one plane, encoded in explicit VR little endian, without file meta information."""
    image = _enhanced(plane)
    image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID = study, series, uid
    image.SeriesDescription = description
    encoded = _encoded(image, ExplicitVRLittleEndian)
    return encoded[144 + struct.unpack_from("<L", encoded, 140)[0] :]


def _enhanced(plane: str = "sagittal") -> Dataset:
    """A volume in one file, its geometry in functional groups."""
    image = _common(EnhancedMRImageStorage)
    image.NumberOfFrames = _SLICES
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(_ORIENTATIONS[plane])
    normal = np.cross(_ORIENTATIONS[plane][:3], _ORIENTATIONS[plane][3:])
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.7], 4
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    for number in range(_SLICES):
        position, own = Dataset(), Dataset()
        position.ImagePositionPatient = [float(mm) for mm in np.array([-40, -60, 50]) + 4 * number * normal]
        own.PlanePositionSequence = [position]
        image.PerFrameFunctionalGroupsSequence.append(own)
    image.PixelData = _pixels(_SLICES)
    return image


def _rle_frame() -> bytes:
    """High and low bytes, each as one literal run (PS3.5 annex G)."""
    literal = bytes([_ROWS * _COLUMNS - 1]) + bytes(range(_ROWS * _COLUMNS))
    literal += b"\x80" * (len(literal) % 2)
    return struct.pack("<16L", 2, 64, 64 + len(literal), *[0] * 13) + 2 * literal


def _encoded(image: Dataset, syntax: UID) -> bytes:
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image["PixelData"].VR = "OB" if syntax.is_encapsulated else "OW"
    image["PixelData"].is_undefined_length = syntax.is_encapsulated
    encoded = io.BytesIO()
    image.save_as(encoded, enforce_file_format=True)
    return encoded.getvalue()
