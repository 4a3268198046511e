"""Segmentation heads on the native engine: each a plan from a network's maps, and the volume, to class logits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from orthokernels import _native
from orthokernels.models.native.layers import Array, Builder, State, channels_last, check_arguments, fold, unfold
from orthokernels.models.native.unet import level_names

_RESIDUAL_GROUPS = 8  # of the published head's residual blocks


class SegmentationHead(Protocol):
    """What makes logits of a network's maps.

    Attributes:
        classes: with the background.
    """

    classes: int

    def blocks(self, network: State, block: str) -> tuple[str, ...]:
        """The network's maps that the head reads, ``block`` being the one that its settings name.

        Raises:
            ValueError: the network has none that fit.
        """

    def logits(self, maps: Mapping[str, Array], volume: Array, *, threads: int) -> Array:
        """Logits [classes, D, H, W] of the maps of ``blocks``, [C, D', H', W'] each, and the clean volume [D, H, W]."""

    def describe(self) -> list[dict[str, Any]]:
        """The layers of the plan that ran last, as ``UNetPlan.describe``."""

    def release(self) -> None:
        """Let go of plans and their weights, which the next call makes anew."""


class _Planned(ABC):
    """Plans of a head, one for each shape of maps."""

    def __init__(self, state: State, *, exact: bool, memory: _native.PlanMemory | None) -> None:
        self._state, self._exact, self._memory = state, exact, memory
        self._plans: dict[tuple[tuple[int, ...], ...], _native.Plan] = {}
        self._last: _native.Plan | None = None

    def _run(self, inputs: Sequence[Array], threads: int) -> Array:
        """The plan's one output [D, H, W, C] from its inputs, likewise channels last."""
        shapes = tuple(own.shape for own in inputs)
        if shapes not in self._plans:
            builder = Builder(self._state, exact=self._exact, memory=self._memory)
            builder.plan.finish([self._build(builder, [builder.plan.add_input(s[:3], s[3]) for s in shapes])])
            self._plans[shapes] = builder.plan
        self._last = self._plans[shapes]
        return self._last.run(inputs, threads)[0]

    @abstractmethod
    def _build(self, builder: Builder, inputs: list[int]) -> int: ...

    def describe(self) -> list[dict[str, Any]]:
        return [] if self._last is None else list(self._last.describe())

    def release(self) -> None:
        self._plans.clear()
        self._last = None


class PublishedHead(_Planned):
    """Straight up from the bottleneck by four doublings: ``models.orthodiffusion.segmentation.SegmentationHead``.

    Raises:
        ValueError: unknown arguments, or tensors that do not fit them.
    """

    def __init__(
        self, state: State, arguments: Mapping[str, Any], *, exact: bool = False,
        memory: _native.PlanMemory | None = None,
    ) -> None:  # fmt: skip
        super().__init__(state, exact=exact, memory=memory)
        check_arguments(arguments, ("in_channels", "classes"))
        self.classes = int(arguments.get("classes", 12))
        builder = Builder(state, packs=False)  # to see whether all fits
        self._build(builder, [builder.plan.add_input((1, 1, 1), arguments.get("in_channels", 256))])

    def blocks(self, network: State, block: str) -> tuple[str, ...]:
        return (block,)

    def logits(self, maps: Mapping[str, Array], volume: Array, *, threads: int = 1) -> Array:
        (x,) = maps.values()
        return np.moveaxis(self._run([channels_last(x)], threads), -1, 0)

    def _build(self, builder: Builder, inputs: list[int]) -> int:
        (x,) = inputs
        for doubling, block in ((0, 2), (3, 5), (6, None), (8, None)):
            x = _doubled(builder, f"net.{doubling}", x)
            if block is not None:
                x = _residual_block(builder, f"net.{block}.block", x)
        x = builder.conv("net.10", x)
        _check_width(builder, "net.10", x, self.classes)
        return x


def _doubled(builder: Builder, layer: str, x: int) -> int:
    """A transposed convolution and ReLU."""
    weight, bias = builder.tensor(f"{layer}.weight"), builder.tensor(f"{layer}.bias")
    return builder.plan.add_conv_transpose(layer, x, weight, bias, relu=True)


def _residual_block(builder: Builder, layer: str, x: int) -> int:
    h = builder.conv(f"{layer}.0", x)
    h = builder.conv(f"{layer}.3", h, norm=f"{layer}.1", groups=_RESIDUAL_GROUPS, activation="relu")
    norm = builder.norm(f"{layer}.4", _RESIDUAL_GROUPS)
    return builder.plan.add_norm(f"{layer}.4", h, norm=norm, activation="relu", residual=x)


class MultiscaleHead(_Planned):
    """Every resolution's map and the volume: ``models.orthodiffusion.segmentation.MultiscaleSegmentationHead``.

    Raises:
        ValueError: unknown arguments, or tensors that do not fit them.
    """

    def __init__(
        self, state: State, arguments: Mapping[str, Any], *, exact: bool = False,
        memory: _native.PlanMemory | None = None,
    ) -> None:  # fmt: skip
        super().__init__(state, exact=exact, memory=memory)
        check_arguments(arguments, ("widths", "classes", "channels", "patch", "input_skip", "convolutions"))
        self.classes = int(arguments.get("classes", 12))
        self._patch = [int(side) for side in arguments.get("patch", (1, 1, 1))]
        self._reads_volume = bool(arguments.get("input_skip", True))
        self._convolutions = int(arguments.get("convolutions", 2))
        widths = [int(width) for width in arguments.get("widths", (64, 64, 128, 128, 256, 256))]
        self._levels = len(widths) - 1
        sides = [2 ** (self._levels - level) for level in range(self._levels + 1)]  # tiny: to see whether all fits
        shapes = [((side,) * 3, width) for side, width in zip(sides, widths, strict=True)]
        if self._reads_volume:
            shapes.append(((sides[0],) * 3, math.prod(self._patch)))
        builder = Builder(state, packs=False)
        self._build(builder, [builder.plan.add_input(*shape) for shape in shapes])

    def blocks(self, network: State, block: str) -> tuple[str, ...]:
        names = level_names(network)
        if len(names) != self._levels + 1:
            raise ValueError(f"the head reads {self._levels} levels, the network has {len(names) - 1}")
        return names

    def logits(self, maps: Mapping[str, Array], volume: Array, *, threads: int = 1) -> Array:
        inputs = [channels_last(own) for own in maps.values()]
        if self._reads_volume:
            inputs.append(channels_last(fold(volume[None], self._patch)))
        return unfold(np.moveaxis(self._run(inputs, threads), -1, 0), self._patch)

    def _build(self, builder: Builder, inputs: list[int]) -> int:
        levels, middle, volume = inputs[: self._levels], inputs[self._levels], inputs[self._levels + 1 :]
        x = self._projected(builder, "start", middle, None)
        for level in reversed(range(self._levels)):
            if level < self._levels - 1:
                x = builder.conv(f"ups.{level}", x)
            if builder.sides(x) != builder.sides(levels[level]):
                x = builder.plan.add_resize(f"ups.{level}.resize", x, builder.sides(levels[level]))
            x = self._projected(builder, f"skips.{level}", levels[level], x)
            if level == 0 and volume:
                x = builder.conv("volume", volume[0], residual=x)
            for n in range(self._convolutions if level == 0 else 1):
                layer = f"refine.{level}.{n}.block"
                norm, groups = f"{layer}.0", _groups(builder, f"{layer}.0")
                x = builder.conv(f"{layer}.2", x, norm=norm, groups=groups, residual=x)
        x = builder.conv("out.2", x, norm="out.0", groups=_groups(builder, "out.0"))
        _check_width(builder, "out.2", x, self.classes * math.prod(self._patch))
        return x

    def _projected(self, builder: Builder, layer: str, x: int, residual: int | None) -> int:
        """A map normalised, then brought to another width, and added to."""
        norm, groups = f"{layer}.0", _groups(builder, f"{layer}.0")
        return builder.conv(f"{layer}.1", x, norm=norm, groups=groups, activation="none", residual=residual)


def _groups(builder: Builder, norm: str) -> int:
    """Up to 8, as many as divide the channels."""
    return math.gcd(8, len(builder.tensor(f"{norm}.weight")))


def _check_width(builder: Builder, layer: str, x: int, channels: int) -> None:
    if builder.plan.shape(x)[3] != channels:
        raise ValueError(f"{layer} makes {builder.plan.shape(x)[3]} channels, not {channels}")


SEGMENTATIONS: dict[str, type[PublishedHead] | type[MultiscaleHead]] = {
    "segmentation_head": PublishedHead,
    "multiscale_segmentation_head": MultiscaleHead,
}
