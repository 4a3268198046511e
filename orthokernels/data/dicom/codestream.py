"""What compressed pixels claim of themselves, read before a decoder allocates for it.

A header may say 512 x 512 while the JPEG or JPEG 2000 inside says 60000 x 60000, and the decoder believes the latter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import RLELossless

from orthokernels.errors import InputError

_JPEG_START, _J2K_START, _JP2_START = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # ITU-T T.81 table B.1; F7 is JPEG-LS's (T.87)
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}

# A byte run costs at most 129 / 128 (PS3.5 annex G.3); padding and empty runs may add to it, but not double it.
_RLE_MOST, _RLE_HEADER = 2, 2**16


def check_codestreams(dataset: Dataset, path: Path) -> None:
    """Hold every compressed frame against the size that the header states.

    Raises:
        InputError: a frame would be decoded into more than the header's rows and columns.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    stated = rows * columns * (int(dataset.BitsAllocated) // 8) * int(dataset.get("SamplesPerPixel", 1))
    for frame in generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1) or 1)):
        if syntax == RLELossless:
            if len(frame) > _RLE_MOST * stated + _RLE_HEADER:
                raise InputError(f"{path}: the RLE pixels are longer than {columns} x {rows} can be. Export it again.")
            continue
        size = coded_size(frame)
        if size is not None and size[0] * size[1] > rows * columns:
            raise InputError(
                f"{path}: the compressed pixels claim {size[1]} x {size[0]}, and the header {columns} x {rows}. "
                "Export the file again."
            )


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 codestream claims; None where it claims nothing readable."""
    if frame.startswith(_JP2_START):
        start = frame.find(_J2K_START)
        frame = frame[start:] if start > 0 else b""
    if frame.startswith(_J2K_START) and len(frame) >= 24:
        across, down, left, top = struct.unpack_from(">LLLL", frame, 8)  # ITU-T T.800 section A.5.1
        return max(down - top, 0), max(across - left, 0)
    if not frame.startswith(_JPEG_START):
        return None
    for marker, at in _segments(frame):
        if marker in _START_OF_FRAME and at + 9 <= len(frame):
            rows, columns = struct.unpack_from(">HH", frame, at + 5)
            return rows, columns
    return None


def _segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """JPEG's markers and where they begin, up to the coded data."""
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            yield marker, at
            at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
