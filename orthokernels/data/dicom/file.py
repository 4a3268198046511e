"""Opening a DICOM file: quietly, zipped or not, and with one sentence for what is wrong with it."""

from __future__ import annotations

import gzip
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset

from orthokernels.errors import InputError

_MAX_UNZIPPED = 2**30

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


def short(error: BaseException) -> str:
    """The first line of a library's message, without a trailing full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(". ")[:160]) if lines else type(error).__name__
