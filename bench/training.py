"""What training costs: the step against plain eager PyTorch, its memory, and whether the loader keeps up.

- ``step``: forward, backward and Adam of one pre-training step, ours (accelerated, the loop's loss) and the same
  weights as the published forward pass puts them together (contiguous, nothing in place), rounds interleaved and ratios
  taken round by round: their time over ours. For the demo network, and for the published network on a smaller volume.
- ``memory``: most resident memory of a process that takes three such steps, less what it holds before the first.
- ``loader``: the share of a step spent waiting for the loop's own stream of batches, over a phantom data set.
  Limit: 5 %.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from orthokernels.bench.record import Row, markdown, record, write
from orthokernels.bench.reference import Eager
from torch import nn

from orthokernels.acceleration import accelerate
from orthokernels.data.phantom.dataset import Recipe, write_studies
from orthokernels.models.orthodiffusion import GaussianDiffusion, UNet
from orthokernels.training.config import PretrainConfig, load_config
from orthokernels.training.demo import RECIPE, DemoConfig
from orthokernels.training.distributed import alone
from orthokernels.training.loader import Numbers, TrainingSlabs, batches
from orthokernels.training.pretrain import fill, load_splits, prepared_cache

WAITING_LIMIT = 0.05
SIZES = {"demo network, 4 x 1 x 16 x 64 x 64": (4, 64), "published network, 1 x 1 x 16 x 64 x 64": (1, 64)}


class Step:
    """One pre-training step of a network: ours, or plain eager."""

    def __init__(self, name: str, *, eager: bool) -> None:
        batch, side = SIZES[name]
        torch.manual_seed(0)
        demo = load_config(DemoConfig, RECIPE).pretrain.network
        unet = UNet(**demo.arguments()) if name.startswith("demo") else UNet()
        self.layout = torch.contiguous_format if eager else torch.channels_last_3d
        self.network: nn.Module = Eager(unet) if eager else unet
        if not eager:
            accelerate(unet, memory_format=self.layout)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        self.x0 = (torch.rand(batch, 1, 16, side, side) * 2 - 1).contiguous(memory_format=self.layout)
        self.diffusion = GaussianDiffusion()

    def __call__(self) -> None:
        noise = torch.randn_like(self.x0)
        timesteps = torch.randint(0, self.diffusion.timesteps, (len(self.x0),))
        self.diffusion.loss(self.network, self.x0, timesteps, noise).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


def bench_step(rounds: int) -> list[Row]:
    """Seconds of a step, ours and eager, interleaved."""
    rows = []
    for name in SIZES:
        steps = {f"ours, {name}": Step(name, eager=False), f"plain eager, {name}": Step(name, eager=True)}
        seconds: dict[str, list[float]] = {each: [] for each in steps}
        for number in range(rounds + 1):
            for each, step in steps.items():
                started = time.perf_counter()
                step()
                if number > 0:  # the first round warms up
                    seconds[each].append(time.perf_counter() - started)
        ours = next(iter(seconds.values()))
        rows += [
            Row("step", each, "s", own, ratio=statistics.median(t / o for t, o in zip(own, ours, strict=True)))
            for each, own in seconds.items()
        ]
    return rows


_MEMORY = """
import sys
from pathlib import Path
from orthokernels.bench.training import Step

def kilobytes(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(name))

step = Step(sys.argv[1], eager=sys.argv[2] == "eager")
before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: imports had one of their own
for _ in range(3):
    step()
print((kilobytes("VmHWM") - before) / 1024)
"""


def bench_memory() -> list[Row]:
    """Peak resident memory of three steps, each kind in a process of its own."""
    rows = []
    for name in SIZES:
        found = {
            kind: float(
                subprocess.run(
                    [sys.executable, "-c", _MEMORY, name, kind], capture_output=True, text=True, check=True
                ).stdout
            )
            for kind in ("ours", "eager")
        }
        rows += [
            Row("memory", f"ours, {name}", "MB", [found["ours"]], ratio=1.0),
            Row("memory", f"plain eager, {name}", "MB", [found["eager"]], ratio=found["eager"] / found["ours"]),
        ]
    return rows


def bench_loader(steps: int = 24) -> list[Row]:
    """The share of each step that the loop waits for its data, over a small phantom data set."""
    config = load_config(DemoConfig, RECIPE).pretrain
    with tempfile.TemporaryDirectory() as folder:
        samples = _samples(Path(folder), config)
        numbers = Numbers(config.loop.batch, 0, 0, 1)
        shares, rates = [], []
        step = Step(next(iter(SIZES)), eager=False)
        stream = batches(samples, numbers, workers=1, prefetch=4, pin=False)
        for number in range(steps + 1):
            started = time.perf_counter()
            step.x0 = next(stream)["image"].contiguous(memory_format=step.layout)
            waited = time.perf_counter() - started
            step()
            if number > 0:  # the first batch waits for the worker to start
                shares.append(waited / (time.perf_counter() - started))
        stream.close()  # type: ignore[attr-defined]
        stream = batches(samples, numbers, workers=0, prefetch=4, pin=False)
        for _ in range(steps):
            started = time.perf_counter()
            next(stream)
            rates.append(config.loop.batch / (time.perf_counter() - started))
    return [
        Row("loader", "waiting for data, share of a step", "of 1", shares, limit=WAITING_LIMIT),
        Row("loader", "slabs a second from the cache, one process", "/s", rates),
    ]


def _samples(folder: Path, config: PretrainConfig) -> TrainingSlabs:
    """Slabs of eight digital knees, prepared in ``folder``."""
    write_studies(folder / "data", range(8), Recipe(matrix=128, nifti=True))
    data = config.data.model_copy(update={"cache": folder / "cache", "validate_share": 0.0})
    records = load_splits(folder / "data", data, ("sagittal",))["train"]
    cache = prepared_cache(data)
    fill(cache, records, 1, alone(), True)
    return TrainingSlabs(cache, records, 0, config.augment)


def main(
    out: Annotated[Path | None, typer.Option(help="Folder for training.json and training.md.")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Counted repetitions, after one that warms up.")] = 7,
) -> None:
    """Measure a training step, its memory and the loader."""
    rows = [*bench_step(rounds), *bench_memory(), *bench_loader()]
    facts = record(rows, f"python -m orthokernels.bench.training --rounds {rounds}")
    if out is not None:
        write(facts, out, "training")
    print(markdown(facts))


if __name__ == "__main__":
    typer.run(main)
