"""Tensors as NumPy arrays that share their memory, in the order in which they lie there."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

_KINDS: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_Memory = ctypes.c_char * sys.maxsize  # from an address on; NumPy asks where it ends, and nobody reads so far


def array(tensor: Tensor) -> Array:
    """A tensor's own memory, which the array holds.

    ``Tensor.numpy`` would take from the storage for good that it can be resized, which FSDP2 does with parameters.
    """
    kind = _KINDS[tensor.dtype]
    memory: Any = _Memory.from_address(tensor.data_ptr())
    memory.tensor = tensor
    strides = None if tensor.is_contiguous() else [kind.itemsize * step for step in tensor.stride()]
    return np.ndarray(tensor.shape, kind, memory, 0, strides)


def optional(tensor: Tensor | None) -> Array | None:
    """The same; parameters of another dtype are brought to float32."""
    return None if tensor is None else array(tensor.float().contiguous())


def in_order(volume: Tensor, *, channels_last: bool) -> Tensor:
    """A volume (N, C, *voxels) with its axes in the order of its memory, which is dense."""
    return volume.movedim(1, -1) if channels_last else volume


def by_sample(volume: Tensor) -> Array:
    """(N, places): each sample's memory, of a volume dense in either format."""
    return array(in_order(volume, channels_last=not volume.is_contiguous()).reshape(len(volume), -1))


def wrong_kind(x: Tensor) -> str | None:
    """Why no kernel takes a tensor, or None."""
    if x.dtype != torch.float32:
        return f"its kernels take float32, not {x.dtype}"
    return None if x.numel() else "its kernels take no empty tensors"
