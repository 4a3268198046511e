"""A denoiser's encoder and a segmentation head as one network, its loss, and its validation, for the training loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.diffusion import GaussianDiffusion
from orthokernels.models.orthodiffusion.segmentation import MultiscaleSegmentationHead
from orthokernels.models.orthodiffusion.unet import UNet, level_starts
from orthokernels.training.distributed import Processes, alone
from orthokernels.training.features import noise_for
from orthokernels.training.loader import Batch, FixedSlabs, fixed_batches
from orthokernels.training.randomness import unit_noise
from orthokernels.training.series import IGNORED


class FeatureNetwork(nn.Module):
    """The part of a denoiser that makes named features, in front of what reads them.

    Encoder and middle learn where ``trainable``; decoder and time embedding never do, as published. The encoder's
    ``frozen_levels`` finest levels stay as they are too: most of a step's work is there, and a backward pass that ends
    at the next level spares two thirds of it.
    """

    def __init__(self, unet: UNet, blocks: Sequence[str], *, trainable: bool, frozen_levels: int = 0) -> None:
        super().__init__()
        self.unet, self.blocks, self.trainable = unet, tuple(blocks), trainable
        self.first = first_to_learn(unet, frozen_levels)
        unet.requires_grad_(False)
        for block in self._learning():
            block.requires_grad_(True)

    def _learning(self) -> Iterator[nn.Module]:
        """Encoder and middle blocks that the features depend on."""
        if not self.trainable:
            return
        last = max(self.unet.feature_names.index(name) for name in self.blocks)
        for name, block in self.unet._blocks()[self.first : last + 1]:
            if name.startswith(("in_", "mid_")):
                yield block

    def parameters_that_learn(self) -> list[nn.Parameter]:
        return [parameter for block in self._learning() for parameter in block.parameters()]

    def forward(self, noisy: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            return self.unet.features(noisy, timesteps, self.blocks)


def first_to_learn(unet: UNet, frozen_levels: int) -> int:
    """The encoder block behind so many frozen levels.

    Raises:
        InputError: the encoder has no more levels.
    """
    starts = level_starts(unet)
    if frozen_levels >= len(starts):
        raise InputError(f"frozen_levels = {frozen_levels}: the encoder has {len(starts)} levels, and one must learn.")
    return starts[frozen_levels]


class SegmentationNetwork(nn.Module):
    """Noisy and clean slabs [batch, 1, 16, S, S] to logits [batch, classes, 16, S, S]."""

    def __init__(self, unet: UNet, head: nn.Module, block: str, *, trainable: bool) -> None:
        super().__init__()
        multiscale = isinstance(head, MultiscaleSegmentationHead)
        blocks = head.feature_names(unet) if multiscale else (block,)  # type: ignore[operator]
        self.features = FeatureNetwork(unet, blocks, trainable=trainable)
        self.head = head
        self.multiscale = multiscale

    def forward(self, x0: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        found = self.features(noisy, timesteps)
        return self.head(found, x0) if self.multiscale else self.head(*found.values())


class SegmentationTask:
    """For ``loop.train``: what ``segment`` and the label-efficiency curve minimise.

    Args:
        module: takes (x0, noisy, timesteps), or x0 alone where ``timestep`` is None.
        timestep: of the features' noise.
        classes: with the background.
        validation: slabs to score Dice on.
    """

    def __init__(
        self,
        module: nn.Module,
        timestep: int | None,
        classes: int,
        validation: FixedSlabs,
        *,
        cross_entropy: float = 0.2,
        seed: int = 0,
        processes: Processes | None = None,
    ) -> None:
        self.module, self.timestep, self.classes = module, timestep, classes
        self.validation, self.cross_entropy, self.seed = validation, cross_entropy, seed
        self.processes = processes or alone()
        self.diffusion = GaussianDiffusion()

    def loss(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        x0, labels = batch["image"], batch["labels"]
        if self.timestep is None:
            logits = module(x0)
        else:
            noise = unit_noise(x0.shape[1:], self.seed, batch["number"].tolist(), x0.device)
            logits = self._logits(module, x0, noise)
        entropy, overlap = segmentation_losses(logits.float(), labels)
        return self.cross_entropy * entropy + overlap, {
            "cross_entropy": entropy.detach(),
            "soft_dice": overlap.detach(),
        }

    def _logits(self, module: nn.Module, x0: Tensor, noise: Tensor) -> Tensor:
        timesteps = torch.full((len(x0),), int(self.timestep or 0), device=x0.device)
        return module(x0, self.diffusion.add_noise(x0, timesteps, noise.to(x0)), timesteps)

    def validate(self, module: nn.Module) -> Mapping[str, float]:
        """Mean over structures of the Dice over all validation voxels, and each structure's."""
        table = torch.zeros(self.classes, self.classes, dtype=torch.float64)
        own = self.processes
        for batch in fixed_batches(self.validation, 4, own.rank, own.world):
            table += confusion(self.predict(module, batch), batch["labels"], self.classes)
        table = torch.tensor(own.total(table.flatten().tolist()), dtype=torch.float64).view_as(table)
        either = table.sum(dim=0) + table.sum(dim=1)
        each = {f"dice/{c}": float(2 * table[c, c] / either[c]) for c in range(1, self.classes) if either[c]}
        return {"dice": sum(each.values()) / len(each) if each else math.nan, **each}

    @torch.no_grad()
    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Classes of validation slabs, with the pipeline's noise, int64 [batch, 16, S, S] on the CPU."""
        x0 = batch["image"].to(self.processes.device)
        x0 = x0.contiguous(memory_format=torch.channels_last_3d)
        if self.timestep is None:
            logits = module(x0)
        else:
            logits = self._logits(module, x0, noise_for(x0, batch["start"].tolist(), seed=0))
        return logits.argmax(dim=1).cpu()


