"""Small DICOM series, written as a scanner would, for the reader's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

# Row and column directions (LPS) of the usual views.
ORIENTATIONS = {
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "axial": ((1, 0, 0), (0, 1, 0)),
}


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """About the three axes, in degrees."""
    a, b, c = np.radians([x, y, z])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def write_series(
    folder: Path,
    pixels: np.ndarray,
    *,
    plane: str = "sagittal",
    tilt: tuple[float, float, float] = (0, 0, 0),
    spacing: tuple[float, float, float] = (0.5, 0.7, 4.0),
    start: tuple[float, float, float] = (-40.0, -60.0, 50.0),
    study: str = "1.2.3",
    series: str | None = None,
    reverse_names: bool = False,
    **header: Any,
) -> list[Path]:
    """Write ``pixels`` (slice, row, column), uint16, slices stepping along the normal; returns the files.

    ``spacing`` is between rows, columns and slices in mm. ``header`` overrides attributes of every file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row, column = (rotation(*tilt) @ np.array(v, float) for v in ORIENTATIONS[plane])
    normal = np.cross(row, column)
    series = series or generate_uid()
    files = []
    for k, image in enumerate(pixels):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.Modality, dataset.SeriesDescription, dataset.SeriesNumber = "MR", f"{plane} test", 3
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        dataset.ScanningSequence, dataset.EchoTime, dataset.RepetitionTime = "SE", 35.0, 3000.0
        dataset.InstanceNumber = k + 1
        dataset.ImageOrientationPatient = [f"{v:.8f}" for v in (*row, *column)]
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in np.array(start) + k * spacing[2] * normal]
        dataset.PixelSpacing = [spacing[0], spacing[1]]
        dataset.Rows, dataset.Columns = image.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.PixelData = np.ascontiguousarray(image, "<u2").tobytes()
        for keyword, value in header.items():
            setattr(dataset, keyword, value)
        number = len(pixels) - k if reverse_names else k
        file = folder / f"image{number:04d}.dcm"
        dataset.save_as(file, enforce_file_format=True)
        files.append(file)
    return files


def noise(seed: int, slices: int = 18, rows: int = 20, columns: int = 24) -> np.ndarray:
    """Random pixels (slice, row, column), uint16."""
    return np.random.default_rng(seed).integers(0, 4000, (slices, rows, columns), dtype=np.uint16)
