"""Pre-training: one denoiser per plane, on images alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from orthokernels.data.prepare import SLAB
from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.diffusion import GaussianDiffusion
from orthokernels.models.orthodiffusion.unet import UNet, fold
from orthokernels.models.orthodiffusion.weights import save_module
from orthokernels.tasks import PLANES
from orthokernels.training.config import PretrainConfig, named
from orthokernels.training.curves import progress
from orthokernels.training.distributed import Processes, alone
from orthokernels.training.loader import (
    Batch,
    FixedSlabs,
    TrainingSlabs,
    covering_slabs,
    fixed_batches,
)
from orthokernels.training.loop import Run, Trained, train
from orthokernels.training.randomness import Stream, seed_of, uniform_timesteps, unit_noise
from orthokernels.training.series import Record
from orthokernels.training.splits import fill, load_splits, patients_of, prepared_cache
from orthokernels.training.weights_folder import change_settings, folder_for_results


@dataclass(frozen=True)
class Pretrained:
    """What came of one plane. ``figures`` are the last step's and the last validation's."""

    plane: str
    weights: Path
    digest: str
    steps: int
    records: dict[str, int]
    figures: dict[str, float]

    def told(self) -> str:
        """The result in a line."""
        loss = self.figures.get("validation/loss", self.figures.get("loss", float("nan")))
        what = "validation loss" if "validation/loss" in self.figures else "loss"
        return f"{self.plane}: {self.steps} steps on {self.records['train']} series, {what} {loss:.4g}; {self.weights}"

    def facts(self) -> dict[str, Any]:
        """The result as plain values."""
        return {**asdict(self), "weights": str(self.weights)}


class Denoising:
    """Predict the noise at uniform timesteps; validated at fixed ones with fixed noise.

    Args:
        module: the denoiser.
        held_out: slabs for validation; with none, nothing is validated.
    """

    def __init__(self, module: nn.Module, config: PretrainConfig, held_out: FixedSlabs, processes: Processes) -> None:
        self.module, self.config, self.held_out, self.processes = module, config, held_out, processes
        self.diffusion = GaussianDiffusion()

    def loss(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        x0, numbers, seed = batch["image"], batch["number"].tolist(), self.config.loop.seed
        noise = unit_noise(x0.shape[1:], seed, numbers, x0.device).to(memory_format=_format(x0))
        timesteps = uniform_timesteps(seed, numbers, self.diffusion.timesteps).to(x0.device, non_blocking=True)
        config = self.config
        loss = self.diffusion.loss(module, x0, timesteps, noise, config.loss, min_snr_gamma=config.min_snr_gamma)
        return loss, {}

    def validate(self, module: nn.Module) -> Mapping[str, float]:
        """The loss over held-out slabs, unweighted, its mean and at each timestep."""
        if not len(self.held_out):
            return {}
        steps, device = self.config.validate_timesteps, self.processes.device
        sums, count = [0.0] * len(steps), 0
        for batch in fixed_batches(self.held_out, self.config.loop.batch, self.processes.rank, self.processes.world):
            x0, numbers = batch["image"].to(device), batch["number"].tolist()
            count += len(x0)
            for place, timestep in enumerate(steps):
                own = [number * len(steps) + place for number in numbers]
                noise = unit_noise(x0.shape[1:], self.config.loop.seed, own, device, Stream.VALIDATE)
                at = torch.full((len(x0),), timestep, device=device)
                sums[place] += len(x0) * float(self.diffusion.loss(module, x0, at, noise, self.config.loss))
        *sums, total = self.processes.total([*sums, float(count)])
        found = {f"loss_at_{timestep}": value / total for timestep, value in zip(steps, sums, strict=True)}
        return {"loss": sum(found.values()) / len(found), **found}


def _format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if last else torch.contiguous_format


def pretrain(
    source: Path,
    out: Path,
    config: PretrainConfig,
    *,
    processes: Processes | None = None,
    resume: bool = True,
    silent: bool = True,
) -> list[Pretrained]:
    """Train a denoiser for each plane and write it to ``out``, a weights folder.

    Args:
        source: a data set, as ``read_records`` reads it.
        out: also holds training/<plane>/checkpoints and training/<plane>/tensorboard.
        resume: take up what an earlier run left in ``out``; otherwise start again.

    Raises:
        InputError: the data or settings can't be used, or ``out`` holds another run's checkpoints.
        TrainingStoppedError, SystemExit: as ``loop.train``.
    """
    processes = processes or alone()
    for plane in config.planes:
        if plane not in PLANES:
            raise InputError(f"there is no plane {plane!r}; choose from {', '.join(PLANES)}.")
    _network(config)
    with folder_for_results(out):
        splits = load_splits(source, config.data, tuple(config.planes))
    return [_one_plane(plane, source, out, splits, config, processes, resume, silent) for plane in config.planes]


def _one_plane(
    plane: str,
    source: Path,
    out: Path,
    splits: Mapping[str, Sequence[Record]],
    config: PretrainConfig,
    processes: Processes,
    resume: bool,
    silent: bool,
) -> Pretrained:
    own = {name: [record for record in records if record.plane == plane] for name, records in splits.items()}
    cache = prepared_cache(config.data)
    fill(cache, [*own["train"], *own["validate"]], config.data.workers, processes, silent)
    unet = _network(config)
    slabs = covering_slabs(cache, own["validate"])
    held_out = FixedSlabs(cache, slabs[:: max(1, -(-len(slabs) // config.validate_slabs))])
    task = Denoising(unet, config, held_out, processes)
    with progress(f"Pre-training, {plane}", config.loop.log_every, silent or not processes.first) as tell:
        trained = train(
            task,
            Run(
                out=out / "training" / plane,
                samples=TrainingSlabs(cache, own["train"], config.loop.seed, config.augment),
                config=config.loop,
                optimiser=config.optimiser,
                identity=identity(plane, config, own["train"]),
                ema=config.ema,
                workers=config.data.workers,
                prefetch=config.data.prefetch,
                processes=processes,
                resume=resume,
                tell=tell,
            ),
        )
    counts = {name: len(records) for name, records in own.items()}
    digest = _write(plane, source, out, trained, config, counts, own["train"]) if processes.first else ""
    if config.picture_steps and processes.first:
        _draw(trained.module, config, out / "training" / plane / "sample.png")
    processes.wait()
    return Pretrained(plane, out / f"{plane}.safetensors", digest, trained.steps, counts, trained.figures)


def _network(config: PretrainConfig) -> UNet:
    """The untrained denoiser, the same for a seed on every process.

    Raises:
        InputError: the settings make no network, or none that fits the slabs it will see.
    """
    torch.manual_seed(seed_of(config.loop.seed, Stream.ORDER))
    size = config.data.size
    try:
        unet = UNet(**config.network.arguments())
        for side in {size, min(size, config.augment.crop or size)}:
            fold(torch.empty(1, 1, SLAB, side, side, device="meta"), unet.patch)
    except ValueError as error:
        raise InputError(f"network: {error}. Change network, data.size or augment.crop.") from error
    return unet


def identity(plane: str, config: PretrainConfig, records: Sequence[Record]) -> dict[str, Any]:
    """What a resumed run must have in common with the one before: network, loss, plane and data."""
    decisive = named(config, include={"network", "augment", "ema", "loss", "min_snr_gamma"})
    del decisive["network.checkpoint"]  # recomputing changes memory, not weights
    told = "\n".join(f"{record.image.name} {record.study} {record.patient}" for record in records)
    return {
        "task": "pretrain",
        "plane": plane,
        **decisive,
        "data.size": config.data.size,
        "data.preparation": config.data.preparation,
        "training series": f"{len(records)} ({hashlib.sha256(told.encode()).hexdigest()[:12]})",
    }


def _write(
    plane: str,
    source: Path,
    folder: Path,
    trained: Trained,
    config: PretrainConfig,
    counts: Mapping[str, int],
    seen: Sequence[Record],
) -> str:
    """The denoiser and its card, and the folder's settings; its digest."""
    figures = {name.removeprefix("validation/"): f"{v:.6g}" for name, v in trained.figures.items() if "loss" in name}
    defaults = type(config.network)().arguments()
    arguments = {n: v for n, v in config.network.arguments().items() if n != "checkpoint" and v != defaults[n]}
    origin = {
        "data": source.name,
        "preparation": f"{config.data.preparation}, {config.data.size} pixels",
        "series": ", ".join(f"{count} {name}" for name, count in counts.items()),
        "patients": patients_of(seen),
        "steps": str(trained.steps),
        "settings": config.model_dump_json(exclude={"planes", "data"}, exclude_defaults=True),
        "ema": f"{config.ema.decay} from {config.ema.start} every {config.ema.every}",
        **figures,
    }
    card = save_module(
        trained.module.cpu(), folder / f"{plane}.safetensors", "unet",
        half=config.half, arguments=arguments, plane=plane, origin=origin,
    )  # fmt: skip
    change_settings(folder, lambda settings: settings.model_copy(update={"size": config.data.size}))
    return card.digest


def _draw(denoiser: nn.Module, config: PretrainConfig, path: Path) -> None:
    """One slab drawn from noise by DDIM, its 16 slices in four rows, as they are displayed: i right, j up."""
    size = config.data.size
    slab = GaussianDiffusion().sample(
        denoiser, (1, 1, SLAB, size, size), seed=config.loop.seed, steps=config.picture_steps, eta=0.0
    )[0, 0]
    slices = ((slab.clamp(-1, 1) + 1) * 127.5).round().byte().numpy().transpose(0, 2, 1)[:, ::-1]
    rows = slices.reshape(4, SLAB // 4, size, size).transpose(0, 2, 1, 3).reshape(4 * size, SLAB // 4 * size)
    Image.fromarray(np.ascontiguousarray(rows)).save(path)
