"""Random numbers by place, not by order: what a sample gets depends on the seed and its number alone.

So a run that was killed and resumed, and one whose batch is spread over other processes, see the same data and noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """Independent streams of one seed."""

    ORDER = 0
    AUGMENT = 1
    TIMESTEP = 2
    NOISE = 3
    STEP = 4
    VALIDATE = 5


def generator(seed: int, stream: Stream, number: int = 0) -> np.random.Generator:
    """NumPy's generator for one number of a stream."""
    return np.random.default_rng((seed, int(stream), number))


def seed_of(seed: int, stream: Stream, number: int = 0) -> int:
    """A 63-bit seed for PyTorch's generators."""
    return int(np.random.SeedSequence((seed, int(stream), number)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def unit_noise(
    shape: Sequence[int], seed: int, numbers: Sequence[int], device: torch.device, stream: Stream = Stream.NOISE
) -> Tensor:
    """Unit normal noise [batch, *shape], float32: sample n's depends on ``numbers[n]`` and the kind of device only."""
    noise = torch.empty((len(numbers), *shape), device=device)
    source = torch.Generator(device)
    for own, number in zip(noise, numbers, strict=True):
        source.manual_seed(seed_of(seed, stream, number))
        own.normal_(generator=source)
    return noise


def uniform_timesteps(seed: int, numbers: Sequence[int], timesteps: int) -> Tensor:
    """One timestep in [0, timesteps) for each sample, int64 [batch], on the CPU."""
    return torch.tensor([int(generator(seed, Stream.TIMESTEP, n).integers(timesteps)) for n in numbers])


class Order:
    """Endless shuffled passes over ``count`` items: sample number n is item ``order[n]``."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._permutation = -1, np.arange(0)

    def __getitem__(self, number: int) -> int:
        epoch, position = divmod(number, self.count)
        if epoch != self._epoch:
            self._permutation = generator(self.seed, Stream.ORDER, epoch).permutation(self.count)
            self._epoch = epoch
        return int(self._permutation[position])
