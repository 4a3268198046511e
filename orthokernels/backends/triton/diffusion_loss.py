"""The denoiser's loss in Triton, forward and backward.

Bytes, of volumes of B bytes: prediction and x0 read, 2 B, and 4 bytes a block written; backward one volume more, the
gradient. Plain PyTorch moves about 11 B forward (noise, target, difference, square, each written and read again).

A block of consecutive places gives one sum; the blocks' sums are added in their order, so that two runs give the same
bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthokernels.backends.triton.add_noise import noise_of
from orthokernels.backends.triton.configuration import Configuration
from orthokernels.backends.triton.philox import counted
from orthokernels.backends.triton.volumes import wrong_dtype

_BLOCK = 1024
_WARPS = 4


@triton.jit
def _error(
    p_prediction, p_x0, p_target, p_noise, p_seed, i_block, o_v, sample, mask, step,
    DRAW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    target = tl.load(p_target + 2 * sample, mask, other=0.0) * tl.load(p_x0 + o_v, mask, other=0.0).to(tl.float32)
    noise = noise_of(p_noise, p_seed, i_block, o_v, mask, step, DRAW, BLOCK)
    target += tl.load(p_target + 2 * sample + 1, mask, other=0.0) * noise
    return tl.load(p_prediction + o_v, mask, other=0.0).to(tl.float32) - target


# A sampler's steps differ in these alone, and a variant of its own would be compiled in the midst of a run.
@triton.jit(do_not_specialize=["step"], do_not_specialize_on_alignment=["p_target", "p_weight", "p_seed"])
def _loss(
    p_prediction, p_x0, p_target, p_noise, p_seed, p_weight, p_part, size, per_sample, step,
    DRAW: tl.constexpr, WEIGHT: tl.constexpr, SQUARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block's sum of weighted errors."""
    i_block = tl.program_id(0).to(tl.int64)
    o_v = i_block * BLOCK + tl.arange(0, BLOCK)
    mask = o_v < size
    sample = o_v // per_sample
    error = _error(p_prediction, p_x0, p_target, p_noise, p_seed, i_block, o_v, sample, mask, step, DRAW, BLOCK)
    each = error * error if SQUARED else tl.abs(error)
    if WEIGHT:
        each *= tl.load(p_weight + sample, mask, other=0.0)
    tl.store(p_part + i_block, tl.sum(tl.where(mask, each, 0.0), 0))


@triton.jit(do_not_specialize=["step"], do_not_specialize_on_alignment=["p_target", "p_weight", "p_seed"])
def _gradient(
    p_dloss, p_prediction, p_x0, p_target, p_noise, p_seed, p_weight, p_found, size, per_sample, step,
    DRAW: tl.constexpr, WEIGHT: tl.constexpr, SQUARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of the prediction."""
    i_block = tl.program_id(0).to(tl.int64)
    o_v = i_block * BLOCK + tl.arange(0, BLOCK)
    mask = o_v < size
    sample = o_v // per_sample
    error = _error(p_prediction, p_x0, p_target, p_noise, p_seed, i_block, o_v, sample, mask, step, DRAW, BLOCK)
    slope = 2 * error if SQUARED else tl.where(error > 0, 1.0, tl.where(error < 0, -1.0, 0.0))
    if WEIGHT:
        slope *= tl.load(p_weight + sample, mask, other=0.0)
    found = slope * (tl.load(p_dloss).to(tl.float32) / size)
    tl.store(p_found + o_v, found.to(p_found.dtype.element_ty), mask)


def forward(
    prediction: Tensor, x0: Tensor, target: Tensor, noise: Tensor | None, seed: Tensor | None, step: int,
    weight: Tensor | None, squared: bool,
) -> Tensor:  # fmt: skip
    """The mean error, a scalar."""
    blocks = triton.cdiv(x0.numel(), _BLOCK)
    part = torch.empty(blocks, dtype=torch.float32, device=x0.device)
    _loss[(blocks,)](
        prediction, x0, target, x0 if noise is None else noise, target if seed is None else seed,
        target if weight is None else weight, part, x0.numel(), x0[0].numel(), counted(step),
        DRAW=seed is not None, WEIGHT=weight is not None, SQUARED=squared, BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip
    return part.sum() / x0.numel()


def backward(
    dloss: Tensor, prediction: Tensor, x0: Tensor, target: Tensor, noise: Tensor | None, seed: Tensor | None,
    step: int, weight: Tensor | None, squared: bool, found: Tensor,
) -> None:  # fmt: skip
    """Write the gradient of the prediction."""
    _gradient[(triton.cdiv(x0.numel(), _BLOCK),)](
        dloss, prediction, x0, target, x0 if noise is None else noise, target if seed is None else seed,
        target if weight is None else weight, found, x0.numel(), x0[0].numel(), counted(step),
        DRAW=seed is not None, WEIGHT=weight is not None, SQUARED=squared, BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take volumes, or None."""
    return wrong_dtype(x)


def configurations() -> Iterator[Configuration]:
    """The kernels at the published size and batch, with noise of their own: min-SNR's weights, and plain l1."""
    voxels = 16 * 256 * 256
    for pointer in ("*fp32", "*bf16"):
        for weighted in (True, False):
            named: dict[str, object] = dict.fromkeys(("p_prediction", "p_x0", "p_noise", "p_found"), pointer)
            named |= dict.fromkeys(("p_target", "p_weight", "p_part", "p_dloss"), "*fp32")
            named |= {"p_seed": "*i64", "size": 10 * voxels, "per_sample": voxels, "step": 7, "DRAW": True}
            named |= {"WEIGHT": weighted, "SQUARED": weighted, "BLOCK": _BLOCK}
            for kernel in (_loss, _gradient):
                arguments = {name: named[name] for name in kernel.arg_names}
                yield Configuration("diffusion_loss", kernel, arguments, _WARPS)
