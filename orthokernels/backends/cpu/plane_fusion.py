"""Planes resampled and mixed in C++: ``csrc/cpu/plane_fusion.cpp``; backward in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orthokernels import _native
from orthokernels.backends.cpu.volumes import array, in_order, wrong_kind
from orthokernels.backends.torch.plane_fusion import backward

__all__ = ["backward", "can_run", "forward"]


def forward(volumes: Sequence[Tensor | None], gates: Tensor, to_plane: Tensor, out: Tensor, weights: Tensor) -> None:
    """Write the result and the planes' weights; all volumes share one layout."""
    # A volume of one channel or one voxel is dense in either layout.
    last = any(not volume.is_contiguous() for volume in (*volumes, out) if volume is not None)
    _native.plane_fusion(
        [None if volume is None else array(in_order(volume, channels_last=last)) for volume in volumes],
        array(gates.float()), to_plane.tolist(), array(in_order(out, channels_last=last)), array(weights),
        channels_last=last, threads=torch.get_num_threads(),
    )  # fmt: skip


def can_run(x: Tensor) -> str | None:
    """Why the kernel can not take volumes, or None."""
    return wrong_kind(x)
