"""The convolution in C++: ``csrc/cpu/conv3d.cpp``, whose weights are packed once and kept while they stay the same."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthokernels import _native
from orthokernels.backends.cpu.algorithm import choose
from orthokernels.backends.cpu.volumes import array, wrong_kind

# Packed weights that are kept, bytes: transformed ones are up to eight times as large as they were.
KEPT_BYTES = 2**30


@dataclass(frozen=True)
class _Packed:
    weight: Tensor  # a copy: whether the weights are still these is asked of their values
    convolution: Any
    bytes: int


_packed: OrderedDict[tuple[Any, ...], _Packed] = OrderedDict()
_guard = threading.Lock()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, exact: bool, y: Tensor, *, keep: bool = True
) -> None:
    """Write y, of any dense layout; the kernels' own is channels last. ``keep`` packed weights for another call."""
    sides = tuple(x.shape[2:])
    convolution = _kept(weight, stride, sides, exact) if keep else _packed_anew(weight, stride, sides, exact)
    own = None if bias is None else array(bias.contiguous())
    source = x.movedim(1, -1).contiguous()
    last = y.movedim(1, -1).is_contiguous()
    target = y.movedim(1, -1) if last else torch.empty(y.movedim(1, -1).shape, dtype=y.dtype)
    for volume, made in zip(array(source), array(target), strict=True):
        convolution.run(volume, made, bias=own, threads=torch.get_num_threads())
    if not last:
        y.copy_(target.movedim(-1, 1))


def _kept(weight: Tensor, stride: int, sides: tuple[int, ...], exact: bool) -> Any:
    key = (weight.data_ptr(), tuple(weight.shape), stride, sides, exact)
    with _guard:
        found = _packed.get(key)
        if found is not None and torch.equal(found.weight, weight):
            _packed.move_to_end(key)
            return found.convolution
    own = weight.detach().contiguous().clone()
    made = _packed_anew(own, stride, sides, exact)
    with _guard:
        _packed[key] = _Packed(own, made, made.weight_bytes + own.numel() * own.element_size())
        while sum(kept.bytes for kept in _packed.values()) > KEPT_BYTES and len(_packed) > 1:
            _packed.popitem(last=False)
    return made


def _packed_anew(weight: Tensor, stride: int, sides: tuple[int, ...], exact: bool) -> Any:
    out, channels, kernel = weight.shape[:3]
    algorithm = choose(out, channels, kernel, stride, sides, exact=exact)
    return _native.Conv3d(array(weight.detach().contiguous()), stride, sides, algorithm)


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take a volume, or None."""
    return wrong_kind(x)
