"""Pixels: decoded by pydicom and its plugins, or by GDCM where none of them can."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.uid import JPEGExtended12Bit

from orthokernels.data.dicom.codestream import check_codestreams
from orthokernels.data.dicom.file import DAMAGE, quiet_pydicom, read, short
from orthokernels.data.dicom.frame import Frame
from orthokernels.errors import InputError


def decode(frames: Sequence[Frame]) -> tuple[dict[tuple[Path, int], np.ndarray], list[str]]:
    """Pixels by (path, frame), axes (row, column), native byte order; and a sentence for each file that failed."""
    wanted: dict[Path, list[Frame]] = {}
    for frame in frames:
        wanted.setdefault(frame.path, []).append(frame)
    pixels: dict[tuple[Path, int], np.ndarray] = {}
    damage = []
    with quiet_pydicom():
        for path, own in wanted.items():
            try:
                decoded = _pixels(path)
                for frame in own:
                    pixels[path, frame.index] = decoded[frame.index]
            except InputError as error:
                damage.append(str(error))
            except BaseException as error:
                # Decoders written in Rust (pylibjpeg-rle) panic by what is no Exception.
                if not isinstance(error, DAMAGE) and type(error).__module__ != "pyo3_runtime":
                    raise
                damage.append(f"{path}: the pixels can't be decoded ({short(error)}). Export the file again.")
    return pixels, damage


def _pixels(path: Path) -> np.ndarray:
    """Stored values of every frame, axes (frame, row, column), native byte order."""
    dataset = read(path)
    check_codestreams(dataset, path)
    shape = (int(dataset.get("NumberOfFrames", 1) or 1), int(dataset.Rows), int(dataset.Columns))
    if dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit and dataset.BitsStored > 8:
        array = _gdcm_pixels(path, shape)
    else:
        array = dataset.pixel_array
    array = array.reshape(shape)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        array = _inverted(array, int(dataset.BitsStored))
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _inverted(array: np.ndarray, bits: int) -> np.ndarray:
    """Bright for dark over all that the stored bits can hold, whatever they do: the same for all files of a series."""
    if array.dtype.kind == "i":
        return ~array  # -1 - value, which turns the range round
    top = (1 << bits) - 1
    return top - np.minimum(array, top)


def _gdcm_pixels(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """12-bit JPEG by GDCM's own reader; none of pydicom's plugins takes it."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise InputError(f"{path}: the 12-bit JPEG pixels can't be decoded. Export the file uncompressed.")
    image = reader.GetImage()
    kinds = {"UINT16": np.uint16, "INT16": np.int16, "UINT12": np.uint16}
    kind = image.GetPixelFormat().GetScalarTypeAsString()
    if kind not in kinds:
        raise InputError(f"{path}: has pixels of type {kind}, which is not read. Export the file uncompressed.")
    # GDCM's binding hands bytes over as text in which the undecodable ones are escaped.
    return np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), kinds[kind]).reshape(shape)
