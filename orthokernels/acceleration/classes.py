"""The classes that accelerated modules are given: subclasses of their own, made for the op and its backend."""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import Any

from torch import nn


@functools.cache
def subclass(
    original: type[nn.Module], method: str, forward: Callable[..., Any], backend: str, legacy: bool
) -> type[nn.Module]:
    """``original`` with another ``method``; ``legacy`` is the order of an attention's channels, and for it alone."""
    key = original, method, forward, backend, legacy

    def reduced(self: nn.Module, protocol: Any) -> Any:
        """As the module's own class would be; the made class has no name to be found by, and is made again."""
        found = original.__reduce_ex__(self, protocol)
        if not isinstance(found, tuple) or found[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return found
        return _anew, (key, *found[1][1:]), *found[2:]

    own = {
        method: forward, "_orthokernels_original": original, "_orthokernels_method": method,
        "_orthokernels_backend": backend, "_orthokernels_legacy": legacy, "__reduce_ex__": reduced,
    }  # fmt: skip
    return type(f"Accelerated{original.__name__}", (original,), own)


def _anew(key: tuple[Any, ...], *arguments: Any) -> nn.Module:
    """A module out of a pickle, without its state."""
    made = subclass(*key)
    return made.__new__(made, *arguments)


def is_accelerated(module: nn.Module) -> bool:
    return "_orthokernels_original" in type(module).__dict__


def original_of(module: nn.Module) -> type[nn.Module]:
    """A module's own class: what it was before it was accelerated."""
    kind: type[nn.Module] = type(module).__dict__.get("_orthokernels_original", type(module))
    return kind


def is_covered(module: nn.Module) -> bool:
    """Whether someone made a class on top of the one that it was given."""
    return not is_accelerated(module) and hasattr(type(module), "_orthokernels_original")
