"""Other people's kernels, each with the reason where it can not be imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from orthokernels.bench.gpu.timing import Absent, Call

# Distribution, the module whose functions are called, and what they are compared in.
_PEERS = {
    "flash-attn": ("flash_attn", "flash_attn", "attention"),
    "xformers": ("xformers", "xformers.ops", "attention"),
    "NATTEN": ("natten", "natten", "attention in windows"),
    "Liger": ("liger_kernel", "liger_kernel.ops.group_norm", "group normalisation"),
    "apex": ("apex", "apex.contrib.group_norm", "group normalisation"),
    "MONAI": ("monai", "monai.networks.nets", "its DiffusionModelUNet"),
}


@dataclass(frozen=True)
class Peer:
    """``reason`` says why it can not be imported, or is None."""

    name: str
    what: str
    version: str | None
    reason: str | None


def peers() -> list[Peer]:
    """All peers, asked afresh."""
    found = []
    for name, (distribution, _, what) in _PEERS.items():
        try:
            load(name)
            reason = None
        except Absent as error:
            reason = str(error)
        found.append(Peer(name, what, None if reason else _version(distribution), reason))
    return found


def load(name: str) -> Any:
    """A peer's module.

    Raises:
        Absent: it can not be imported; the message says why.
    """
    module = _PEERS[name][1]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == module.split(".")[0]:
            raise Absent(f"{name} is not installed") from error
        raise Absent(f"{name} can't be imported: {error}") from error
    except Exception as error:  # a binary built for another PyTorch fails in many ways
        raise Absent(f"{name} can't be imported: {type(error).__name__}: {str(error)[:120]}") from error


def with_peer(name: str, build: Callable[[Any], Call]) -> Callable[[], Call]:
    """What builds a contender out of a peer's module, and raises ``Absent`` without it."""
    return lambda: build(load(name))


def _version(distribution: str) -> str | None:
    for name in (distribution, distribution.replace("_", "-")):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
