"""What this installation and this machine are: what ``orthokernels info`` prints and a report's footer records."""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from orthokernels.backends.registry import backends, processor_features
from orthokernels.errors import InputError

MOST_THREADS = 1024  # that the native engine takes

_PACKAGES = (
    "orthokernels",
    "torch",
    "numpy",
    "numba",
    "pydicom",
    "nibabel",
    "triton",
    "cupy",
    "openvino",
    "onnxruntime",
)


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that can change a result; absent ones are left out."""
    found = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **{name: own for name, own in found.items() if own is not None}}


@functools.cache  # a file to be found and read, and it does not change while a process runs
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> dict[str, Any]:
    """Name, usable cores, and supported vector extensions."""
    return {
        "name": _processor_name(),
        "cores": _cores(),
        "features": [name for name, supported in processor_features() if supported],
    }


def threads() -> int:
    """OMP_NUM_THREADS, of a list the first, else the cores that this process may use.

    Raises:
        InputError: it is not a number from 1 to ``MOST_THREADS``, or a list of such numbers.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").strip()
    if not given:
        return min(_cores(), MOST_THREADS)
    counts = [own.strip() for own in given.split(",")]
    # By length first: Python refuses to read numbers of thousands of digits.
    if not all(re.fullmatch("0*[0-9]{1,4}", own) and 1 <= int(own[-4:]) <= MOST_THREADS for own in counts):
        raise InputError(f"OMP_NUM_THREADS is {given[:40]!r}; give a number of threads from 1 to {MOST_THREADS}.")
    return int(counts[0][-4:])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices() -> list[str]:
    """GPUs that PyTorch sees, by name and memory; empty without PyTorch."""
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return [f"cuda:{n} {p.name}, {p.total_memory / 2**30:.0f} GiB" for n, p in enumerate(properties)]


def describe() -> dict[str, Any]:
    """Everything above in one record."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processor": processor(),
        "devices": devices(),
        "backends": [
            {"name": b.name, "what": b.what, "available": b.unavailable is None, "reason": b.unavailable, "ops": b.ops}
            for b in backends()
        ],
    }


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (1e6 bytes); of this program alone where Linux tells it."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024 / 1e6
    except (OSError, StopIteration):
        import resource

        # Of a started program this counts what the process that started it held at that moment, too.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
