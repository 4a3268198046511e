"""The backends, each with the reason where it can not run here."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Backend:
    """``unavailable`` is the reason why it can not run, or None; ``ops`` are the ops it computes."""

    name: str
    what: str
    unavailable: str | None
    ops: tuple[str, ...] = ()


def backends() -> list[Backend]:
    """Every backend the package knows, asked afresh."""
    told = {
        "torch": "plain PyTorch, the reference",
        "cpu": "native C++ kernels",
        "triton": "Triton kernels for GPUs",
        "cuda": "CUDA kernels through CuPy",
    }
    return [Backend(name, what, _probes()[name](), ops_of(name)) for name, what in told.items()]


def _probes() -> dict[str, Callable[[], str | None]]:
    return {"torch": _torch, "cpu": _cpu, "triton": _triton, "cuda": _cuda}


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


class BackendUnavailable(ValueError):  # noqa: N818
    """A backend was asked for by name, and can not compute this here; the message says why."""


# Who computes an op, in the order of preference; plain PyTorch can always.
_COMPUTE: dict[str, tuple[str, ...]] = {
    "add_noise": ("triton", "cpu"),
    "attention3d": ("triton", "cpu"),
    "attention_block": ("triton",),
    "attention_pool": ("triton", "cuda", "cpu"),
    "conv3d": ("cpu",),
    "denoise_step": ("triton", "cuda", "cpu"),
    "diffusion_loss": ("triton",),
    "group_norm_silu": ("triton", "cpu"),
    "plane_fusion": ("triton", "cpu"),
    "plane_gating": ("triton",),
    "upsample2x_trilinear": ("triton", "cpu"),
}


def ops_of(backend: str) -> tuple[str, ...]:
    """The ops that a backend computes."""
    return tuple(_COMPUTE) if backend == "torch" else tuple(op for op, names in _COMPUTE.items() if backend in names)


def choose(op: str, backend: str, x: Tensor) -> Any:
    """The module that computes an op for a tensor: the first that can for "auto", or the one that was asked for.

    Raises:
        BackendUnavailable: the one that was asked for can not.
        ValueError: there is no such backend.
    """
    if backend == "auto":
        missed: list[str] = []
        for name in _COMPUTE[op]:
            reason = _unable(op, name, x, explicit=False)
            if reason is None:
                return _told(op, name, missed)
            missed.append(f"not in {name}: {reason}")
        return _told(op, "torch", missed)
    if backend not in (*_COMPUTE[op], "torch"):
        raise ValueError(f"backend: {backend!r}; {op} has auto, torch, {', '.join(_COMPUTE[op])}.")
    if backend != "torch" and (reason := _unable(op, backend, x, explicit=True)):
        raise BackendUnavailable(f"backend: {backend!r} can not compute {op} here: {reason}.")
    return import_module(f"orthokernels.backends.{backend}.{op}")


def _told(op: str, backend: str, missed: list[str]) -> Any:
    if missed:
        _tell_once(op, "plain PyTorch" if backend == "torch" else backend, "; ".join(missed))
    return import_module(f"orthokernels.backends.{backend}.{op}")


@functools.cache
def _tell_once(op: str, where: str, why: str) -> None:
    logging.getLogger("orthokernels").info("%s runs in %s, %s.", op, where, why)


def can_accelerate(op: str, backend: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """Why calling an op would not help a model on a device, in a dtype (float32), or "" where it would.

    Raises:
        BackendUnavailable, ValueError: as ``choose``.
    """
    import torch

    dtype = dtype or torch.float32
    chosen = choose(op, backend, torch.empty(1, device=device, dtype=dtype))
    name = chosen.__name__.split(".")[-2]
    if backend == "auto" and name == "cpu" and op == "attention3d":
        return "PyTorch's own attention takes calls without bias and window; backend='cpu' asks for the native one"
    if backend == "auto" and name == "torch":
        return f"no kernel computes {op} on {device.type}" + ("" if dtype == torch.float32 else f" in {dtype}")
    return ""


def _unable(op: str, backend: str, x: Tensor, *, explicit: bool) -> str | None:
    """Why a backend can not compute an op for a tensor, or None."""
    interpreted = explicit and backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if backend == "cpu" and x.device.type != "cpu":
        return f"the tensor lies on {x.device}, and its kernels run on the processor"
    if backend != "cpu" and x.device.type != "cuda" and not (interpreted and find_spec("triton")):
        otherwise = " (or TRITON_INTERPRET=1, to try them)" if backend == "triton" else ""
        return f"the tensor lies on {x.device}, and its kernels need a CUDA device{otherwise}"
    if not interpreted and (reason := _probes()[backend]()):
        return reason
    return import_module(f"orthokernels.backends.{backend}.{op}").can_run(x)
