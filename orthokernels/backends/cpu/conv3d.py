"""The convolution in C++: ``csrc/cpu/conv3d.cpp``, whose weights are packed once and kept while they stay the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orthokernels import _native
from orthokernels.backends.cpu.algorithm import choose
from orthokernels.backends.cpu.packed_weights import PACKED
from orthokernels.backends.cpu.volumes import array, wrong_kind
from orthokernels.backends.torch import conv3d as plain

# Of the weights' gradient (bench/NOTES.md). Below so many voxels bringing Winograd's sums back to the taps costs more
# than plain products; of so few channels a slice's neighbourhoods fit beside it.
_LEAST_VOXELS = 2**11
_FEW_CHANNELS = 4


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, exact: bool, y: Tensor, *, keep: bool = True
) -> None:
    """Write y, of any dense layout; the kernels' own is channels last. ``keep`` packed weights for another call."""
    sides = tuple(x.shape[2:])
    convolution = _kept(weight, stride, sides, exact) if keep else _packed_anew(weight, stride, sides, exact)
    own = None if bias is None else array(bias.contiguous())
    source = x.movedim(1, -1).contiguous()
    last = y.movedim(1, -1).is_contiguous()
    target = y.movedim(1, -1) if last else torch.empty(y.movedim(1, -1).shape, dtype=y.dtype, device=y.device)
    for volume, made in zip(array(source), array(target), strict=True):
        convolution.run(volume, made, bias=own, threads=torch.get_num_threads())
    if not last:
        y.copy_(target.movedim(-1, 1))


def weight_gradient(dy: Tensor, x: Tensor, stride: int, exact: bool, dw: Tensor) -> None:
    """Write dw (K, C, k, k, k): by Winograd's algorithm where one fits, else as a product of matrices or PyTorch's."""
    if dw.shape[2] == 1:
        _of_points(dy, x[:, :, ::stride, ::stride, ::stride], dw)
    elif dw.shape[1] <= _FEW_CHANNELS:
        _of_few_channels(dy, x, stride, dw)
    elif (algorithm := _gradient_algorithm(x, dw, stride, exact)) is None:
        plain.weight_gradient(dy, x, stride, exact, dw)
    else:
        own = torch.empty_like(dw, memory_format=torch.contiguous_format)
        for n, (gradient, volume) in enumerate(zip(_last(dy), _last(x), strict=True)):
            _native.conv3d_weight_gradient(
                array(volume), array(gradient), array(own), stride=stride, algorithm=algorithm,
                threads=torch.get_num_threads(),
            )  # fmt: skip
            _add(dw, own, n)


def _gradient_algorithm(x: Tensor, dw: Tensor, stride: int, exact: bool) -> str | None:
    """What takes the weights' gradient; None where PyTorch's plain products do."""
    out, channels, kernel = dw.shape[:3]
    sides = tuple(x.shape[2:])
    if sides[0] * sides[1] * sides[2] < _LEAST_VOXELS:
        return None
    algorithm = choose(out, channels, kernel, stride, sides, exact=exact)
    return None if algorithm == "direct" else algorithm


def _of_points(dy: Tensor, x: Tensor, dw: Tensor) -> None:
    """Of a 1 x 1 x 1 convolution; PyTorch's own takes ten times as long where the volumes lie channels last."""
    for n, (gradient, volume) in enumerate(zip(_last(dy), _last(x), strict=True)):
        _add(dw, (gradient.flatten(0, 2).T @ volume.flatten(0, 2)).reshape(dw.shape), n)


def _of_few_channels(dy: Tensor, x: Tensor, stride: int, dw: Tensor) -> None:
    """Of few channels, slice by slice: what every output's taps see, side by side."""
    for n, gradient in enumerate(_last(dy)):
        seen = F.pad(x[n], (1,) * 6).unfold(1, 3, stride).unfold(2, 3, stride).unfold(3, 3, stride)
        seen = seen.movedim(0, 3)  # (d, h, w, C, 3, 3, 3)
        for d, own in enumerate(gradient):
            _add(dw, (own.flatten(0, 1).T @ seen[d].flatten(2).flatten(0, 1)).reshape(dw.shape), n + d)


def _last(volumes: Tensor) -> Tensor:
    """(N, D, H, W, C), in that order in memory."""
    return volumes.movedim(1, -1).contiguous()


def _add(dw: Tensor, part: Tensor, before: int) -> None:
    if before:
        dw.add_(part)
    else:
        dw.copy_(part)


def _kept(weight: Tensor, stride: int, sides: tuple[int, ...], exact: bool) -> Any:
    key = (weight.data_ptr(), tuple(weight.shape), stride, sides, exact)
    found = PACKED.find(key, weight)
    if found is None:
        found = _packed_anew(weight, stride, sides, exact)
        PACKED.add(key, weight, found)
    return found


def _packed_anew(weight: Tensor, stride: int, sides: tuple[int, ...], exact: bool) -> Any:
    out, channels, kernel = weight.shape[:3]
    algorithm = choose(out, channels, kernel, stride, sides, exact=exact)
    return _native.Conv3d(array(weight.detach().contiguous()), stride, sides, algorithm)


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take a volume, or None."""
    return wrong_kind(x)
