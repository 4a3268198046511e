"""The backends, each with the reason where it can not run here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec


@dataclass(frozen=True)
class Backend:
    """``unavailable`` is the reason why it can not run, or None; ``ops`` are the ops it computes."""

    name: str
    what: str
    unavailable: str | None
    ops: tuple[str, ...] = ()


def backends() -> list[Backend]:
    """Every backend the package knows, asked afresh."""
    table: list[tuple[str, str, Callable[[], str | None]]] = [
        ("torch", "plain PyTorch, the reference", _torch),
        ("cpu", "native C++ kernels", _cpu),
        ("triton", "Triton kernels for GPUs", _triton),
        ("cuda", "CUDA kernels through CuPy", _cuda),
    ]
    return [Backend(name, what, probe()) for name, what, probe in table]


def processor_features() -> list[tuple[str, bool]]:
    """Vector extensions as (name, supported) pairs, in ascending order; empty without the native module."""
    try:
        native = import_module("orthokernels._native")
    except ImportError:
        return []
    return list(native.processor_features())


def _torch() -> str | None:
    return None if find_spec("torch") else "PyTorch is not installed (pip install 'orthokernels[torch]')"


def _cpu() -> str | None:
    try:
        import_module("orthokernels._native")
    except ImportError as error:
        return f"the native module was not built ({error})"
    return None


def _triton() -> str | None:
    if not find_spec("triton"):
        return "Triton is not installed (pip install triton)"
    return _no_gpu()


def _cuda() -> str | None:
    if not find_spec("cupy"):
        return "CuPy is not installed (pip install cupy-cuda12x or cupy-cuda13x)"
    return _no_gpu()


def _no_gpu() -> str | None:
    if reason := _torch():
        return reason
    import torch

    return None if torch.cuda.is_available() else "no CUDA device is visible to PyTorch"
