"""Ops under autocast, by one rule.

Ops whose work is products (conv3d, attention3d, attention_pool, attention_block) multiply in autocast's dtype: what
they are given first, volumes or tokens, and a convolution's parameters, is brought to it, as by PyTorch's own
convolutions and matrix products, and so the result has it. What an op takes in float32 beside any volume
(attention_block's parameters, attention3d's bias) is left as it is. Norms and all other ops keep x's dtype. Inside
every op autocast has ended (``ops.registration``): sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Asked once, because PyTorch 2.11 can't trace the question; a backend of someone else's has to be imported before.
_OTHERS = torch._C._get_privateuse1_backend_name()
_WITH_AUTOCAST = frozenset(
    kind
    for kind in ("cpu", "cuda", "hpu", "ipu", "maia", "mps", "mtia", "xla", "xpu", _OTHERS)
    if torch.amp.is_autocast_available(kind)
)


def lowers(kind: str) -> bool:
    """Whether autocast is on for a kind of device. Some have none, such as "meta", and then it can't be asked."""
    return kind in _WITH_AUTOCAST and torch.is_autocast_enabled(kind)


def lowered(x: Tensor, *others: Tensor | None) -> list[Any]:
    """All in autocast's dtype where it is on for x's device, but for float64, as PyTorch has it; else as they are."""
    kind = x.device.type
    if not lowers(kind):
        return [x, *others]
    dtype = torch.get_autocast_dtype(kind)
    return [own.to(dtype) if own is not None and _is_lowered(own, kind) else own for own in (x, *others)]


def _is_lowered(own: Tensor, kind: str) -> bool:
    return own.is_floating_point() and own.dtype != torch.float64 and own.device.type == kind
