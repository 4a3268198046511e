"""The package's cache, tables of what was found out, and where and for whom files and folders appear."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

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
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def add_to_table(file: Path, name: str, value: Any) -> None:
    """Add a line, in one piece, to whatever other processes wrote meanwhile; a read-only disk is no error."""
    read_table.cache_clear()
    table = {**read_table(file), name: value}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".writing-", delete=False) as beside:
            beside.write(json.dumps(table, indent=1, sort_keys=True) + "\n")
        os.replace(beside.name, file)
    except OSError:
        return
    finally:
        read_table.cache_clear()
