"""How an op's implementation is registered: what holds around every one of them stands here once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from orthokernels.ops.autocast import lowers


def implements(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as what an op does, by the op's name, on whichever device its tensors lie.

    A kernel is launched on the current device, so that of the first tensor is made current. Autocast ends here: what an
    op computes in float32 stays float32.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def where_it_lies(*given: Any) -> Any:
            x = next(own for own in given if isinstance(own, Tensor))
            kind = x.device.type
            with torch.cuda.device_of(x), torch.autocast(kind, enabled=False) if lowers(kind) else nullcontext():
                return function(*given)

        torch.library.impl(f"orthokernels::{op}", "default", where_it_lies)
        return function

    return register
