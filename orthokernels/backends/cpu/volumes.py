"""Tensors as NumPy arrays that share their memory, in the order in which they lie there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


def array(tensor: Tensor) -> Array:
    """A tensor's own memory."""
    return np.asarray(tensor.detach().numpy())


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
