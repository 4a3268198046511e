"""Stage I with the encoder: denoiser, pooling and head learn together, encoder and middle at a share of the rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from orthokernels.models.orthodiffusion.diffusion import GaussianDiffusion
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.weights_folder import FeaturePoint
from orthokernels.training.config import OptimiserConfig, named
from orthokernels.training.config_heads import DiagnoseConfig
from orthokernels.training.curves import progress
from orthokernels.training.distributed import Processes
from orthokernels.training.features import noise_for
from orthokernels.training.fusion_training import mean_one, weighted_bce
from orthokernels.training.loader import Batch, FixedSlabs, TrainingSlabs, covering_slabs, fixed_batches
from orthokernels.training.loop import Run, steps_of, train
from orthokernels.training.metrics import auroc, mean_of
from orthokernels.training.probe import PlaneClassifier
from orthokernels.training.randomness import unit_noise
from orthokernels.training.segmentation_task import FeatureNetwork, groups
from orthokernels.training.selection import Selection


class SlabClassifier(nn.Module):
    """Noisy slabs [batch, 1, 16, S, S] to logits [batch, labels]."""

    def __init__(
        self, unet: UNet, classifier: PlaneClassifier, block: str, *, trainable: bool, frozen_levels: int = 0
    ) -> None:
        super().__init__()
        self.features = FeatureNetwork(unet, (block,), trainable=trainable, frozen_levels=frozen_levels)
        self.classifier = classifier

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        maps = next(iter(self.features(noisy, timesteps).values()))
        return self.classifier((maps, torch.arange(len(maps), device=maps.device)))


class DiagnosisTask:
    """For ``loop.train``: binary cross-entropy of a study's findings from one slab of one of its series.

    Args:
        module: takes (noisy, timesteps), or the clean slab alone where ``timestep`` is None.
        truth, weight: of the training records, [series, labels] and [series], weights of any scale.
        validation: slabs, and their series' findings in ``validation_truth``; a series' logits are its slabs' mean.
    """

    def __init__(
        self,
        module: nn.Module,
        timestep: int | None,
        truth: Tensor,
        weight: Tensor,
        selection: Selection,
        *,
        seed: int,
        processes: Processes,
    ) -> None:
        self.module, self.timestep, self.seed, self.processes = module, timestep, seed, processes
        self.truth, self.weight = truth.to(processes.device), mean_one(weight).to(processes.device)
        self.held_out = selection.validate
        self.validation = FixedSlabs(selection.cache, covering_slabs(selection.cache, self.held_out))
        self.diffusion = GaussianDiffusion()

    def loss(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        x0, rows = batch["image"], batch["record"]
        noise = None
        if self.timestep is not None:
            noise = unit_noise(x0.shape[1:], self.seed, batch["number"].tolist(), x0.device)
        logits = self._logits(module, x0, noise)
        return weighted_bce(logits.float(), self.truth[rows], self.weight[rows]), {}

    def _logits(self, module: nn.Module, x0: Tensor, noise: Tensor | None) -> Tensor:
        if noise is None or self.timestep is None:
            return module(x0)
        timesteps = torch.full((len(x0),), self.timestep, device=x0.device)
        return module(self.diffusion.add_noise(x0, timesteps, noise.to(x0)), timesteps)

    def validate(self, module: nn.Module) -> Mapping[str, float]:
        """Macro AUROC over the validation series."""
        if not self.held_out:
            return {}
        logits = series_logits(self, module)
        truth = torch.tensor([record.findings for record in self.held_out])
        areas = [auroc(truth[known, n].numpy(), logits[known, n].numpy()) for n, known in enumerate(truth.isfinite().T)]
        area = mean_of(areas)
        return {"macro_auroc": math.nan if area is None else area}


@torch.no_grad()
def series_logits(task: DiagnosisTask, module: nn.Module) -> Tensor:
    """Mean logits over each validation series' slabs, [series, labels], the same in every process."""
    sums: dict[int, Tensor] = {}
    place = {id(record): n for n, record in enumerate(task.held_out)}
    own = task.processes
    for batch in fixed_batches(task.validation, 4, own.rank, own.world):
        x0 = batch["image"].to(own.device).contiguous(memory_format=torch.channels_last_3d)
        noise = None if task.timestep is None else noise_for(x0, batch["start"].tolist(), seed=0)
        for number, logits in zip(batch["number"].tolist(), task._logits(module, x0, noise).float().cpu(), strict=True):
            row = place[id(task.validation.slabs[number][0])]
            sums[row] = sums.get(row, 0) + logits
    labels = task.truth.shape[1]
    counts = torch.bincount(torch.tensor([place[id(record)] for record, _ in task.validation.slabs]))
    total = torch.stack([sums.get(n, torch.zeros(labels)) for n in range(len(task.held_out))])
    return torch.tensor(own.total(total.flatten().tolist())).view_as(total) / counts[:, None]


def finetune_plane(
    unet: UNet,
    classifier: PlaneClassifier,
    point: FeaturePoint,
    selection: Selection,
    truth: Tensor,
    weight: Tensor,
    config: DiagnoseConfig,
    out: Path,
    identity: Mapping[str, str],
    *,
    processes: Processes,
    resume: bool,
    silent: bool,
) -> None:
    """Train ``unet``'s encoder and middle and ``classifier`` in place."""
    frozen = config.frozen_levels
    network = SlabClassifier(unet, classifier, point.block, trainable=True, frozen_levels=frozen)
    task = DiagnosisTask(network, point.timestep, truth, weight, selection, seed=config.seed, processes=processes)
    head = config.finetune
    series, passes = len(selection.train), config.loop.accumulate * processes.world
    batch = head.batch or math.ceil(series / passes)  # all at once: of all passes and processes together
    loop = config.loop.model_copy(update={"batch": batch, "seed": config.seed})
    run = Run(
        out=out,
        samples=TrainingSlabs(selection.cache, selection.train, config.seed, config.augment),
        config=loop.model_copy(update={"steps": steps_of(head.epochs, series, loop, processes)}),
        optimiser=OptimiserConfig(rate=head.learning_rate, weight_decay=head.weight_decay, schedule="cosine"),
        identity={
            "task": "diagnose",
            **selection.identity(),
            **named(config, include={"pooling", "pooling_heads", "start", "encoder_rate", "frozen_levels", "augment"}),
            **identity,
        },
        groups=groups(network, config.encoder_rate),
        workers=config.data.workers,
        prefetch=config.data.prefetch,
        processes=processes,
        resume=resume,
    )
    with progress("Fine-tuning", config.loop.log_every, silent or not processes.first) as run.tell:
        train(task, run)
    network.to("cpu").eval()
