"""From a feature map to a vector, without PyTorch: ``models.orthodiffusion.pooling`` and ``.regional_pooling``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orthokernels import _native
from orthokernels.models.native.layers import (
    Array,
    Linear,
    State,
    channels_last,
    check_arguments,
    check_shapes,
    linear,
    linear_shapes,
)

# Of a structure's intensities, next to mean and deviation.
PERCENTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_REACH = 2  # pixels of the rim around a structure


class Pooling(ABC):
    """What makes a vector of a slab's map, and a series' vector of its slabs' mean."""

    @abstractmethod
    def vector(self, x: Array, logits: Array | None, volume: Array, *, threads: int = 1) -> Array:
        """A slab's vector, [width].

        Args:
            x: the map, [C, D', H', W'].
            logits: of the segmentation, [classes, D, H, W], for those who read it.
            volume: [D, H, W], values in [-1, 1].
        """

    def of_series(self, mean: Array) -> Array:
        """A series' vector of the mean of its slabs' vectors."""
        return mean


class AveragePool(Pooling):
    """The mean over voxels."""

    def __init__(self, state: State, arguments: Mapping[str, Any]) -> None:
        check_arguments(arguments, ("channels",))
        check_shapes(state, {})

    def vector(self, x: Array, logits: Array | None, volume: Array, *, threads: int = 1) -> Array:
        return _average(_tokens(x))


