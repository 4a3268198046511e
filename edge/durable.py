"""Files that survive a power cut: written beside their place, synced, renamed, and the folder synced too.

No name on disk comes from the network: every part of a path is a hash or a number of ours.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

_TEMPORARY = ".writing-"


def name_of(identifier: str) -> str:
    """32 hexadecimal digits that stand for an identifier in names and logs."""
    return hashlib.sha256(identifier.encode()).hexdigest()[:32]


def write_durably(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Write ``parts`` one after the other; when this returns, ``path`` holds them even if the power fails now."""
    make_folder(path.parent)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make ``folder``, for its owner alone, with every parent's entry synced."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Sync every file under ``folder`` and the folders themselves, so that a rename of it is the last step."""
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(place, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(place))


def remove_unfinished(folder: Path) -> int:
    """Remove what interrupted writes left under ``folder``; nothing of it was ever acknowledged."""
    removed = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if name.startswith(_TEMPORARY):
                Path(place, name).unlink(missing_ok=True)
                removed += 1
    return removed
