"""Small files that would decode into far more than their headers say are refused before a decoder allocates."""

from __future__ import annotations

import resource
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from orthokernels.data.dicom.codestream import coded_size
from orthokernels.data.dicom.file import read
from orthokernels.data.study import read_study
from tests.data.series import noise, write_series

SIDE = 60000


def j2k(rows: int, columns: int) -> bytes:
    """A JPEG 2000 codestream's SOC and SIZ, and no data (ITU-T T.800 annex A.5.1)."""
    sizes = struct.pack(">HLLLLLLLLH", 0, columns, rows, 0, 0, columns, rows, 0, 0, 1)
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(sizes) + 5) + sizes + b"\x0f\x01\x01" + b"\xff\xd9"


def jpeg(rows: int, columns: int, start_of_frame: int = 0xC0) -> bytes:
    """A JPEG's SOI, an application segment and start of frame (ITU-T T.81 annex B.2.2), and no data."""
    frame = struct.pack(">HBHHB", 11, 8, rows, columns, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xe0\x00\x04JF" + bytes([0xFF, start_of_frame]) + frame + b"\xff\xd9"


BOMBS = {
    "JPEG 2000": (JPEG2000Lossless, j2k(SIDE, SIDE)),
    "JPEG": (JPEGBaseline8Bit, jpeg(SIDE, SIDE)),
    "JPEG-LS": (JPEGLSLossless, jpeg(SIDE, SIDE, 0xF7)),
    "RLE": (RLELossless, struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 2**20),
}


def bombs(folder: Path, kind: str, **header: object) -> list[Path]:
    """A sagittal series of 16 slices whose pixels are replaced by a bomb."""
    syntax, content = BOMBS[kind]
    files = write_series(folder, noise(0, 16), **header)
    for path in files:
        image = pydicom.dcmread(path)
        image.file_meta.TransferSyntaxUID = syntax
        image.PixelData = encapsulate([content])
        image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
        image.save_as(path, enforce_file_format=True)
    return files


@pytest.mark.parametrize("kind", BOMBS)
def test_compressed_pixels_that_claim_more_than_the_header_are_refused_without_their_memory(tmp_path, kind):
    study = read_study(bombs(tmp_path, kind))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert study.load("sagittal") is None
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown < 200  # MB; decoded, each file would take 7200, and one of RLE 128
    assert ("compressed pixels claim" in study.left_out[-1].reason) == (kind != "RLE")
    assert ("RLE pixels are longer" in study.left_out[-1].reason) == (kind == "RLE")


@pytest.mark.parametrize("kind", BOMBS)
def test_header_that_claims_more_than_a_scan_is_refused_before_its_pixels_are_looked_at(tmp_path, kind):
    from orthokernels.errors import InputError

    with pytest.raises(InputError, match="claims 60000 x 60000 x 1 voxels"):
        read_study(bombs(tmp_path, kind, Rows=SIDE, Columns=SIDE))


def test_deflated_file_that_inflates_without_end_is_refused(tmp_path, monkeypatch):
    from orthokernels.data.dicom import file as opened
    from orthokernels.errors import InputError

    monkeypatch.setattr(opened, "_MAX_UNZIPPED", 2**24)
    path = write_series(tmp_path, noise(0, 1))[0]
    image = pydicom.dcmread(path)
    image.PixelData = bytes(2**25)
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(path, enforce_file_format=True)
    assert path.stat().st_size < 2**17
    with pytest.raises(InputError, match="inflates to more than 16 MB"):
        read(path)


def test_deflated_file_of_usual_size_is_read(tmp_path):
    path = write_series(tmp_path, noise(0, 1))[0]
    image = pydicom.dcmread(path)
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(path, enforce_file_format=True)
    assert np.array_equal(read(path).pixel_array, noise(0, 1)[0])


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (j2k(12, 34), (12, 34)),
        (jpeg(12, 34), (12, 34)),
        (jpeg(12, 34, 0xF7), (12, 34)),
        (b"", None),
        (b"\xff\xd8", None),
    ],
)
def test_size_is_read_from_the_codestream(content, size):
    assert coded_size(content) == size
