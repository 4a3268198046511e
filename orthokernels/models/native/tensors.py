"""A weights folder's tensors as NumPy arrays: ``models.weights_folder`` says what it holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open

from orthokernels.models.weights_folder import Card, check_digest, digest_of_bytes, load_card, unreadable

Tensors = dict[str, NDArray[Any]]


def load_tensors(path: Path, allowed: Collection[str]) -> tuple[Tensors, Card]:
    """A file's tensors, half precision widened to float32, and its card, of one of the modules that are allowed.

    Raises:
        InputError: the file or its card is missing, damaged or altered, or describes another module.
    """
    card = load_card(path, allowed)
    try:
        stored = _stored(path)
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise unreadable(path, error) from error
    check_digest(path, card, digest_of(stored))
    return {name: _widened(*own) for name, own in stored.items()}, card


def digest_of(tensors: Mapping[str, tuple[NDArray[Any], str]]) -> str:
    """SHA-256 over tensors with the names of their dtypes, as ``models.orthodiffusion.weights.digest_of``."""
    return digest_of_bytes(
        (name, dtype, tensor.shape, tensor.tobytes()) for name, (tensor, dtype) in sorted(tensors.items(), key=_name)
    )


def _name(item: tuple[str, Any]) -> str:
    return item[0]


def _stored(path: Path) -> dict[str, tuple[NDArray[Any], str]]:
    """Each tensor with its dtype's name; bfloat16, which NumPy does not have, as its bits."""
    with safe_open(path, framework="np") as file:
        names = list(file.keys())
        if all(file.get_slice(name).get_dtype() != "BF16" for name in names):
            arrays = {name: file.get_tensor(name) for name in names}
            return {name: (array, array.dtype.name) for name, array in arrays.items()}
    return dict(_from_bytes(path.read_bytes()))


def _from_bytes(content: bytes) -> Iterator[tuple[str, tuple[NDArray[Any], str]]]:
    for name, told in deserialize(content):
        dtype = _DTYPES[told["dtype"]]
        bits = "uint16" if dtype == "bfloat16" else dtype
        yield name, (np.frombuffer(told["data"], bits).reshape(told["shape"]), dtype)


_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def _widened(tensor: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "bfloat16":
        return (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor.astype(np.float32) if dtype == "float16" else tensor
