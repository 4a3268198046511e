"""Noising in Triton.

Bytes, of a volume of B bytes: read and written, 2 B; where the noise is given it is read too, 3 B.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from orthokernels.backends.triton.configuration import Configuration
from orthokernels.backends.triton.philox import counted, unit_noise
from orthokernels.backends.triton.volumes import wrong_dtype

_BLOCK = 1024
_WARPS = 4


@triton.jit
def noise_of(p_noise, p_seed, i_block, o_v, mask, step, DRAW: tl.constexpr, BLOCK: tl.constexpr):
    """Noise [BLOCK] of a block of consecutive places: drawn, or read."""
    if DRAW:
        return unit_noise(tl.load(p_seed), i_block, step, BLOCK)
    return tl.load(p_noise + o_v, mask, other=0.0).to(tl.float32)


# A sampler's steps differ in these alone, and a variant of its own would be compiled in the midst of a run.
@triton.jit(do_not_specialize=["step"], do_not_specialize_on_alignment=["p_shares", "p_seed"])
def _add(
    p_x0, p_shares, p_noise, p_seed, p_found, size, per_sample, step, DRAW: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    i_block = tl.program_id(0).to(tl.int64)
    o_v = i_block * BLOCK + tl.arange(0, BLOCK)
    mask = o_v < size
    sample = o_v // per_sample
    noise = noise_of(p_noise, p_seed, i_block, o_v, mask, step, DRAW, BLOCK)
    found = tl.load(p_shares + 2 * sample, mask, other=0.0) * tl.load(p_x0 + o_v, mask, other=0.0).to(tl.float32)
    found += tl.load(p_shares + 2 * sample + 1, mask, other=0.0) * noise
    tl.store(p_found + o_v, found.to(p_found.dtype.element_ty), mask)


def forward(x0: Tensor, shares: Tensor, noise: Tensor | None, seed: Tensor | None, step: int, found: Tensor) -> None:
    """Write the noisy volumes; all volumes share one layout."""
    _add[(triton.cdiv(x0.numel(), _BLOCK),)](
        x0, shares, x0 if noise is None else noise, shares if seed is None else seed, found, x0.numel(),
        x0[0].numel(), counted(step), DRAW=seed is not None, BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip


def can_run(x: Tensor) -> str | None:
    """Why the kernel can not take a volume, or None."""
    return wrong_dtype(x)


def configurations() -> Iterator[Configuration]:
    """The kernel at the published size, with noise of its own and with noise given."""
    voxels = 16 * 256 * 256
    for pointer in ("*fp32", "*bf16"):
        for draw in (True, False):
            arguments = {
                "p_x0": pointer, "p_shares": "*fp32", "p_noise": pointer, "p_seed": "*i64", "p_found": pointer,
                "size": 10 * voxels, "per_sample": voxels, "step": 7, "DRAW": draw, "BLOCK": _BLOCK,
            }  # fmt: skip
            yield Configuration("add_noise", _add, arguments, _WARPS)
