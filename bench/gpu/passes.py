"""Functions as calls that can be timed: forward, backward alone, or both; compiled or not; inputs in either layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from orthokernels.bench.gpu.setting import Setting
from orthokernels.bench.gpu.timing import Call
from torch import Tensor

Direction = Literal["forward", "backward", "forward and backward"]
Function = Callable[..., Tensor]


def passing(function: Lazily | Function, tensors: Sequence[Tensor], direction: Direction) -> Callable[[], Call]:
    """What builds the call of a function of tensors.

    Args:
        function: of the tensors, giving one tensor; where it must be made first, ``Lazily`` of what makes it.
        tensors: each is differentiated by, where it is floating point.
        direction: "backward" goes through one forward pass again and again, which is not timed.
    """

    def build() -> Call:
        own = function.make() if isinstance(function, Lazily) else function
        if direction == "forward":
            return lambda: _without_gradient(own, tensors)
        leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in tensors]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        y = own(*leaves)
        upstream = torch.randn_like(y)  # dense as y is, so that no layout is changed on the way
        if direction == "backward":
            return _repeated(own, leaves, wanted, upstream)
        return lambda: torch.autograd.grad(own(*leaves), wanted, upstream)

    return build


class Lazily:
    """A function that is made when its contender is built, so that its time and its failure are that one's."""

    def __init__(self, make: Callable[[], Function]) -> None:
        self.make = make


def _repeated(own: Function, leaves: Sequence[Tensor], wanted: Sequence[Tensor], upstream: Tensor) -> Call:
    """The backward pass alone. A compiled one would free what it was given, and could not be repeated."""
    import torch._functorch.config as settings

    with settings.patch(donated_buffer=False):
        y = own(*leaves)
        torch.autograd.grad(y, wanted, upstream, retain_graph=True)
    return lambda: torch.autograd.grad(y, wanted, upstream, retain_graph=True)


def _without_gradient(function: Function, tensors: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return function(*tensors)


def compiled(function: Callable[..., Any], setting: Setting, mode: str = "default") -> Callable[..., Any]:
    """torch.compile of a function. Tiny settings trace it and generate no code: they try the machinery."""
    if setting.tiny:
        return torch.compile(function, backend="aot_eager")
    return torch.compile(function, mode=mode)


def compile_modes(
    function: Function, tensors: Sequence[Tensor], direction: Direction, setting: Setting
) -> list[tuple[str, Callable[[], Call]]]:
    """Names and builds of torch.compile's two modes. Graphs are the clock's matter: it captures all that is short."""
    return [
        (f"torch.compile {told}", passing(Lazily(partial(compiled, function, setting, mode)), tensors, direction))
        for told, mode in (("default", "default"), ("max-autotune", "max-autotune-no-cudagraphs"))
    ]


def channels_last(x: Tensor) -> Tensor:
    """A copy of a volume (N, C, *voxels) with its channels together in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def normal(setting: Setting, *sides: int, dtype: torch.dtype = torch.bfloat16, mean: float = 0.0) -> Tensor:
    """Random numbers around a mean; never zeros, which a chip multiplies faster."""
    return (torch.randn(sides, device=setting.device) + mean).to(dtype)