def segmentation_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and one minus soft Dice, both over voxels that somebody labelled.

    Soft Dice is taken over all voxels of the batch and averaged over the structures that the batch has; background
    does not count. A structure that the batch lacks is held down by the cross-entropy alone: in soft Dice a voxel of it
    would weigh as much as all voxels of a structure that is there, and one that few slabs show would never be learnt.

    Args:
        logits: [batch, classes, D, H, W].
        labels: [batch, D, H, W], -1 = ignored.
    """
    log = F.log_softmax(logits, dim=1)
    known = labels != IGNORED
    count = known.sum().clamp(min=1)
    target = labels.clamp(min=0)
    entropy = -(log.gather(1, target[:, None])[:, 0] * known).sum() / count
    probability = log.exp() * known[:, None]
    classes = logits.shape[1]
    right = (probability.gather(1, target[:, None])[:, 0]).flatten()  # of the true class, 0 where ignored
    overlap = right.new_zeros(classes).index_add(0, target.flatten(), right)
    sizes = torch.bincount(target[known], minlength=classes).to(right)
    sums = probability.sum(dim=(0, 2, 3, 4)) + sizes
    dice = (2 * overlap + 1) / (sums + 1)
    here = (sizes > 0).to(dice)
    here[0] = 0
    return entropy, 1 - (dice * here).sum() / here.sum().clamp(min=1)


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Voxels by true and predicted class, float64 [classes, classes]; ignored voxels do not count."""
    known = labels >= 0
    pairs = labels[known] * classes + predicted[known]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes).double()


def groups(network: nn.Module, encoder_rate: float) -> list[dict[str, Any]]:
    """The optimiser's groups of a network with ``features``: the rest at the full rate, the encoder at its share."""
    encoder = network.features.parameters_that_learn()  # type: ignore[union-attr,operator]
    held = {id(parameter) for parameter in network.features.parameters()}  # type: ignore[union-attr]
    found = [{"params": [p for p in network.parameters() if id(p) not in held], "scale": 1.0}]
    return [*found, {"params": encoder, "scale": encoder_rate}] if encoder else found
