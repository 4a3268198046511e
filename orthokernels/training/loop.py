"""The one training loop: steps, accumulation, clipping, autocast, checkpoints, curves, and stopping well.

A run that is killed and resumed ends with the weights of one that was not: every random number depends on the seed and
the sample's number (``randomness``), and a checkpoint holds the rest. On a GPU that is bit for bit only where PyTorch
has deterministic kernels for the network (``loop.deterministic`` asks for them).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orthokernels.acceleration import accelerate, restore
from orthokernels.errors import InputError
from orthokernels.training.checkpoint import (
    Checkpoints,
    State,
    check_same,
    random_states,
    restore_random_states,
)
from orthokernels.training.config import EmaConfig, LoopConfig, OptimiserConfig
from orthokernels.training.curves import Tell, curves
from orthokernels.training.distributed import Processes, alone
from orthokernels.training.ema import Ema
from orthokernels.training.loader import PLACES, Batch, Numbers, Samples, batches
from orthokernels.training.optimiser import clip, make_optimiser, set_rate
from orthokernels.training.randomness import Stream, seed_of
from orthokernels.training.signals import AskedToStop, asked_to_stop


class TrainingStoppedError(InputError):
    """The loss or its gradient is no longer a number."""


class Task(Protocol):
    """What is trained, and how a batch is scored."""

    module: nn.Module

    def loss(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Mean loss over the batch, a scalar, and figures to log.

        Tensors are on the device already, but for ``loader.PLACES``, which are read on the CPU.
        ``module`` is ``self.module`` as wrapped for this run; it must be called, not its parts, so that gradients are
        averaged over processes.
        """

    def validate(self, module: nn.Module) -> Mapping[str, float]:
        """Figures on held-out data, in evaluation mode without gradients; every process is asked, and all must answer
        the same (``Processes.total``)."""


@dataclass
class Run:
    """Everything a loop needs besides its task.

    Attributes:
        out: folder for checkpoints/ and tensorboard/.
        samples: training data by number.
        identity: what makes a checkpoint this run's: network, data and settings that decide the result; plain values.
            The optimiser's are added. Its rate and schedule and ``loop.steps`` may change when a run is taken up.
        groups: the optimiser's parameter groups ({"params": ..., "scale": of the rate}); all of the module by default.
        best: name of the validation figure whose best checkpoint is kept, and whether "min" or "max" is best.
        resume: take up the newest checkpoint; otherwise earlier ones are removed.
    """

    out: Path
    samples: Samples
    config: LoopConfig
    optimiser: OptimiserConfig
    identity: dict[str, Any]
    ema: EmaConfig | None = None
    groups: Sequence[dict[str, Any]] | None = None
    best: tuple[str, str] | None = None
    workers: int = 0
    prefetch: int = 4
    processes: Processes = field(default_factory=alone)
    resume: bool = True
    tell: Tell = lambda done, steps, figures: None


@dataclass(frozen=True)
class Trained:
    """How a loop ended. ``module`` holds the weights to keep: the running mean where there is one."""

    module: nn.Module
    steps: int
    figures: dict[str, float]


def train(task: Task, run: Run) -> Trained:
    """Train to the last step, from the newest checkpoint if there is one.

    Raises:
        TrainingStoppedError: the loss or gradient is not finite; a checkpoint from before that step is on disk.
        AskedToStop: SIGTERM or SIGINT came; a checkpoint of the last step is on disk.
        InputError: the checkpoints belong to another run, or data can not be read.
    """
    with _deterministic(run.config.deterministic), _compiler(run.config.compile):
        loop = _Loop(task, run)
        try:
            return loop.train()
        finally:
            restore(task.module)
            restore(loop.kept)


def samples_per_step(config: LoopConfig, processes: Processes) -> int:
    """Samples that one optimiser step reads, in all passes and processes."""
    return config.batch * config.accumulate * processes.world


def steps_of(epochs: int, samples: int, config: LoopConfig, processes: Processes) -> int:
    """Steps that read ``samples`` so many times, at least one."""
    return max(1, math.ceil(epochs * samples / samples_per_step(config, processes)))


