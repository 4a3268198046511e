"""Files that survive a power cut: written beside their place, synced, renamed, and the folder synced too.

No name on disk comes from the network: every part of a path is a hash or a number of ours.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

_TEMPORARY = ".writing-"


def name_of(identifier: str) -> str:
    """32 hexadecimal digits that stand for an identifier in names and logs."""
    return hashlib.sha256(identifier.encode()).hexdigest()[:32]


def write_durably(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Write ``parts`` one after the other; when this returns, ``path`` holds them even if the power fails now."""
    place = path.parent
    make_folder(place)
    beside = f"{place}/{_TEMPORARY}{secrets.token_hex(8)}"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            for part in parts:
                _write_all(file, part)
            os.fsync(descriptor)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    sync_folder(place)


def _write_all(file: FileIO, part: bytes | memoryview) -> None:
    """A disk that is nearly full may take a part of it, and say so only at the next."""
    view = memoryview(part)
    while view:
        view = view[file.write(view) :]


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
