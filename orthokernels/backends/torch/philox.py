"""Counter-based random numbers in plain PyTorch, with the bits of the kernels: Philox-4x32-10 (Salmon et al. 2011)."""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_MASK = 0xFFFFFFFF


def normal(count: int, seed: Tensor, step: int) -> Tensor:
    """Unit normal numbers, float32 [count]; number p is word p % 4 of the counter (p // 4, step, 0, 0).

    Words are paired, two to Box and Muller's transform: the first pair gives numbers 0 and 1 of the four.
    """
    groups = -(-count // 4)
    counter = torch.arange(groups, dtype=torch.int64, device=seed.device) & _MASK
    words = philox(counter, step, seed)
    first, second = (_pair(_uniform(words[n]), _uniform(words[n + 1])) for n in (0, 2))
    return torch.stack([*first, *second], dim=1).flatten()[:count]


def philox(counter: Tensor, step: int, seed: Tensor) -> tuple[Tensor, ...]:
    """Four words of 32 bits for each counter (counter, step, 0, 0), as int64 [counters]."""
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1, c2, c3 = (
        counter,
        torch.full_like(counter, step & _MASK),
        torch.zeros_like(counter),
        torch.zeros_like(counter),
    )
    for _ in range(_ROUNDS):
        (high0, low0), (high2, low2) = _product(c0, _MULTIPLIERS[0]), _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high2 ^ c1 ^ key0, low2, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + _KEY_STEPS[0]) & _MASK, (key1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low words of a product of two words; 64 signed bits hold no more than 63, so a goes in halves."""
    low, high = (a & 0xFFFF) * b, (a >> 16) * b
    return (high + (low >> 16)) >> 16, (((high & 0xFFFF) << 16) + low) & _MASK


def _uniform(word: Tensor) -> Tensor:
    """A word as a float32 in [0, 1): its 31 lower bits, turned round where the sign bit is set."""
    signed = torch.where(word >= 1 << 31, (word ^ _MASK), word)
    return signed.float() * 4.6566127342e-10


def _pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two normal numbers out of two uniform ones (Box & Muller 1958)."""
    radius = torch.sqrt(-2.0 * torch.log(first.clamp(min=1.0e-7)))
    angle = 6.283185307179586 * second
    return radius * torch.cos(angle), radius * torch.sin(angle)
