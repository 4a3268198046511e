"""Opening a DICOM file: quietly, zipped or not, and with one sentence for what is wrong with it."""

from __future__ import annotations

import gzip
import io
import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from orthokernels.errors import InputError

_MAX_UNZIPPED = 2**30
_META_BYTES = 2**12  # within which file meta information names the transfer syntax

# What pydicom and its plugins raise on damaged files; anything else is our own mistake and should be seen.
DAMAGE = (
    ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError, OSError, RuntimeError,
    OverflowError, EOFError, ArithmeticError,
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


def read(path: Path, defer: int | None = None) -> Dataset:
    """The file's dataset; with ``defer``, elements of more bytes are left in the file until they are asked for."""
    with path.open("rb") as file:
        start = file.read(_META_BYTES)
    if start.startswith(b"\x1f\x8b"):
        return pydicom.dcmread(_unzip(path))
    if DeflatedExplicitVRLittleEndian.encode() in start:
        _check_deflated(path)
    return pydicom.dcmread(path, defer_size=defer)


def _unzip(path: Path) -> BinaryIO:
    with gzip.open(path) as file:
        content = file.read(_MAX_UNZIPPED + 1)
    if len(content) > _MAX_UNZIPPED:
        raise InputError(f"{path}: unzips to more than {_MAX_UNZIPPED >> 20} MB. Unzip and check it by hand.")
    return io.BytesIO(content)


def _check_deflated(path: Path) -> None:
    """pydicom inflates a deflated data set whatever it grows to."""
    with path.open("rb") as file:
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
