"""Whether a module that is known by its structure alone computes what would take its place: both are tried.

A copy of the module, in float32 on the processor, evaluates random numbers with random parameters: those that it has
may hide a difference, as a projection that starts at zero does, and a scale that starts at one.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# float32 rounds to 6e-8; a dozen layers and sums of some thousand terms stay below this, another order of channels or
# another factor changes as much as there is.
TOLERANCE = 1e-3
HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    """Random numbers, whatever device and dtype are the default."""
    return torch.randn(shape, generator=draw, device="cpu", dtype=torch.float32)


def agreeing(
    module: nn.Module,
    made: Sequence[type[nn.Module]],
    inputs: Callable[[Any, torch.Generator], Iterator[tuple[Tensor, ...]]],
) -> type[nn.Module] | str:
    """The first class of ``made`` that computes what the module does, or the reason why none is taken.

    ``inputs`` gives what a module may be called with: the first that its own forward takes is used. Neither the state
    of the random numbers nor the module's hooks notice.
    """
    off = torch.autocast("cpu", enabled=False)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), off:
        try:
            draw = torch.Generator("cpu").manual_seed(0)
            own = _randomised(module, draw)
            given, want = _first_taken(own, inputs(own, draw))
        except Exception as error:  # it is someone else's code: whatever it raises, it is left as it is
            told = (str(error).splitlines() or [""])[0]
            return f"it could not be tried whether it computes what the op does ({type(error).__name__}: {told[:120]})"
        return next((kind for kind in made if _agrees(own, kind, given, want)), _differs(own))


def _differs(module: nn.Module) -> str:
    return f"{type(module).__name__} computes something else than the block that it has the parts of"


def _first_taken(own: nn.Module, inputs: Iterator[tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Tensor]:
    failed: Exception = ValueError("nothing to call it with")
    for given in inputs:
        try:
            return given, own(*(tensor.clone() for tensor in given))
        except Exception as error:
            failed = error
    raise failed


def _agrees(own: nn.Module, kind: type[nn.Module], given: tuple[Tensor, ...], want: Tensor) -> bool:
    original = type(own)
    own.__class__ = kind
    try:
        found = own(*(tensor.clone() for tensor in given))
    except Exception:
        return False
    finally:
        own.__class__ = original
    if not isinstance(want, Tensor) or found.shape != want.shape:
        return False
    return bool((found - want).abs().max() <= TOLERANCE * want.abs().max())  # false for NaN too


def _randomised(module: nn.Module, draw: torch.Generator) -> nn.Module:
    """A copy to try: without hooks, in evaluation, its parameters such that nothing grows or vanishes."""
    without: dict[int, Any] = {
        id(kept): OrderedDict()
        for part in module.modules()
        for kept in (getattr(part, name, None) for name in HOOKS)
        if kept is not None
    }
    own = copy.deepcopy(module, without).to("cpu", torch.float32).eval()
    for parameter in own.parameters():
        values = normal(draw, *parameter.shape)
        if parameter.ndim > 1:
            values /= max(1, parameter[0].numel()) ** 0.5
        parameter.data = values if parameter.ndim > 1 else 0.2 * values + 0.5
    return own
