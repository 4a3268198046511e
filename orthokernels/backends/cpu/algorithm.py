"""Which algorithm a convolution takes: by a count of what each costs, or by measurement.

The count is the rule: the same on every machine, so that a sum has the same order. With ORTHOKERNELS_TUNE=1 every
algorithm that can take a shape is timed once on this processor, and the best kept in <cache>/tuning; from then on every
process uses it, with the variable or without.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from math import ceil, prod
from pathlib import Path

import numpy as np

from orthokernels import _native
from orthokernels.folders import add_to_table, cache_folder, read_table

# Voxels that a tile makes along depth, height and width, and products that it takes for each pair of channels.
_TILES = {
    "F(2,2,2)": ((2, 2, 2), 64),
    "F(1,4,4)": ((1, 4, 4), 36),
    "F(2,4,4)": ((2, 4, 4), 144),
    "F(4,4,4)": ((4, 4, 4), 216),
}

# In products of one pair of channels, fitted to single-thread times of 64 channels (bench/NOTES.md): moving a channel's
# number through one place of a transform, and reading a byte of weights that no cache holds.
_TRANSFORM, _WEIGHT_BYTE = 29, 6

# Slices of a volume that a measurement runs on at most, and rows.
_SAMPLE = (8, 64)


def choose(out: int, channels: int, kernel: int, stride: int, sides: Sequence[int], *, exact: bool = False) -> str:
    """The algorithm's name.

    Args:
        out, channels: of the convolution.
        kernel, stride: 1 or 3, 1 or 2.
        sides: depth, height and width of the input.
        exact: the direct algorithm, whose error does not grow with a tile.
    """
    possible = _native.conv3d_algorithms(out, channels, kernel, stride, list(sides))
    if exact or len(possible) == 1:
        return "direct"
    known = read_table(_file()).get(_key(out, channels, sides))
    if known in possible:
        return str(known)
    if os.environ.get("ORTHOKERNELS_TUNE") == "1":
        return _measure(out, channels, sides, possible)
    return min(possible, key=lambda name: cost(name, out, channels, sides))


def cost(algorithm: str, out: int, channels: int, sides: Sequence[int]) -> float:
    """What a 3 x 3 x 3 convolution of stride 1 costs, in products of one pair of channels."""
    pairs = out * channels
    if algorithm == "direct":
        met = 9 if sides[0] == 1 else 27
        return prod(sides) * met * pairs + _WEIGHT_BYTE * 4 * met * pairs
    tile, places = _TILES[algorithm]
    tiles = prod(ceil(side / made) for side, made in zip(sides, tile, strict=True))
    return places * (tiles * (pairs + _TRANSFORM * (out + channels)) + _WEIGHT_BYTE * 4 * pairs)


def _measure(out: int, channels: int, sides: Sequence[int], possible: Sequence[str]) -> str:
    rng = np.random.default_rng(0)
    sample = (min(sides[0], _SAMPLE[0]), min(sides[1], _SAMPLE[1]), sides[2])
    x = rng.standard_normal((*sample, channels), dtype=np.float32)
    weight = rng.standard_normal((out, channels, 3, 3, 3), dtype=np.float32)
    y = np.empty((*sample, out), dtype=np.float32)
    convolutions = {name: _native.Conv3d(weight, 1, sample, name) for name in possible}
    times: dict[str, list[float]] = {name: [] for name in possible}
    for _ in range(4):  # in turn, the first of each to warm up
        for name, convolution in convolutions.items():
            started = time.perf_counter()
            convolution.run(x, y, threads=os.cpu_count() or 1)
            times[name].append(time.perf_counter() - started)
    best = min(possible, key=lambda name: sorted(times[name][1:])[1])
    add_to_table(_file(), _key(out, channels, sides), best)
    return best


def _key(out: int, channels: int, sides: Sequence[int]) -> str:
    return f"{channels} to {out} channels, {' x '.join(map(str, sides))}"


def _file() -> Path:
    return cache_folder() / "tuning" / f"conv3d-{platform.machine()}-{_native.instruction_set()}.json"
