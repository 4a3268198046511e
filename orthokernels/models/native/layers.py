"""What networks and heads on the native engine share: stored tensors by name, and layers made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orthokernels import _native
from orthokernels.backends.cpu.algorithm import choose
from orthokernels.models.native.tensors import check_unchanged

Array = NDArray[np.float32]
State = Mapping[str, NDArray[Any]]

EPS = 1e-5  # of every normalisation, as PyTorch's


class Builder:
    """A plan that is being built from a module's tensors, its layers called as they are.

    Args:
        state: tensors by their names, float32 (or float16, which is widened).
        exact: direct convolutions only, whose error is that of plain summation.
        memory: to work in, where plans share it.
        packs: weights, without which the plan only tells whether all fits.

    Raises:
        InputError: the file of the tensors was changed since it was verified.
    """

    def __init__(
        self, state: State, *, exact: bool = False, memory: _native.PlanMemory | None = None, packs: bool = True
    ) -> None:
        if packs:
            check_unchanged(state)
        self.state = state
        self.plan = _native.Plan(memory, packs=packs)
        self._exact = exact

    def tensor(self, name: str) -> Array:
        try:
            return np.ascontiguousarray(self.state[name], dtype=np.float32)
        except KeyError:
            raise ValueError(f"state: there is no {name}.") from None

    def sides(self, volume: int) -> list[int]:
        """Depth, height and width."""
        return self.plan.shape(volume)[:3]

    def conv(
        self, layer: str, x: int, *, stride: int = 1, skip: int | None = None, norm: str | None = None,
        groups: int = 1, activation: str = "silu", residual: int | None = None,
    ) -> int:  # fmt: skip
        """A convolution of 3 x 3 x 3 or 1 x 1 x 1; ``norm`` names the normalisation before it, if there is one."""
        weight = self.tensor(f"{layer}.weight")
        algorithm = "direct"
        if weight.ndim == 5:  # the binding refuses others
            out, channels, kernel = weight.shape[:3]
            behind = 0 if skip is None else self.plan.shape(skip)[3]
            algorithm = choose(out, channels, kernel, stride, self.sides(x), skip=behind, exact=self._exact)
        return self.plan.add_conv(
            layer, x, weight, self.tensor(f"{layer}.bias"), stride, algorithm, skip=-1 if skip is None else skip,
            norm=None if norm is None else self.norm(norm, groups), activation=activation,
            residual=-1 if residual is None else residual,
        )  # fmt: skip

    def norm(self, layer: str, groups: int) -> tuple[int, Array, Array, float]:
        return groups, self.tensor(f"{layer}.weight"), self.tensor(f"{layer}.bias"), EPS


class Linear:
    """A linear layer on rows, summed in an order that depends on their number alone.

    Args:
        weight: [outputs, inputs].
        bias: [outputs].
    """

    def __init__(self, weight: NDArray[Any], bias: NDArray[Any]) -> None:
        self._weight = np.ascontiguousarray(weight, dtype=np.float32)[:, :, None, None, None]
        self._bias = np.ascontiguousarray(bias, dtype=np.float32)
        self._packed: dict[int, _native.Conv3d] = {}  # by the number of rows

    def __call__(self, rows: Array, *, threads: int = 1) -> Array:
        """[rows, inputs] -> [rows, outputs]."""
        count = len(rows)
        if count not in self._packed:
            self._packed[count] = _native.Conv3d(self._weight, 1, (1, 1, count), "direct")
        made = np.empty((1, 1, count, len(self._bias)), np.float32)
        volume = np.ascontiguousarray(rows, dtype=np.float32)[None, None]
        self._packed[count].run(volume, made, bias=self._bias, threads=threads)
        return made[0, 0]


def linear(state: State, name: str) -> Linear:
    """The linear layer of that name."""
    return Linear(state[f"{name}.weight"], state[f"{name}.bias"])


def linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a linear layer."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def check_shapes(state: State, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are too few, too many or of other shapes.

    Raises:
        ValueError: the first of them.
    """
    for name, shape in expected.items():
        if name not in state:
            raise ValueError(f"there is no {name}")
        if state[name].shape != shape:
            raise ValueError(f"{name} has shape {state[name].shape}, not {shape}")
    if unknown := sorted(set(state) - set(expected)):
        raise ValueError(f"{unknown[0]} is unknown")


def check_arguments(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse arguments that a module does not have.

    Raises:
        ValueError: the first of them.
    """
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"it has no argument {unknown[0]!r}")


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def fold(x: Array, patch: Sequence[int]) -> Array:
    """Space to channels, [C, D, H, W] -> [C d h w, D / d, H / h, W / w], as ``models.orthodiffusion.unet.fold``."""
    (channels, *sides), (d, h, w) = x.shape, patch
    depth, height, width = (side // own for side, own in zip(sides, patch, strict=True))
    apart = x.reshape(channels, depth, d, height, h, width, w).transpose(0, 2, 4, 6, 1, 3, 5)
    return apart.reshape(channels * d * h * w, depth, height, width)


def unfold(x: Array, patch: Sequence[int]) -> Array:
    """Channels to space, the inverse of ``fold``."""
    (channels, depth, height, width), (d, h, w) = x.shape, patch
    apart = x.reshape(channels // (d * h * w), d, h, w, depth, height, width).transpose(0, 4, 1, 5, 2, 6, 3)
    return apart.reshape(channels // (d * h * w), depth * d, height * h, width * w)


def channels_last(x: Array) -> Array:
    """A map [C, D, H, W] as the engine keeps volumes, [D, H, W, C]; no copy where it lies so."""
    return np.ascontiguousarray(np.moveaxis(x, 0, -1), dtype=np.float32)
