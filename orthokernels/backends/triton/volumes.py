"""What the kernels of volumes share: where a voxel's channels lie, and which dtypes are taken."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def offset(i_n, o_c, d, h, w, C, D, H, W, CHANNELS_LAST: tl.constexpr):
    """Where channels of voxels are, 64 bits wide: d, h, w are [BV, 1], o_c is [1, BC]."""
    if CHANNELS_LAST:
        return (((i_n.to(tl.int64) * D + d) * H + h) * W + w) * C + o_c
    return (((i_n.to(tl.int64) * C + o_c) * D + d) * H + h) * W + w


def processors(device: torch.device) -> int:
    """Multiprocessors of a device; a few where the kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def wrong_dtype(x: Tensor) -> str | None:
    """Why no kernel takes a tensor of this dtype, or None."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"its kernels take float32, float16 and bfloat16, not {x.dtype}"
    return None
