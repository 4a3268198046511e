"""The U-Net as a plan of the native engine: built once from stored weights, for one shape of volume.

    plan = UNetPlan(state, heads=1, groups=32, sides=(16, 256, 256), names=("mid_2",), timestep=100)
    maps = plan.run(noisy, threads=2)

The layers are known by the names of their tensors, which are the checkpoint's. Of an encoder's features nothing behind
the last one that was asked for is built. The time embedding of ``timestep`` is folded into the convolutions' biases;
``set_timestep`` folds in another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orthokernels import _native
from orthokernels.models.native.layers import Array, Builder, State, channels_last, fold, silu, unfold

_MAX_PERIOD = 1000.0  # of the time embedding


@dataclass(frozen=True)
class _Embedded:
    """A convolution whose bias takes the time embedding: its name, own bias, and the block's linear layer."""

    layer: str
    bias: Array
    weight: Array
    offset: Array


class UNetPlan:
    """One network at one shape of volume, with no PyTorch in the process.

    Args:
        state: the network's tensors by their checkpoint's names, float32 (or float16, which is widened).
        heads: attention heads; ``head_channels`` channels a head instead, where given.
        groups: of every normalisation.
        sides: depth, height and width of the volume.
        names: of the features to return: "in_0" on, "mid_0" to "mid_2", "out_0" on, "final".
        timestep: that ``run`` embeds, until ``set_timestep`` says another.
        patch: voxels along depth, height and width that the network sees as one.
        exact: direct convolutions only, whose error is that of plain summation.
        memory: to work in, where plans share it.
        packs: weights, without which the plan only tells whether all fits.

    Raises:
        ValueError: an unknown name, a side that the patch does not divide, or tensors that do not fit each other.
    """

    def __init__(
        self,
        state: State,
        *,
        sides: Sequence[int],
        names: Sequence[str],
        timestep: float,
        heads: int = 1,
        head_channels: int | None = None,
        groups: int = 32,
        patch: Sequence[int] = (1, 1, 1),
        exact: bool = False,
        memory: _native.PlanMemory | None = None,
        packs: bool = True,
    ) -> None:
        if any(side % own for side, own in zip(sides, patch, strict=True)):
            raise ValueError(f"patch: {tuple(patch)} does not divide a volume of {tuple(sides)}.")
        self.patch, self.sides = tuple(patch), tuple(sides)
        self.names = tuple(names)
        self._builder = Builder(state, exact=exact, memory=memory, packs=packs)
        self._plan, self._state = self._builder.plan, state
        self._groups, self._heads, self._head_channels = groups, heads, head_channels
        self._embedded: list[_Embedded] = []
        blocks = blocks_of(state)
        unknown = [name for name in names if name not in blocks]
        if unknown or not names:
            asked = f"no feature called {', '.join(map(repr, unknown))}" if unknown else "no feature was asked for"
            raise ValueError(f"names: {asked}; this network has {', '.join(blocks)}.")
        order = list(blocks)
        self._found = self._build(sides, {name: blocks[name] for name in order[: 1 + max(map(order.index, names))]})
        self._plan.finish([self._found[name] for name in self.names])
        self.set_timestep(timestep)

    def run(self, x: Array, *, threads: int = 1) -> dict[str, Array]:
        """Feature maps of a noisy volume.

        Args:
            x: [channels, depth, height, width], float32.
            threads: that share the work; the result does not depend on them.

        Returns:
            Each name with its map, [channels', depth', height', width'], channels last in memory.

        Raises:
            ValueError: x has another shape than the plan's, or another dtype.
        """
        if x.shape[1:] != self.sides:
            told = ", ".join(map(str, self.sides))
            raise ValueError(f"x: shape {x.shape}; must be (channels, {told}), one volume at a time.")
        if x.dtype != np.float32:
            raise ValueError(f"x: {x.dtype}; must be float32.")
        made = self._plan.run([channels_last(fold(x, self.patch))], threads)
        maps = {name: np.moveaxis(own, -1, 0) for name, own in zip(self.names, made, strict=True)}
        if "final" in maps:
            maps["final"] = unfold(maps["final"], self.patch)
        return maps

    def set_timestep(self, timestep: float) -> None:
        """Fold a timestep's embedding into the biases."""
        embedding = silu(self._time_embedding(timestep))
        for own in self._embedded:
            self._plan.set_bias(own.layer, own.bias + (own.weight @ embedding + own.offset))

    def describe(self) -> list[dict[str, Any]]:
        """Every layer: name, algorithm, sides, channels, operations, those done, bytes, seconds of the last run."""
        return list(self._plan.describe())

    @property
    def memory_bytes(self) -> int:
        """Of packed weights and of the volumes between input and output, without the workspace of a convolution."""
        return int(self._plan.weight_bytes + self._plan.arena_bytes)

    def _build(self, sides: Sequence[int], blocks: dict[str, list[str]]) -> dict[str, int]:
        channels = self._builder.tensor("input_blocks.0.0.weight").shape[1]
        x = self._plan.add_input([side // own for side, own in zip(sides, self.patch, strict=True)], channels)
        skips: list[int] = []
        found: dict[str, int] = {}
        for name, layers in blocks.items():
            skip = skips.pop() if name.startswith("out_") else None
            target = self._plan.shape(skips[-1])[:3] if skips else None
            for layer in layers:
                x, skip = self._add(layer, x, skip, target), None
            if name.startswith("in_"):
                skips.append(x)
            found[name] = x
        return found

    def _add(self, layer: str, x: int, skip: int | None, target: Sequence[int] | None) -> int:
        """One layer of a block, by what its tensors are called."""
        if layer == "out":
            return self._conv("out.2", x, norm="out.0")
        kinds = {
            "in_layers.0.weight": self._residual_block, "qkv.weight": self._attention_block,
        }  # fmt: skip
        for tensor, add in kinds.items():
            if f"{layer}.{tensor}" in self._state:
                return add(layer, x, skip)
        if f"{layer}.op.weight" in self._state:
            return self._conv(f"{layer}.op", x, stride=2)
        if f"{layer}.conv.weight" in self._state:
            assert target is not None  # a decoder's level ends where the next skip's size is known
            return self._conv(f"{layer}.conv", self._plan.add_resize(f"{layer}.resize", x, target))
        return self._conv(layer, x)

    def _residual_block(self, layer: str, x: int, skip: int | None) -> int:
        h = self._conv(f"{layer}.in_layers.2", x, skip=skip, norm=f"{layer}.in_layers.0")
        needed = ("in_layers.2.bias", "emb_layers.1.weight", "emb_layers.1.bias")
        own = (self._builder.tensor(f"{layer}.{name}") for name in needed)
        self._embedded.append(_Embedded(f"{layer}.in_layers.2", *own))
        past = x
        if f"{layer}.skip_connection.weight" in self._state:
            past = self._conv(f"{layer}.skip_connection", x, skip=skip)
        return self._conv(f"{layer}.out_layers.3", h, norm=f"{layer}.out_layers.0", residual=past)

    def _attention_block(self, layer: str, x: int, skip: int | None) -> int:
        channels = self._plan.shape(x)[3]
        tensor = self._builder.tensor
        return self._plan.add_attention(
            layer, x, norm=self._builder.norm(f"{layer}.norm", self._groups),
            qkv_weight=tensor(f"{layer}.qkv.weight")[..., 0], qkv_bias=tensor(f"{layer}.qkv.bias"),
            out_weight=tensor(f"{layer}.proj_out.weight")[..., 0], out_bias=tensor(f"{layer}.proj_out.bias"),
            heads=channels // self._head_channels if self._head_channels else self._heads, heads_first=True,
        )  # fmt: skip

    def _conv(self, layer: str, x: int, **options: Any) -> int:
        return self._builder.conv(layer, x, groups=self._groups, **options)

    def _time_embedding(self, timestep: float) -> Array:
        """As ``models.orthodiffusion.unet``: sines and cosines, then two linear layers."""
        first, last = (self._builder.tensor(f"time_embed.{n}.weight") for n in (0, 2))
        width = first.shape[1]
        half = width // 2
        rate = np.float32(-np.log(_MAX_PERIOD) / half)
        angles = np.float32(timestep) * np.exp(np.arange(half, dtype=np.float32) * rate)
        embedding = np.zeros(width, dtype=np.float32)
        embedding[: 2 * half] = np.concatenate([np.cos(angles), np.sin(angles)])
        hidden = silu(first @ embedding + self._builder.tensor("time_embed.0.bias"))
        return np.asarray(last @ hidden + self._builder.tensor("time_embed.2.bias"), dtype=np.float32)


def blocks_of(state: Iterable[str]) -> dict[str, list[str]]:
    """Every feature's name with its block's layers, in the order of computation, from the names of tensors."""
    found: dict[str, list[str]] = {}
    for short, long in (("in", "input_blocks"), ("mid", "middle_block"), ("out", "output_blocks")):
        depth = 1 if short == "mid" else 2
        layers = {".".join(key.split(".")[: 1 + depth]) for key in state if key.startswith(f"{long}.")}
        for layer in sorted(layers, key=lambda name: [int(number) for number in re.findall(r"\d+", name)]):
            found.setdefault(f"{short}_{layer.split('.')[1]}", []).append(layer)
    return {**found, "final": ["out"]}


def level_names(state: Iterable[str]) -> tuple[str, ...]:
    """The encoder's last feature of each level, finest first, and the middle's last: what a segmentation may read."""
    names = list(state)
    encoder, middle = ([name for name in blocks_of(names) if name.startswith(prefix)] for prefix in ("in_", "mid_"))
    halvings = [n for n in range(len(encoder)) if f"input_blocks.{n}.0.op.weight" in names]
    return (*(encoder[n - 1] for n in halvings), encoder[-1], middle[-1])
