"""Memory formats of volumes (N, C, *voxels): contiguous (channels first) or channels last, at any number of axes.

And what attention asks of its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from orthokernels.backends.cpu.kept_memory import KEPT

Layout = Literal["channels_first", "channels_last"]


def layout_of(x: Tensor) -> Layout:
    """The layout that x has, or is brought into: channels last where it is dense that way and no other."""
    return "channels_last" if not x.is_contiguous() and x.movedim(1, -1).is_contiguous() else "channels_first"


def conform(x: Tensor, layout: Layout) -> Tensor:
    """x, dense in a layout; copied only where it is not."""
    return x.contiguous() if layout == "channels_first" else x.movedim(1, -1).contiguous().movedim(-1, 1)


def dense(*tensors: Any) -> list[Any]:
    """Small tensors as kernels read them, one value behind another; None stays."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def empty_volume(
    x: Tensor, *, channels: int | None = None, sides: Sequence[int] | None = None, layout: Layout | None = None
) -> Tensor:
    """A new volume like x in batch, dtype and device, and in what is not given.

    It is no view: autograd lets nobody add in place to a view that an op returned. Large ones on a processor lie in
    memory that is used again.
    """
    channels = x.shape[1] if channels is None else channels
    sides = x.shape[2:] if sides is None else sides
    shape = (x.shape[0], channels, *sides)
    last = (layout or layout_of(x)) == "channels_last"
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    if last and len(sides) not in formats:  # PyTorch has no name for the layout
        return torch.empty_strided(shape, _strides_channels_last(shape), dtype=x.dtype, device=x.device)
    memory_format = formats[len(sides)] if last else torch.contiguous_format
    if KEPT.takes(x, math.prod(shape) * x.element_size()):
        return KEPT.empty(shape, x.dtype, memory_format)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _strides_channels_last(shape: Sequence[int]) -> list[int]:
    strides, step = [0] * len(shape), 1
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):
        strides[axis] = step
        step = step * max(shape[axis], 1)
    return strides


def check_alike(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless keys and values are as the queries in shape, dtype and device."""
    for name, own in (("k", k), ("v", v)):
        if own.shape != q.shape or own.dtype != q.dtype or own.device != q.device:
            told = f"{own.dtype} of shape {tuple(own.shape)} on {own.device}"
            raise ValueError(f"{name}: {told}; must be as q, {q.dtype} of shape {tuple(q.shape)} on {q.device}.")