class SelfAttentionPool(Pooling):
    """The mean over voxels, then that of attended voxels."""

    def __init__(self, state: State, arguments: Mapping[str, Any]) -> None:
        check_arguments(arguments, ("channels", "heads"))
        channels, self._heads = int(arguments.get("channels", 256)), int(arguments.get("heads", 16))
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        shapes = [linear_shapes(name, channels, channels) for name in names]
        check_shapes(state, {name: shape for own in shapes for name, shape in own.items()})
        if self._heads < 1 or channels % self._heads:
            raise ValueError(f"{self._heads} heads do not divide {channels} channels")
        weight, bias = (np.concatenate([state[f"{name}.{kind}"] for name in names[:3]]) for kind in ("weight", "bias"))
        self._qkv, self._out = Linear(weight, bias), linear(state, "out_proj")

    def vector(self, x: Array, logits: Array | None, volume: Array, *, threads: int = 1) -> Array:
        tokens = _tokens(x)
        count, channels = tokens.shape
        made = self._qkv(tokens, threads=threads).reshape(count, 3, self._heads, channels // self._heads)
        q, k, v = np.ascontiguousarray(made.transpose(1, 2, 0, 3))  # [heads, voxels, channels of a head] each
        attended = np.empty((self._heads, q.shape[2]), np.float32)
        looked_at, log_sum = (np.empty(q.shape[:2], np.float32) for _ in range(2))
        _native.attention_pool(q, k, v, q.shape[2] ** -0.5, attended, looked_at, log_sum, threads=threads)
        return np.concatenate([_average(tokens), self._out(attended.reshape(1, channels))[0]])


class LocalPool(Pooling):
    """The mean over voxels, then one weighted by a small network's softmax over them."""

    def __init__(self, state: State, arguments: Mapping[str, Any]) -> None:
        check_arguments(arguments, ("channels", "hidden"))
        channels, hidden = int(arguments.get("channels", 256)), int(arguments.get("hidden", 32))
        check_shapes(state, {**linear_shapes("attn.0", channels, hidden), **linear_shapes("attn.2", hidden, 1)})
        self._first, self._last = linear(state, "attn.0"), linear(state, "attn.2")

    def vector(self, x: Array, logits: Array | None, volume: Array, *, threads: int = 1) -> Array:
        tokens = _tokens(x)
        score = self._last(np.maximum(self._first(tokens, threads=threads), 0), threads=threads)[:, 0]
        share = np.exp(score - score.max()).astype(np.float64)
        weighted = np.einsum("t,tc->c", share / share.sum(), tokens)
        return np.concatenate([_average(tokens), weighted.astype(np.float32)])


class GridPool(Pooling):
    """Those of ``grid_numbers`` that training kept."""

    def __init__(self, state: State, arguments: Mapping[str, Any]) -> None:
        check_arguments(arguments, ("channels", "cells", "kept", "mirror"))
        channels, self._cells, kept, self._mirror = _grid_arguments(arguments)
        check_shapes(state, {"places": (kept,)})
        self._places = _places(state, 2 * channels * self._cells[0] * self._cells[1])

    def vector(self, x: Array, logits: Array | None, volume: Array, *, threads: int = 1) -> Array:
        return grid_numbers(x, self._cells, mirror=self._mirror)[self._places]


class StructurePool(Pooling):
    """Those of ``grid_numbers`` and of what each found structure looks like that training kept.

    A slab gives sums that can be averaged over a series' slabs; ``of_series`` makes numbers of their mean.
    """

    def __init__(self, state: State, arguments: Mapping[str, Any]) -> None:
        check_arguments(arguments, ("channels", "cells", "kept", "mirror", "classes", "bins"))
        self._channels, self._cells, kept, self._mirror = _grid_arguments(arguments)
        self._structures, self._bins = int(arguments.get("classes", 12)) - 1, int(arguments.get("bins", 64))
        check_shapes(state, {"places": (kept,), "usual": (kept,)})
        grid = 2 * self._channels * self._cells[0] * self._cells[1]
        # Of the sums: the grid's, histograms of structures and rims, and each structure's sums of features.
        self._widths = (grid, 2 * self._structures * self._bins, self._structures * (1 + 2 * self._channels))
        # Of the numbers: the grid's, those of histograms, and of structures' features.
        numbers = grid + 2 * self._structures * (2 + len(PERCENTILES)) + self._structures * (1 + 2 * self._channels)
        self._places, self._usual = _places(state, numbers), np.asarray(state["usual"], np.float64)

    def vector(self, x: Array, logits: Array | None, volume: Array, *, threads: int = 1) -> Array:
        assert logits is not None  # weights are not loaded without the head that this pooling reads
        inside = logits.argmax(axis=0) == np.arange(1, self._structures + 1)[:, None, None, None]
        return np.concatenate(
            [
                grid_numbers(x, self._cells, mirror=self._mirror),
                self._histograms(inside, volume),
                self._features(inside, x),
            ]
        )

    def _histograms(self, inside: NDArray[np.bool_], volume: Array) -> Array:
        """Of the intensities inside the structures, then in a rim around each, [2 x structures x bins]."""
        rims = _widened(inside) & ~inside
        which = ((volume + np.float32(1)) * np.float32(self._bins / 2)).astype(np.int64).clip(0, self._bins - 1)
        counts = [np.bincount(which[region], minlength=self._bins) for region in (*inside, *rims)]
        return np.concatenate(counts).astype(np.float32)

    def _features(self, inside: NDArray[np.bool_], x: Array) -> Array:
        """Sums inside each structure: of the map's voxels, of its channels, and of their squares."""
        share = inside.astype(np.float64)  # of a map's voxel that a structure fills
        for axis, side in enumerate(x.shape[1:], start=1):
            share = _pooled(share, axis, side, np.mean)
        share, values = share.reshape(len(inside), -1), _tokens(x).astype(np.float64)
        met = [share.sum(axis=1, keepdims=True)]
        met += [np.einsum("sv,vc->sc", share, part) for part in (values, values**2)]
        return np.concatenate(met, axis=1).ravel().astype(np.float32)

    def of_series(self, mean: Array) -> Array:
        kept = self._every(mean.astype(np.float64))[self._places]
        return np.where(np.isfinite(kept), kept, self._usual).astype(np.float32)

    def _every(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """All numbers; NaN where a structure was not found."""
        grid, histograms, features = np.split(sums, np.cumsum(self._widths)[:2])
        counts = histograms.reshape(2 * self._structures, self._bins)
        shares, values, squares = np.split(features.reshape(self._structures, -1), [1, 1 + self._channels], axis=1)
        size = counts[: self._structures].sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = values / shares
            deviation = np.sqrt(np.maximum(squares / shares - mean**2, 0))
            looks = np.concatenate([np.log(1 + size), mean, deviation], axis=1)
            return np.concatenate([grid, _spread(counts).ravel(), looks.ravel()])


def grid_numbers(x: Array, cells: tuple[int, int], *, mirror: bool) -> Array:
    """A map's means, then its maxima, in the cells of a grid over height and width, [2 x C x cells].

    Depth is pooled over; ``mirror`` joins each cell with its mirror image along the width.
    """
    means, maxima = x.mean(axis=1, dtype=np.float64), x.max(axis=1)
    for axis in (1, 2):
        means = _pooled(means, axis, cells[axis - 1], np.mean)
        maxima = _pooled(maxima, axis, cells[axis - 1], np.max)
    if mirror:
        means = (means + means[..., ::-1]) / 2
        maxima = np.maximum(maxima, maxima[..., ::-1])
    return np.concatenate([means.ravel(), maxima.ravel()]).astype(np.float32)


def _pooled(x: NDArray[Any], axis: int, count: int, reduce: Callable[..., Any]) -> NDArray[Any]:
    """One axis to ``count`` places, as PyTorch's adaptive pooling: windows from floor(i n / count) to ceil(...)."""
    side = x.shape[axis]
    if side == count:
        return x
    moved = np.moveaxis(x, axis, 0)
    windows = [moved[i * side // count : -(-(i + 1) * side // count)] for i in range(count)]
    return np.moveaxis(np.stack([reduce(window, axis=0) for window in windows]), 0, axis)


def _widened(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Structures [S, D, H, W] and ``_REACH`` pixels around them in their slices."""
    for axis in (2, 3):
        made = inside.copy()
        for step in range(1, _REACH + 1):
            from_here, to_there = [slice(None)] * 4, [slice(None)] * 4
            from_here[axis], to_there[axis] = slice(step, None), slice(None, -step)
            made[tuple(to_there)] |= inside[tuple(from_here)]
            made[tuple(from_here)] |= inside[tuple(to_there)]
        inside = made
    return inside


def _spread(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean, deviation and ``PERCENTILES`` of histograms [n, bins] over -1 to 1, [n, 7]; NaN where one is empty."""
    bins = counts.shape[1]
    share = counts / counts.sum(axis=1, keepdims=True)
    centres = (np.arange(bins) + 0.5) * (2 / bins) - 1
    mean = (share * centres).sum(axis=1)
    deviation = np.sqrt(np.maximum((share * centres**2).sum(axis=1) - mean**2, 0))
    below = share.cumsum(axis=1)
    found = [mean, deviation]
    for percentile in PERCENTILES:
        bin_of = np.minimum((below < percentile).sum(axis=1, keepdims=True), bins - 1)
        own, up_to = (np.take_along_axis(table, bin_of, axis=1) for table in (share, below))
        part = (percentile - (up_to - own)) / own  # of the bin, up to the percentile
        found.append(((bin_of + part) * (2 / bins) - 1)[:, 0])
    return np.stack(found, axis=1)


def _tokens(x: Array) -> Array:
    """A map's voxels, [D H W, C]."""
    return channels_last(x).reshape(-1, len(x))


def _average(tokens: Array) -> Array:
    found: Array = tokens.mean(axis=0, dtype=np.float64).astype(np.float32)
    return found


def _grid_arguments(arguments: Mapping[str, Any]) -> tuple[int, tuple[int, int], int, bool]:
    """Channels, cells, how many numbers are kept, and whether sides are mirrored."""
    height, width = arguments.get("cells", (8, 8))
    channels, kept = int(arguments.get("channels", 256)), int(arguments.get("kept", 128))
    return channels, (int(height), int(width)), kept, bool(arguments.get("mirror", False))


def _places(state: State, numbers: int) -> NDArray[np.int64]:
    """Which numbers are kept.

    Raises:
        ValueError: they are not places among so many numbers.
    """
    places = state["places"]
    if places.dtype.kind not in "iu" or (places.size and not 0 <= places.min() <= places.max() < numbers):
        raise ValueError(f"places are not numbers from 0 to {numbers - 1}")
    return places.astype(np.int64)


POOLINGS: dict[str, Callable[[State, Mapping[str, Any]], Pooling]] = {
    "selfattn": SelfAttentionPool,
    "local": LocalPool,
    "none": AveragePool,
    "grid": GridPool,
    "structures": StructurePool,
}
