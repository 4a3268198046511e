"""Where a native kernel beats plain PyTorch, for "auto": what a call of an op costs is only won back by enough work.

Fitted to processor times of one thread (bench/NOTES.md). What "auto" leaves to PyTorch it gives to the op's definition,
called plainly. So it does not where torch.export leaves the size open: an op takes any, and a comparison would become
a limit of the exported program.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orthokernels.backends.cpu.kept_memory import LEAST_BYTES

_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # before 2.7 it can't be told apart


def plain_is_faster_group_norm(
    x: Tensor,
    skip: Tensor | None,
    activation: str | None,
    parameters: Sequence[Tensor | None] = (),
    added: Sequence[Tensor | None] = (),
) -> bool:
    """Of ``group_norm_silu``: without SiLU no pass over the volume is saved, but a large result lies in kept memory.

    Half precision no native kernel takes, and PyTorch's own is several times as fast as the op's definition in float32,
    where it takes ``parameters`` (weight and bias) and what is ``added`` (shift, scale_shift) as they are.
    """
    # PyTorch's channels-last backward writes a gradient that nobody wants through a null pointer (2.13).
    if torch.is_grad_enabled() and not x.requires_grad and not x.is_contiguous():
        return False
    if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16):
        mixed = all(own is None or own.dtype in (x.dtype, torch.float32) for own in parameters)
        return mixed and all(own is None or own.dtype == x.dtype for own in added)
    # PyTorch's own refuses parameters of another dtype than x's, and rounds 1 + scale to that of scale_shift.
    if any(own is not None and own.dtype != x.dtype for own in (*parameters, *added)):
        return False
    elements = x.numel() + (0 if skip is None else skip.numel())
    return _here(x) and _below(elements, LEAST_BYTES // 4 if activation is None else 2**20)


def plain_is_faster_doubling(x: Tensor) -> bool:
    """Of ``upsample2x_trilinear``."""
    return _here(x) and _below(x.numel(), 2**10 if x.is_contiguous() else 2**16)


def plain_is_faster_conv(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Of ``conv3d``: only Winograd's algorithm multiplies less than PyTorch's does."""
    if stride == 1 and weight.shape[-1] == 3:
        return _here(x) and _below((x.numel() // x.shape[1]) * weight.numel(), 2**21)
    if stride == 2:
        return _here(x) and (x.is_contiguous() or max(weight.shape[:2]) > 32 or _below(x.numel(), 2**16))
    return _here(x) and (x.is_contiguous() or _below(x.numel(), 2**18))


def plain_learns_faster(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Of ``conv3d`` with its gradients: weights change with every step and are packed anew, for either direction.

    The numbers of voxels were not fitted: of 3 x 3 x 3 at stride 1, 512 lost and 4,096 won (bench/NOTES.md).
    """
    if stride == 1 and weight.shape[-1] == 3:
        return not _here(x) or _below(x.numel() // x.shape[1], 2**11)
    return not _here(x) or _below(x.numel() // x.shape[1], 2**14)


def plain_is_faster_pooling(q: Tensor) -> bool:
    """Of ``attention_pool``, by its tokens."""
    return _here(q) and _below(q.shape[2], 256)


def plain_is_faster_attention(q: Tensor) -> bool:
    """Of ``attention3d`` with a bias or a window, by its tokens."""
    return _here(q) and _below(q.shape[3], 64)


def _here(x: Tensor) -> bool:
    """Whether the native kernels would be asked at all; autocast has rules of its own for ops."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _below(count: int, limit: int) -> bool:
    """Whether a count is below a limit; one that is still open is so only where all that it may be is."""
    if _exporting() or isinstance(count, torch.SymInt):
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(count < limit)
    return count < limit
