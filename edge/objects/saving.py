"""DICOM files, whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from highdicom import SOPClass

from orthokernels.data.dicom.file import quiet_pydicom


@contextmanager
def discreet() -> Iterator[None]:
    """highdicom and pydicom quote odd names of patients in warnings, and logs hold no patient data."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with quiet_pydicom():
            yield
    finally:
        logger.setLevel(level)


def save(made: Mapping[str, SOPClass], out: Path) -> list[Path]:
    """Write objects by their files' names into ``out``, which is made with its parents; each is on disk afterwards."""
    out.mkdir(parents=True, exist_ok=True)
    return [_save_whole(dataset, out / name) for name, dataset in made.items()]


def _save_whole(dataset: SOPClass, path: Path) -> Path:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        dataset.save_as(file, enforce_file_format=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return path
