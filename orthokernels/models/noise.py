"""The seeded noise that features are computed with: the same numbers for every engine, device and batch, in NumPy.

The stream is that of ``torch.randn`` on a CPU, by which the demo weights' heads were trained: 24 bits of each word of a
Mersenne Twister, and Box and Muller's transform in float32 over runs of 16. NumPy promises never to change its
``RandomState``; logarithm and sines may differ from PyTorch's in the last place.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Odd 64-bit constants that spread neighbouring (seed, draw, sample) over the generator's seeds (splitmix64's).
_SPREAD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)

_RUN = 16  # numbers that one transform makes: of 8 radii and 8 angles, 8 cosines, then 8 sines


def feature_noise(shape: tuple[int, ...], *, seed: int, draw: int = 0, sample: int = 0) -> NDArray[np.float32]:
    """Unit noise for one sample, float32."""
    mixed = sum(value * factor for value, factor in zip((seed, draw, sample), _SPREAD, strict=True)) % 2**63
    words = np.random.RandomState(mixed % 2**32)._bit_generator
    count = math.prod(shape)
    noise = _normal(words, max(count, _RUN))
    return noise[:count].reshape(shape)


def _normal(words: np.random.BitGenerator, count: int) -> NDArray[np.float32]:
    drawn = _uniform(words, count)
    whole = count - count % _RUN
    noise = np.empty(count, np.float32)
    noise[:whole] = _box_muller(drawn[:whole])
    if whole < count:  # an incomplete run is drawn anew, with what lies before it
        noise[-_RUN:] = _box_muller(_uniform(words, _RUN))
    return noise


def _uniform(words: np.random.BitGenerator, count: int) -> NDArray[np.float32]:
    """Multiples of 2^-24 in [0, 1)."""
    bits = words.random_raw(count).astype(np.uint32) & np.uint32(0xFFFFFF)
    return bits.astype(np.float32) * np.float32(2**-24)


def _box_muller(drawn: NDArray[np.float32]) -> NDArray[np.float32]:
    pairs = drawn.reshape(-1, 2, _RUN // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * math.pi) * pairs[:, 1]
    made = np.empty_like(pairs)
    np.multiply(radius, np.cos(angle), out=made[:, 0])
    np.multiply(radius, np.sin(angle), out=made[:, 1])
    return made.reshape(-1)
