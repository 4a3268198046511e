"""A weights folder's tensors as NumPy arrays: ``models.weights_folder`` says what it holds."""

from __future__ import annotations

import functools
import json
import mmap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from orthokernels.models.weights_folder import Card, check_digest, digest_of_bytes, load_card, unreadable

# Raises InputError where the file of that name in a weights folder is not what was verified any more.
Guard = Callable[[str], object]


class Tensors(dict[str, NDArray[Any]]):
    """Tensors by name; ``guards`` are called before any is read long after it was loaded, since it may be mapped."""

    guards: tuple[Callable[[], object], ...] = ()


def load_tensors(
    path: Path, allowed: Collection[str], *, check: bool = True, guard: Guard | None = None, copy: bool = False
) -> tuple[Tensors, Card]:
    """A file's tensors, half precision widened to float32, and its card, of one of the modules that are allowed.

    The others are read-only views of the mapped file: what nobody looks at is never read.

    Args:
        path: of the safetensors file.
        allowed: modules that it may hold.
        check: its content against the digest in its card.
        guard: of the tensors that are returned, which asks for this file.
        copy: all of it, so that the file is not read again.

    Raises:
        InputError: the file or its card is missing, damaged or altered, or describes another module.
    """
    card = load_card(path, allowed)
    try:
        stored = _stored(path)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise unreadable(path, error) from error
    if check:
        check_digest(path, card, digest_of(stored))
    found = Tensors({name: _widened(*own) for name, own in stored.items()})
    if copy:
        found = Tensors({name: own.copy() for name, own in found.items()})
    elif guard is not None:
        found.guards = (functools.partial(guard, path.name),)
    return found, card


def check_unchanged(state: Mapping[str, NDArray[Any]]) -> None:
    """Refuse mapped tensors whose file was changed since it was verified.

    What is cut short between this and the reading is not seen here: the processor then ends the process (SIGBUS).

    Raises:
        InputError: a file was changed.
    """
    for guard in state.guards if isinstance(state, Tensors) else ():
        guard()


def digest_of(tensors: Mapping[str, tuple[NDArray[Any], str]]) -> str:
    """SHA-256 over tensors with the names of their dtypes, as ``models.orthodiffusion.weights.digest_of``."""
    return digest_of_bytes(
        (name, dtype, tensor.shape, _bytes_of(tensor)) for name, (tensor, dtype) in sorted(tensors.items(), key=_name)
    )


def _name(item: tuple[str, Any]) -> str:
    return item[0]


def _bytes_of(tensor: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def _stored(path: Path) -> dict[str, tuple[NDArray[Any], str]]:
    """Each tensor with its dtype's name; bfloat16, which NumPy does not have, as its bits."""
    with safe_open(path, framework="np"):
        pass  # what the header claims is checked here: types, shapes, places inside the file
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header.pop("__metadata__", None)
    return {name: _view(content, 8 + length, told) for name, told in header.items()}


def _view(content: mmap.mmap, start: int, told: Mapping[str, Any]) -> tuple[NDArray[Any], str]:
    """A tensor as the format describes it: type, shape, and place behind the header."""
    dtype = _DTYPES[told["dtype"]]
    bits = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")
    array = np.ndarray(told["shape"], bits, content, start + told["data_offsets"][0])
    return array if array.flags.aligned else array.copy(), dtype


_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def _widened(tensor: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "bfloat16":
        return (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor.astype(np.float32) if dtype == "float16" else tensor
