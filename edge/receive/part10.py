"""What is taken in, and what the file meta information of a DICOM file (PS3.10 section 7.1) says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from orthokernels.edge.receive.intake import Refused, Status
from pydicom.errors import InvalidDicomError
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import (
    JPEG2000,
    UID,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from orthokernels.data.dicom.file import DAMAGE

IMAGE_CLASSES = (
    MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage, SecondaryCaptureImageStorage,
)  # fmt: skip
SYNTAXES = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLossless, JPEGLosslessSV1,
    JPEGLSLossless, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000,
)  # fmt: skip


@dataclass(frozen=True)
class Meta:
    """What a file says that it holds; the data set may say otherwise."""

    syntax: UID
    sop_class: str
    sop_uid: str


def read_meta(file: BinaryIO) -> Meta:
    """Read preamble and file meta information, and no further: what comes next in ``file`` is the data set.

    Raises:
        Refused: it is no DICOM file.
    """
    try:
        read_preamble(file, force=False)
        meta = _read_file_meta_info(file)
        return Meta(
            meta.TransferSyntaxUID, str(meta.MediaStorageSOPClassUID), str(meta.get("MediaStorageSOPInstanceUID", ""))
        )
    except (InvalidDicomError, *DAMAGE) as error:
        raise Refused(Status.NOT_UNDERSTOOD, "it is no DICOM file") from error


def check_readable(meta: Meta) -> None:
    """Raise Refused for what no reader here reads."""
    if meta.syntax not in SYNTAXES or meta.sop_class not in IMAGE_CLASSES:
        raise Refused(Status.NOT_UNDERSTOOD, "it is no MR image in a transfer syntax that is read here")
