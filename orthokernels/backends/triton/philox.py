"""Noise inside a kernel, with the bits of ``backends.torch.philox``."""

from __future__ import annotations

import triton
import triton.language as tl


def counted(step: int) -> int:
    """A step as the counter's word of 32 bits, signed: every step is of one type, and a kernel is compiled once."""
    return (step + 2**31 & 0xFFFFFFFF) - 2**31


@triton.jit
def unit_noise(seed, i_block, step, BLOCK: tl.constexpr):
    """Unit normal numbers [BLOCK] of a block of consecutive places, four of each counter; BLOCK is a multiple of 4."""
    counter = (i_block * (BLOCK // 4)).to(tl.int32) + tl.arange(0, BLOCK // 4)
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(seed, counter, zero + step, zero, zero)
    n0, n1 = _pair(w0, w1)
    n2, n3 = _pair(w2, w3)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def _pair(w0, w1):
    u0, u1 = tl.uint_to_uniform_float(w0), tl.uint_to_uniform_float(w1)
    radius = tl.sqrt(-2.0 * tl.log(tl.maximum(u0, 1.0e-7)))
    angle = 6.283185307179586 * u1
    return radius * tl.cos(angle), radius * tl.sin(angle)
