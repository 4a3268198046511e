"""Several processes as one run: what ``torchrun`` sets up, and the few things that processes tell one another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from orthokernels.models.orthodiffusion.study_model import device_named

# Preparing a large data set for the first time takes one process longer than another.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process among all of a run; alone it is rank 0 of 1."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose backward pass averages gradients over the processes; itself where there is one."""
        if self.world == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def greatest(self, values: Sequence[float]) -> list[float]:
        """Each value's greatest over the processes."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value's sum over the processes."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def _reduced(self, values: Sequence[float], how: Any) -> list[float]:
        if self.world == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(told, how)
        return told.tolist()

    def gathered(self, value: Any) -> list[Any]:
        """A plain value of every process, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


def alone(device: torch.device | str = "cpu") -> Processes:
    """A run of one process."""
    return Processes(0, 1, torch.device(device))


def world_size() -> int:
    """How many processes ``torchrun`` started, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """This process's part of the run: one of many under ``torchrun``, else alone.

    Args:
        device: "auto", "cpu" or "cuda[:N]". Under torchrun each process takes the GPU of its local rank (NCCL), or the
            CPU (gloo).

    Raises:
        InputError: the device can not be used.
    """
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    world = world_size()
    if world > 1 and wanted == "cuda":
        wanted = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    target = device_named(wanted)
    if world == 1:
        yield Processes(0, 1, target)
        return
    if target.type == "cuda":
        torch.cuda.set_device(target)
    dist.init_process_group("nccl" if target.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), world, target)
    finally:
        dist.destroy_process_group()
