"""Opening a DICOM file: quietly, zipped or not, and with one sentence for what is wrong with it."""

from __future__ import annotations

import gzip
import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from orthokernels.errors import InputError

_MAX_UNZIPPED = 2**30
_META_BYTES = 2**12  # within which file meta information names the transfer syntax

# What pydicom and its plugins raise on damaged files; anything else is our own mistake and should be seen.
DAMAGE = (
    ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError, OSError, RuntimeError,
    OverflowError, EOFError, ArithmeticError, StopIteration, struct.error, zlib.error, BytesLengthException,
)  # fmt: skip


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


class BoundedReader(io.BufferedReader):
    """A file of which no more is asked for than it has: memory for the 4 GB that an element may claim is not taken."""

    def __init__(self, path: str, mode: str = "rb") -> None:
        super().__init__(io.FileIO(path, mode))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self._size:
            size = max(self._size - self.tell(), 0)
        return super().read(size)


def read(path: Path, defer: int | None = None, only: list[str] | None = None) -> Dataset:
    """The file's dataset.

    Args:
        path: of a DICOM file, zipped or not.
        defer: elements of more bytes are left in the file until they are asked for.
        only: keywords of the elements that are read; none from the pixels on.
    """
    with path.open("rb") as file:
        start = file.read(_META_BYTES)
    if start.startswith(b"\x1f\x8b"):
        return pydicom.dcmread(_unzip(path), stop_before_pixels=only is not None, specific_tags=only)
    if DeflatedExplicitVRLittleEndian.encode() in start:
        _check_deflated(path)
    with BoundedReader(str(path)) as bounded:
        dataset = pydicom.dcmread(bounded, defer_size=defer, stop_before_pixels=only is not None, specific_tags=only)
    dataset.fileobj_type = BoundedReader  # for what was deferred
    return dataset


def _unzip(path: Path) -> BinaryIO:
    with gzip.open(path) as file:
        content = file.read(_MAX_UNZIPPED + 1)
    if len(content) > _MAX_UNZIPPED:
        raise InputError(f"{path}: unzips to more than {_MAX_UNZIPPED >> 20} MB. Unzip and check it by hand.")
    return io.BytesIO(content)


def _check_deflated(path: Path) -> None:
    """pydicom inflates a deflated data set whatever it grows to."""
    with BoundedReader(str(path)) as file:
        read_preamble(file, force=False)
        if _read_file_meta_info(file).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        left = _MAX_UNZIPPED
        while part := file.read(2**16):
            left -= len(inflating.decompress(part, left + 1))
            if left < 0:
                raise InputError(f"{path}: inflates to more than {_MAX_UNZIPPED >> 20} MB. Check it by hand.")


def short(error: BaseException) -> str:
    """The first line of a library's message, without a trailing full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(". ")[:160]) if lines else type(error).__name__
