"""The fewest operations and bytes of a whole network, counted without a device.

Operations are those of convolutions and matrix products, as PyTorch's own counter has them. Bytes are counted layer by
layer: a convolution or linear layer reads its input and its weights and writes its output; a normalisation reads its
input twice and writes once, with whatever stands around it fused. Sums, resampling and concatenation are not counted,
nor attention's tokens beyond its projections, which makes the floor lower; what a small layer leaves in the cache for
the next one is counted as moved, which makes it higher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Passes over input, output and weights of a layer, and those of a training step: the backward pass of a convolution
# reads the output's gradient twice, input and weights once, and writes both their gradients; that of a normalisation
# reads input and gradient twice and writes once.
_DENSE, _DENSE_TRAINED = (1, 1, 1), (3, 3, 3)
_NORM, _NORM_TRAINED = (2, 1, 0), (5, 3, 0)
_ADAM = 7 * 4  # bytes a parameter: read it, its gradient and two moments, and write three of them, float32


class Count(NamedTuple):
    operations: int
    moved: int


def count(network: nn.Module, run: Callable[[nn.Module], Any], element: int, *, training: bool = False) -> Count:
    """Operations and bytes of a call.

    Args:
        network: is moved to the "meta" device, and lost.
        run: calls it there, and the backward pass too where it is ``training``.
        element: bytes of an activation.
    """
    network = network.to("meta")
    moved = 0
    handles = []

    def layer(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal moved
        norm = isinstance(module, nn.GroupNorm)
        dense = _DENSE_TRAINED if training else _DENSE
        passes = (_NORM_TRAINED if training else _NORM) if norm else dense
        weights = sum(parameter.numel() for parameter in module.parameters())
        moved += element * (passes[0] * inputs[0].numel() + passes[1] * output.numel() + passes[2] * weights)

    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d | nn.Linear | nn.GroupNorm):
            handles.append(module.register_forward_hook(layer))
    with FlopCounterMode(display=False) as counter:
        run(network)
    for handle in handles:
        handle.remove()
    if training:
        moved += _ADAM * sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return Count(int(counter.get_total_flops()), moved)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
