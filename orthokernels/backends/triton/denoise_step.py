"""A sampler's step in Triton.

Bytes, of a volume of B bytes: x and the network's output read, the next volume written, 3 B; DPM-Solver++(2M) reads and
writes an x0 more. A volume is walked through as it lies in memory.

A thread draws four noises from one Philox counter: an own counter for each would cost 10 rounds of integer
multiplications a voxel, more time than the memory takes. No time was taken on a GPU yet.
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
def _clamped(x, low, high):
    """NaN stays, as in plain PyTorch: a minimum of Triton's drops it unless it is told."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


# A sampler's steps differ in these alone, and a variant of its own would be compiled in the midst of a run.
@triton.jit(do_not_specialize=["step"], do_not_specialize_on_alignment=["p_coefficients", "p_threshold", "p_seed"])
def _step(
    p_x, p_output, p_previous, p_found, p_x0, p_coefficients, p_threshold, p_seed, size, per_sample, step, clip,
    PREVIOUS: tl.constexpr, CLIP: tl.constexpr, THRESHOLD: tl.constexpr, NOISE: tl.constexpr, KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i_block = tl.program_id(0).to(tl.int64)
    o_v = i_block * BLOCK + tl.arange(0, BLOCK)
    mask = o_v < size
    x = tl.load(p_x + o_v, mask, other=0.0).to(tl.float32)
    output = tl.load(p_output + o_v, mask, other=0.0).to(tl.float32)
    x0 = tl.load(p_coefficients) * x + tl.load(p_coefficients + 1) * output
    if CLIP:
        x0 = _clamped(x0, -clip, clip)
    if THRESHOLD:
        s = tl.load(p_threshold + o_v // per_sample, mask, other=1.0)
        x0 = _clamped(x0, -s, s) / s
    found = tl.load(p_coefficients + 2) * x + tl.load(p_coefficients + 3) * output + tl.load(p_coefficients + 4) * x0
    if PREVIOUS:
        found += tl.load(p_coefficients + 5) * tl.load(p_previous + o_v, mask, other=0.0).to(tl.float32)
    if NOISE:
        found += tl.load(p_coefficients + 6) * unit_noise(tl.load(p_seed), i_block, step, BLOCK)
    tl.store(p_found + o_v, found.to(p_found.dtype.element_ty), mask)
    if KEEP:
        tl.store(p_x0 + o_v, x0.to(p_x0.dtype.element_ty), mask)


def forward(
    x: Tensor,
    output: Tensor,
    coefficients: Tensor,
    previous: Tensor | None,
    threshold: Tensor | None,
    seed: Tensor | None,
    step: int,
    clip: float | None,
    found: Tensor,
    x0: Tensor | None,
) -> None:
    """Write the next volume, and x0 where it is wanted; all volumes share one layout."""
    if not x.numel():
        return
    _step[(triton.cdiv(x.numel(), _BLOCK),)](
        x, output, x if previous is None else previous, found, found if x0 is None else x0, coefficients,
        coefficients if threshold is None else threshold, coefficients if seed is None else seed,
        x.numel(), x[0].numel(), counted(step), 1.0 if clip is None else clip,
        PREVIOUS=previous is not None, CLIP=clip is not None, THRESHOLD=threshold is not None, NOISE=seed is not None,
        KEEP=x0 is not None, BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip


def can_run(x: Tensor) -> str | None:
    """Why the kernel can not take a volume, or None."""
    return wrong_dtype(x)


def configurations() -> Iterator[Configuration]:
    """The kernel at the published size: DDPM with fresh noise, and DPM-Solver++(2M)."""
    voxels = 16 * 256 * 256
    for pointer in ("*fp32", "*bf16"):
        volumes = dict.fromkeys(("p_x", "p_output", "p_previous", "p_found", "p_x0"), pointer)
        for second_order in (False, True):
            rest = {
                "p_coefficients": "*fp32", "p_threshold": "*fp32", "p_seed": "*i64", "size": voxels,
                "per_sample": voxels, "step": 7, "clip": 1.5, "PREVIOUS": second_order, "CLIP": not second_order,
                "THRESHOLD": second_order, "NOISE": not second_order, "KEEP": second_order, "BLOCK": _BLOCK,
            }  # fmt: skip
            yield Configuration("denoise_step", _step, {**volumes, **rest}, _WARPS)
