"""Label maps in NRRD: one three-dimensional volume with its header in the same file, raw or gzip.

Nothing that a header says is followed to another file, and nothing is allocated that the limits do not allow.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np

from orthokernels.errors import InputError

_HEADER_LIMIT = 1 << 16
_VOXEL_LIMIT = 1 << 28

_TYPES = {
    "uchar": "u1", "unsigned char": "u1", "uint8": "u1", "uint8_t": "u1", "signed char": "i1", "int8": "i1",
    "int8_t": "i1", "short": "i2", "signed short": "i2", "int16": "i2", "int16_t": "i2", "ushort": "u2",
    "unsigned short": "u2", "uint16": "u2", "uint16_t": "u2", "int": "i4", "signed int": "i4", "int32": "i4",
    "int32_t": "i4",
}  # fmt: skip

# Signs that turn a space's axes into RAS.
_SPACES = {
    "left-posterior-superior": (-1.0, -1.0, 1.0), "lps": (-1.0, -1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0), "ras": (1.0, 1.0, 1.0),
}  # fmt: skip


def read_nrrd(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A label map and how it lies in the patient.

    Args:
        path: of a ``.nrrd`` file with three axes and whole numbers of at most 32 bits.

    Returns:
        Values (i, j, k) in the file's own order and type, and the affine (4, 4) float64, indices to RAS mm.

    Raises:
        InputError: no such file, damaged, too large, or of a kind that is not read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}). Check the path.") from error
    end = content.find(b"\n\n", 0, _HEADER_LIMIT)
    if not content.startswith(b"NRRD000") or end < 0:
        raise InputError(f"{path}: not an NRRD file with its header in front. Save it again as .nrrd.")
    try:
        fields = _fields(content[:end].decode("ascii"))
        kind, shape, affine = _described(fields)
        data = _decoded(content[end + 2 :], fields, math.prod(shape) * kind.itemsize)
    except (ValueError, KeyError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: an NRRD file that is damaged or not supported ({error}). Save it again.") from error
    return np.frombuffer(data, kind).reshape(shape, order="F"), affine


def _fields(header: str) -> dict[str, str]:
    lines = [line for line in header.splitlines()[1:] if line and not line.startswith("#") and ":=" not in line]
    pairs = (line.split(":", 1) for line in lines)
    return {name.strip().lower(): value.strip() for name, value in pairs}


def _described(fields: dict[str, str]) -> tuple[np.dtype, tuple[int, int, int], np.ndarray]:
    """Type, shape and affine."""
    if {"data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"} & set(fields):
        raise ValueError("its data lie in another file or further on")
    order = {"little": "<", "big": ">"}[fields.get("endian", "little")]
    kind = np.dtype(order + _TYPES[fields["type"]])
    sizes = [int(size) for size in fields["sizes"].split()]
    if len(sizes) != 3 or min(sizes) < 1 or math.prod(sizes) > _VOXEL_LIMIT:
        raise ValueError(f"sizes {fields['sizes']}")
    vectors = fields["space directions"].replace(" ", "").strip("()").split(")(")
    axes = [[float(part) for part in vector.split(",")] for vector in (*vectors, fields["space origin"].strip("()"))]
    signs = _SPACES[fields["space"].lower()]
    affine = np.eye(4)
    affine[:3] = (np.array(axes) * signs).T
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise ValueError("its axes do not span a volume")
    return kind, (sizes[0], sizes[1], sizes[2]), affine


def _decoded(data: bytes, fields: dict[str, str], size: int) -> bytes:
    """The voxels' bytes, exactly as many as there should be."""
    encoding = fields["encoding"].lower()
    if encoding in ("gzip", "gz"):
        data = zlib.decompressobj(wbits=31).decompress(data, size + 1)
    elif encoding != "raw":
        raise ValueError(f"encoding {encoding}")
    if len(data) != size:
        raise ValueError(f"{size} bytes of voxels expected, {'more' if len(data) > size else len(data)} found")
    return data
