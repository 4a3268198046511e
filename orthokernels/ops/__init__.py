"""The ops: what each computes, its definition in plain PyTorch, and its registration with ``torch.library``."""

from __future__ import annotations

from orthokernels.ops.add_noise import add_noise
from orthokernels.ops.attention3d import attention3d
from orthokernels.ops.attention_block import attention_block
from orthokernels.ops.attention_pool import attention_pool
from orthokernels.ops.conv3d import conv3d
from orthokernels.ops.denoise_step import denoise_step
from orthokernels.ops.diffusion_loss import diffusion_loss
from orthokernels.ops.group_norm_silu import group_norm_silu
from orthokernels.ops.plane_fusion import plane_fusion
from orthokernels.ops.plane_gating import plane_gating
from orthokernels.ops.upsample2x_trilinear import upsample2x_trilinear

__all__ = [
    "add_noise",
    "attention3d",
    "attention_block",
    "attention_pool",
    "conv3d",
    "denoise_step",
    "diffusion_loss",
    "group_norm_silu",
    "plane_fusion",
    "plane_gating",
    "upsample2x_trilinear",
]
