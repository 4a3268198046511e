"""dcmtk's programs, which the demo, the measurements and the tests have at the other end of an association."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orthokernels.errors import InputError


def program(name: str) -> str:
    """The path of one of dcmtk's programs.

    pynetdicom installs scripts of the same names beside Python, with other options; where its environment is active
    they come first in PATH, and are passed over.

    Raises:
        InputError: it is not installed.
    """
    for folder in os.get_exec_path():
        path = shutil.which(name, path=folder)
        if path is not None and not _is_script(Path(path)):
            return path
    raise InputError(f"dcmtk's {name} is not installed. Install it: apt-get install dcmtk")


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"
