"""Trilinear doubling in C++: ``csrc/cpu/upsample2x_trilinear.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from orthokernels import _native
from orthokernels.backends.cpu.volumes import Array, array, wrong_kind


def forward(x: Tensor, y: Tensor) -> None:
    """Write y, in x's layout."""
    last = not x.is_contiguous()
    _native.upsample2x_trilinear(_rows(x, last), _rows(y, last), threads=torch.get_num_threads())


def backward(dy: Tensor, dx: Tensor) -> None:
    """Write dx, in dy's layout."""
    last = not dy.is_contiguous()
    _native.upsample2x_trilinear_backward(_rows(dy, last), _rows(dx, last), threads=torch.get_num_threads())


def _rows(volume: Tensor, channels_last: bool) -> Array:
    """[N, D, H, W, C], or [N C, D, H, W, 1] channels first."""
    return array(volume.movedim(1, -1) if channels_last else volume.flatten(0, 1)[..., None])


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take a volume, or None."""
    return wrong_kind(x)
