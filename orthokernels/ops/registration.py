"""How an op is registered: what holds around every one of them stands here once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

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


def called(op: str, *given: Any) -> Any:
    """What an op gives for its arguments.

    Raises:
        RuntimeError: one has a tangent, of forward-mode differentiation: the results would have one of zeros.
    """
    if not torch.compiler.is_compiling():
        for own in given:
            if isinstance(own, Tensor) and unpack_dual(own).tangent is not None:
                raise RuntimeError(
                    f"{op}: has no forward-mode derivative. Call its definition in plain PyTorch, reference of "
                    f"orthokernels.ops.{op}, or undo acceleration with orthokernels.restore(model)."
                )
    return getattr(torch.ops.orthokernels, op)(*given)


def refuse_gradients(why: str, **given: Any) -> None:
    """Raise ValueError naming an input that wants a gradient which an op has not, and which would be dropped."""
    if not torch.is_grad_enabled():
        return
    for name, own in given.items():
        if isinstance(own, Tensor) and own.requires_grad:
            raise ValueError(f"{name}: wants a gradient; {why}")


def differentiable_once(op: str) -> None:
    """Register that the gradient of an op has none: autograd would leave it out of a second derivative without a word.

    It is refused where it is taken, so that a first one with ``create_graph=True`` is still given.
    """

    def refuse(_: Any, *gradients: Tensor | None) -> None:
        raise RuntimeError(
            f"{op}: differentiable once, and a second derivative was asked for. Call its definition in plain PyTorch, "
            f"reference of orthokernels.ops.{op}, or undo acceleration with orthokernels.restore(model)."
        )

    torch.library.register_autograd(f"orthokernels::{op}_backward", refuse)
