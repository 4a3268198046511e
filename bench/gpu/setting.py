"""Where a benchmark runs, and what that machine is."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import Any

import torch

from orthokernels.errors import InputError


@dataclass(frozen=True)
class Setting:
    """A device, and whether shapes are tiny ones that only try the machinery."""

    device: torch.device
    tiny: bool = False

    @property
    def backend(self) -> str:
        """Of the ops: the kernels, and plain PyTorch where they would be neither run nor interpreted."""
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return "triton" if self.device.type == "cuda" or interpreted else "torch"


def setting_for(device: str, tiny: bool) -> Setting:
    """The setting that a command's options ask for.

    Raises:
        InputError: no such device is visible, or a whole benchmark is asked of a CPU.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"--device {device}: there are cpu and cuda[:N].") from error
    if wanted.type == "cpu":
        if not tiny:
            raise InputError("--device cpu only tries the machinery, on small shapes: add --tiny.")
        return Setting(wanted, tiny)
    if wanted.type != "cuda":
        raise InputError(f"--device {device}: there are cpu and cuda[:N].")
    if not torch.cuda.is_available():
        raise InputError("no CUDA device is visible to PyTorch; to try the machinery without one: --device cpu --tiny.")
    if (wanted.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: PyTorch sees {torch.cuda.device_count()} CUDA devices.")
    return Setting(torch.device("cuda", wanted.index or 0), tiny)


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, driver, CUDA, cuDNN, multiprocessors, L2 cache and memory of a GPU; of a CPU, that it is one."""
    if device.type != "cuda":
        return {"name": "CPU"}
    own = torch.cuda.get_device_properties(device)
    return {
        "name": own.name,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "capability": f"{own.major}.{own.minor}",
        "multiprocessors": own.multi_processor_count,
        "l2_bytes": own.L2_cache_size,
        "memory_bytes": own.total_memory,
    }


def _driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.split("\n")[0].strip() or "unknown"
