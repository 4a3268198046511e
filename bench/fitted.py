"""Weights of the published size that label something like a joint: ``python -m orthokernels.bench.fitted``.

    orthokernels phantom --out DATA --seed 3 --nifti
    python -m orthokernels.bench.fitted --data DATA --out W

Random weights label noise, and a report of noise takes longer to draw than one of a joint. Here the denoisers stay
random, and each plane's published segmentation head is fitted to the label maps of one digital study, on the features
and the noise that a run gives it. They are for timing that study, and good for nothing else.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from orthokernels.acceleration import accelerate, restore
from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.study_model import TorchPlane, load_torch
from orthokernels.models.orthodiffusion.untrained import save_random
from orthokernels.models.orthodiffusion.weights import load_weights, save_module
from orthokernels.tasks import PLANES
from orthokernels.training.config import DataConfig
from orthokernels.training.distributed import alone
from orthokernels.training.loader import FixedSlabs, covering_slabs
from orthokernels.training.segmentation_task import segmentation_losses
from orthokernels.training.selection import labelled, select
from orthokernels.training.weights_folder import change_settings

NAME = "random:0, heads fitted to a digital joint"
RATE = 5e-4  # with 3e-3 all stays background


def fit(head: nn.Module, features: list[Tensor], labels: list[Tensor], steps: int) -> None:
    """Fit a segmentation head to label maps [1, 16, S, S] of feature maps [1, C, D, H, W], one after the other."""
    head.requires_grad_(True).train()
    accelerate(head, memory_format=None)
    optimiser = torch.optim.Adam(head.parameters(), RATE)
    for step in range(steps):
        number = step % len(features)
        entropy, overlap = segmentation_losses(head(features[number]), labels[number])
        (entropy + overlap).backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % 20 == 0:
            print(f"  step {step}: cross-entropy {entropy.item():.2f}, soft Dice loss {overlap.item():.2f}", flush=True)
    restore(head)


def _of_plane(plane: TorchPlane, slabs: FixedSlabs) -> tuple[list[Tensor], list[Tensor]]:
    """What the plane's head is given in a run, and what it should say."""
    features, labels = [], []
    for sample in (slabs[number] for number in range(len(slabs))):
        found = plane.features(sample["image"][0].numpy(), seed=0, draws=1, sample=sample["start"])
        (read,) = found.segmentation.values()
        features.append(read.clone())
        labels.append(sample["labels"][None])
    return features, labels


def main(
    data: Annotated[Path, typer.Option(help="A digital study as NIfTI, of 'orthokernels phantom --nifti'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the weights; a new one.")],
    steps: Annotated[int, typer.Option(min=1, help="Of each plane.")] = 240,
) -> None:
    """Write random denoisers and heads fitted to one study as a weights folder."""
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {out}: can't be made ({error.strerror}). Name a new folder.") from error
    save_random(0, out)
    change_settings(out, lambda settings: settings.model_copy(update={"name": NAME}))
    model = load_torch(load_weights(str(out)), native=True)
    with tempfile.TemporaryDirectory() as cache:
        settings = DataConfig(preparation="full", size=model.size, validate_share=0.0, workers=0, cache=Path(cache))
        chosen = select(data, settings, model.size, PLANES, labelled, alone())
        for name, plane in model.planes.items():
            print(name)
            own = chosen.of_plane(name)
            head = plane.weights.segmentation
            assert head is not None
            slabs = FixedSlabs(own.cache, covering_slabs(own.cache, own.train), labelled=True)
            fit(head, *_of_plane(plane, slabs), steps)
            save_module(
                head, out / f"{name}.segmentation.safetensors", "segmentation_head", plane=name,
                arguments={"classes": head.classes}, trained=False, origin={"made by": "bench.fitted"},
            )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
