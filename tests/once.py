"""Folders that are dear to make, made by whichever of the testing processes needs them first, for all of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name``, which ``make`` filled in this run of the tests. Nobody writes into it afterwards."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a folder of its own in the run's
        root = root.parent
    folder = root / f"once-{name}"
    with FileLock(root / f"{folder.name}.lock"):
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)  # of a process that could not
            make(part)
            part.rename(folder)
    return folder