class _Loop:
    def __init__(self, task: Task, run: Run) -> None:
        self.task, self.run, self.config, self.processes = task, run, run.config, run.processes
        layout = torch.channels_last_3d if self.config.channels_last else torch.preserve_format
        task.module.to(self.processes.device)
        for parameter in task.module.parameters():
            if parameter.ndim == 5 and self.config.channels_last:
                parameter.data = parameter.data.contiguous(memory_format=layout)
        if self.config.accelerate and self.processes.device.type == "cpu" and not self.config.compile:
            accelerate(task.module, memory_format=None)
        self.optimiser = make_optimiser(task.module, run.optimiser, run.groups, self.processes.device)
        self.ema = Ema(task.module, run.ema) if run.ema is not None else None
        self.checkpoints = Checkpoints(run.out / "checkpoints", self.config.keep)
        self.identity = {
            **run.identity,
            "loop.seed": self.config.seed,
            "loop.clip_norm": self.config.clip_norm,
            "loop.precision": self.config.precision,
            "samples per step": samples_per_step(self.config, self.processes),
            # What comes back with the optimiser's state, whatever the settings say. The rate is set anew each step.
            "optimiser.betas": list(run.optimiser.betas),
            "optimiser.weight_decay": run.optimiser.weight_decay,
            "shares of the rate": [group["scale"] for group in self.optimiser.param_groups],
        }
        self.best = math.inf
        self.figures: dict[str, float] = {}
        self.start = self._resume()

    @property
    def kept(self) -> nn.Module:
        return self.ema.module if self.ema is not None else self.task.module

    def train(self) -> Trained:
        module = self.processes.wrap(self.task.module)
        if self.config.compile:
            module = torch.compile(module)  # type: ignore[assignment]
        module.train()
        first = self.start * self.config.accumulate
        stream = batches(
            self.run.samples,
            Numbers(self.config.batch, first, self.processes.rank, self.processes.world),
            workers=self.run.workers,
            prefetch=self.run.prefetch,
            pin=self.processes.device.type == "cuda",
        )
        with curves(self.run.out, self.start, self.processes.first) as write, asked_to_stop() as asked:
            self.run.tell(self.start, self.config.steps, {})
            for step in range(self.start, self.config.steps):
                figures, stop = self._step(step, module, stream, asked)
                self.figures.update(figures)
                done = step + 1
                if _due(done, self.config.log_every) or done == self.config.steps:
                    write(done, figures)
                if _due(done, self.config.validate_every) or done == self.config.steps:
                    write(done, self._validate(done))
                    module.train()
                if _due(done, self.config.save_every) or done == self.config.steps or stop:
                    self._save(done)
                self.run.tell(done, self.config.steps, self.figures)
                if stop:
                    raise AskedToStop(stop, done, self.checkpoints.path(done))
        return Trained(self.kept, self.config.steps, self.figures)

    def _step(
        self, step: int, module: nn.Module, stream: Iterator[Batch], asked: list[int]
    ) -> tuple[dict[str, float], int]:
        """One optimiser step; its figures, and the number of a signal that any process got."""
        began, waited = time.perf_counter(), 0.0
        rate = set_rate(self.optimiser, self.run.optimiser, step, self.config.steps)
        torch.manual_seed(seed_of(self.config.seed, Stream.STEP, step * self.processes.world + self.processes.rank))
        total = torch.zeros((), device=self.processes.device)
        files: list[str] = []
        told: Mapping[str, Tensor | float] = {}
        for place in range(self.config.accumulate):
            before = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - before
            files += batch["file"]
            last = place == self.config.accumulate - 1
            with nullcontext() if last or self.processes.world == 1 else module.no_sync():  # type: ignore[operator]
                with self._autocast():
                    loss, told = self.task.loss(module, self._moved(batch))
                (loss / self.config.accumulate).backward()
            total += loss.detach() / self.config.accumulate
        norm = clip(self.task.module, self.config.clip_norm)
        bad = float(not bool(torch.isfinite(total + norm)))
        bad, stop = self.processes.greatest([bad, float(asked[0])])
        if bad:
            self._refuse(step, float(total), float(norm), files)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.task.module, step)
        spent = time.perf_counter() - began
        figures = {"loss": float(total), "gradient_norm": float(norm), "rate": rate, "step_seconds": spent}
        figures |= {"waiting_share": waited / spent, **{name: float(value) for name, value in told.items()}}
        return figures, int(stop)

    def _moved(self, batch: Batch) -> Batch:
        """The batch's tensors on the device, volumes in the network's memory format."""
        moved = dict(batch)
        for name, value in batch.items():
            if isinstance(value, Tensor) and name not in PLACES:
                value = value.to(self.processes.device, non_blocking=True)
                volume = value.ndim == 5 and self.config.channels_last
                moved[name] = value.contiguous(memory_format=torch.channels_last_3d) if volume else value
        return moved

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _refuse(self, step: int, loss: float, norm: float, files: list[str]) -> None:
        """Keep the state from before the step, and stop with what is wrong."""
        self.optimiser.zero_grad(set_to_none=True)
        self._save(step)
        everyone = self.processes.gathered((loss, files))
        blamed = [own for own in everyone if not math.isfinite(own[0])] or everyone
        names = list(dict.fromkeys(name for _, own in blamed for name in own))
        what = f"the loss is {blamed[0][0]}" if not math.isfinite(blamed[0][0]) else f"the gradient's norm is {norm}"
        raise TrainingStoppedError(
            f"step {step + 1}: {what}. Its batch: {', '.join(names)}. The weights from before it are in "
            f"{self.checkpoints.path(step)}; look at these files, or train with a lower optimiser.rate."
        )

    def _validate(self, step: int) -> dict[str, float]:
        self.kept.eval()
        with torch.no_grad(), self._autocast():
            figures = {f"validation/{name}": value for name, value in self.task.validate(self.kept).items()}
        self.figures.update(figures)
        if self.run.best is not None:
            name, which = self.run.best
            value = figures[f"validation/{name}"] * (1 if which == "min" else -1)
            if value < self.best:
                self.best = value
                if self.processes.first:
                    self.checkpoints.save(step, self._state(step), best=True)
        return figures

    def _state(self, step: int) -> State:
        return {
            "step": step,
            "samples": step * self.identity["samples per step"],
            "model": self.task.module.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimiser": self.optimiser.state_dict(),
            "random": random_states(),
            "best": self.best,
            "figures": self.figures,
            "identity": self.identity,
            "settings": {
                "loop": self.config.model_dump(mode="json"),
                "optimiser": self.run.optimiser.model_dump(mode="json"),
            },
        }

    def _save(self, step: int) -> None:
        if self.processes.first:
            self.checkpoints.save(step, self._state(step))
        self.processes.wait()

    def _resume(self) -> int:
        """Take up the newest checkpoint; the number of steps done."""
        if not self.run.resume and self.processes.first:
            self.checkpoints.clear()
        self.processes.wait()
        found = self.checkpoints.newest()
        if len(set(self.processes.gathered(found[0] if found else 0))) > 1:
            raise InputError(f"{self.run.out}: not every process sees the same checkpoints. Use a shared folder.")
        if found is None:
            return 0
        step, state = found
        check_same(state["identity"], self.identity, self.checkpoints.path(step))
        if step > self.config.steps:
            raise InputError(f"{self.checkpoints.path(step)}: is {step} steps in; loop.steps is {self.config.steps}.")
        self.task.module.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.module.load_state_dict(state["ema"])
        restore_random_states(state["random"])
        self.best, self.figures = state["best"], state["figures"]
        return step


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


@contextmanager
def _compiler(wanted: bool) -> Iterator[None]:
    """A compiler that fails, told in a sentence."""
    try:
        yield
    except Exception as error:
        if wanted and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(f"PyTorch can't compile the network here ({reason}). Set loop.compile=false.") from error
        raise


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
