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
        RuntimeError: one has a tangent, of forward-mode differentiation: the results would have one of zeros; or one
            is differentiated by torch.func, which PyTorch has not for registered ops.
    """
    if not torch.compiler.is_compiling():
        for own in given:
            if isinstance(own, Tensor) and unpack_dual(own).tangent is not None:
                raise RuntimeError(f"{op}: has no forward-mode derivative. {_otherwise(op)}")
            if isinstance(own, Tensor) and _differentiated_by_func(own):
                raise RuntimeError(f"{op}: has no derivative by torch.func, only by autograd. {_otherwise(op)}")
    return getattr(torch.ops.orthokernels, op)(*given)


def _otherwise(op: str) -> str:
    """What gives the derivatives that an op has not."""
    return (
        f"Call its definition in plain PyTorch, reference of orthokernels.ops.{op}, or undo acceleration with "
        "orthokernels.restore(model)."
    )


def _differentiated_by_func(own: Tensor) -> bool:
    """Whether one of torch.func's grad, vjp or jacrev, around vmap or inside of it, follows a tensor."""
    func = torch._C._functorch
    while torch.is_grad_enabled() and func.is_functorch_wrapped_tensor(own):
        if func.is_gradtrackingtensor(own) and own.requires_grad:
            return True
        own = func.get_unwrapped(own)
    return False


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
        raise RuntimeError(f"{op}: differentiable once, and a second derivative was asked for. {_otherwise(op)}")

    torch.library.register_autograd(f"orthokernels::{op}_backward", refuse)
