"""Group normalisation, FiLM and SiLU in C++: ``csrc/cpu/group_norm_silu.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from orthokernels import _native
from orthokernels.backends.cpu.volumes import Array, array, in_order, optional, wrong_kind


def forward(
    x: Tensor,
    skip: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    scale_shift: Tensor | None,
    silu: bool,
    eps: float,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    last = not x.is_contiguous()
    _native.group_norm_silu(
        _flat(x, last), _flat(y, last), array(mean), array(rstd), groups,
        skip=None if skip is None else _flat(skip, last), **_small(weight, bias, shift, scale_shift), silu=silu,
        eps=eps, channels_last=last, threads=torch.get_num_threads(),
    )  # fmt: skip


def backward(
    dy: Tensor,
    x: Tensor,
    skip: Tensor | None,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    scale_shift: Tensor | None,
    silu: bool,
    mean: Tensor,
    rstd: Tensor,
    dx: Tensor,
    dskip: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write dx and dskip; returns dweight and dbias [N, C] of each sample, dshift [N, C], dscale_shift [N, 2 C]."""
    last = not x.is_contiguous()
    dweight, dbias, dshift, dscale_shift = (x.new_empty((len(x), width * dy.shape[1])) for width in (1, 1, 1, 2))
    _native.group_norm_silu_backward(
        _flat(dy, last), _flat(x, last), array(mean), array(rstd), _flat(dx, last),
        *map(array, (dweight, dbias, dshift, dscale_shift)), groups,
        skip=None if skip is None else _flat(skip, last), dskip=None if dskip is None else _flat(dskip, last),
        **_small(weight, bias, shift, scale_shift), silu=silu, channels_last=last, threads=torch.get_num_threads(),
    )  # fmt: skip
    return dweight, dbias, dshift, dscale_shift


def _flat(volume: Tensor, channels_last: bool) -> Array:
    """[N, C, L], or [N, L, C] channels last."""
    return array(in_order(volume.flatten(2), channels_last=channels_last))


def _small(
    weight: Tensor | None, bias: Tensor | None, shift: Tensor | None, scale_shift: Tensor | None
) -> dict[str, Array | None]:
    given = {"weight": weight, "bias": bias, "shift": shift, "scale_shift": scale_shift}
    return {name: optional(tensor) for name, tensor in given.items()}


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take a volume, or None."""
    return wrong_kind(x)
