"""The ops: what each computes, its definition in plain PyTorch, and its registration with ``torch.library``."""

from __future__ import annotations

from orthokernels.ops.group_norm_silu import group_norm_silu

__all__ = ["group_norm_silu"]
