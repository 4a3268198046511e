"""The package's cache, tables of what was found out, and where and for whom files and folders appear."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from orthokernels.errors import InputError


def cache_folder() -> Path:
    """ORTHOKERNELS_CACHE, else the user's cache folder.

    Raises:
        InputError: the user has no home, as an unknown one in a container.
    """
    if own := os.environ.get("ORTHOKERNELS_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orthokernels"
    except RuntimeError as error:
        raise InputError("there is no home folder to keep a cache in; name one with ORTHOKERNELS_CACHE.") from error


def umask() -> int:
    """The bits that new files are not to have: for what a temporary file was, which its owner alone can read."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def place_of(out: Path | str) -> Path:
    """Where a folder goes that is made beside its place and then renamed: links are followed.

    Raises:
        InputError: what is there can't be replaced as a whole: it is mounted, or the folder that one is in.
    """
    place = Path(out).resolve()
    if place.is_dir() and (place == Path.cwd() or os.path.ismount(place)):
        what = "the current folder" if place == Path.cwd() else "a mounted folder"
        raise InputError(f"--out {out}: is {what}, which can't be replaced. Name a folder in it.")
    return place


@functools.lru_cache(maxsize=8)
def read_table(file: Path) -> dict[str, Any]:
    """A table that ``add_to_table`` wrote; empty where there is no file, or a broken one."""
    try:
        # Opening a pipe would wait for a writer.
        found = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def add_to_table(file: Path, name: str, value: Any) -> None:
    """Add a line, in one piece, to whatever other processes wrote meanwhile; a read-only disk is no error."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file):
            read_table.cache_clear()
            _replace(file, json.dumps({**read_table(file), name: value}, indent=1, sort_keys=True) + "\n")
    except OSError:
        return
    finally:
        read_table.cache_clear()


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Nobody else adds to a table meanwhile; where the system or the disk has no locks, somebody might."""
    if fcntl is None:
        yield
        return
    # Beside the table, which is replaced; it stays, since whoever removed it might remove another's.
    lock = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _replace(file: Path, content: str) -> None:
    descriptor, beside = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
    try:
        with open(descriptor, "w") as new:
            new.write(content)
        os.replace(beside, file)
    except OSError:
        os.unlink(beside)
        raise
