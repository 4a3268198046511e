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

# Voxels that a tile makes along depth, height and width; products that it takes for each pair of channels; and, in such
# products, moving a channel's number through one place of its transform, fitted to single-thread times of 8 to 64
# channels (bench/NOTES.md).
_TILES = {
    "F(2,2,2)": ((2, 2, 2), 64, 20),
    "F(1,4,4)": ((1, 4, 4), 36, 20),
    "F(2,4,4)": ((2, 4, 4), 144, 20),
    "F(4,4,4)": ((4, 4, 4), 216, 20),
    "F(2,2,2)/2": ((2, 2, 2), 125, 8),
}

# Reading a byte of weights that no cache holds, in products.
_WEIGHT_BYTE = 6

# Slices of a volume that a measurement runs on at most, and rows.
_SAMPLE = (8, 64)


def choose(
    out: int, channels: int, kernel: int, stride: int, sides: Sequence[int], *, skip: int = 0, exact: bool = False
) -> str:  # fmt: skip
    """The algorithm's name.

    Args:
        out, channels: of the convolution.
        kernel, stride: 1 or 3, 1 or 2.
        sides: depth, height and width of the input.
        skip: how many of the channels, the last, are those of a second volume.
        exact: the direct algorithm, whose error does not grow with a tile.
    """
    possible = _native.conv3d_algorithms(out, channels, kernel, stride, list(sides), skip)
    if exact or len(possible) == 1:
        return "direct"
    known = read_table(_file()).get(_key(out, channels, stride, sides))
    if known in possible:
        return str(known)
    if os.environ.get("ORTHOKERNELS_TUNE") == "1":
        return _measure(out, channels, stride, sides, possible)
    return min(possible, key=lambda name: cost(name, out, channels, stride, sides))


def cost(algorithm: str, out: int, channels: int, stride: int, sides: Sequence[int]) -> float:
    """What a 3 x 3 x 3 convolution costs, in products of one pair of channels."""
    pairs = out * channels
    made = [ceil(side / stride) for side in sides]
    if algorithm == "direct":
        met = 9 if sides[0] == 1 else 18 if sides[0] == stride == 2 else 27  # the others see zeros alone
        return prod(made) * met * pairs + _WEIGHT_BYTE * 4 * met * pairs
    tile, places, transform = _TILES[algorithm]
    tiles = prod(ceil(side / along) for side, along in zip(made, tile, strict=True))
    return places * (tiles * (pairs + transform * (out + channels)) + _WEIGHT_BYTE * 4 * pairs)


def _measure(out: int, channels: int, stride: int, sides: Sequence[int], possible: Sequence[str]) -> str:
    rng = np.random.default_rng(0)
    sample = (min(sides[0], _SAMPLE[0]), min(sides[1], _SAMPLE[1]), sides[2])
    x = rng.standard_normal((*sample, channels), dtype=np.float32)
    weight = rng.standard_normal((out, channels, 3, 3, 3), dtype=np.float32)
    y = np.empty((*(ceil(side / stride) for side in sample), out), dtype=np.float32)
    convolutions = {name: _native.Conv3d(weight, stride, sample, name) for name in possible}
    times: dict[str, list[float]] = {name: [] for name in possible}
    for _ in range(4):  # in turn, the first of each to warm up
        for name, convolution in convolutions.items():
            started = time.perf_counter()
            convolution.run(x, y, threads=os.cpu_count() or 1)
            times[name].append(time.perf_counter() - started)
    best = min(possible, key=lambda name: sorted(times[name][1:])[1])
    add_to_table(_file(), _key(out, channels, stride, sides), best)
    return best


def _key(out: int, channels: int, stride: int, sides: Sequence[int]) -> str:
    strided = ", stride 2" if stride == 2 else ""
    return f"{channels} to {out} channels, {' x '.join(map(str, sides))}{strided}"


def _file() -> Path:
    return cache_folder() / "tuning" / f"conv3d-{platform.machine()}-{_native.instruction_set()}.json"
