"""The ops: what each computes, its definition in plain PyTorch, and its registration with ``torch.library``."""

from __future__ import annotations

from orthokernels.ops.attention_pool import attention_pool
from orthokernels.ops.denoise_step import denoise_step
from orthokernels.ops.group_norm_silu import group_norm_silu
from orthokernels.ops.plane_fusion import plane_fusion
from orthokernels.ops.upsample2x_trilinear import upsample2x_trilinear

__all__ = ["attention_pool", "denoise_step", "group_norm_silu", "plane_fusion", "upsample2x_trilinear"]
