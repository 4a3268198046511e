"""One run of the label-efficiency comparison: a method's network or its heads alone, trained, then scored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orthokernels.models.orthodiffusion.regional_pooling import GridPool
from orthokernels.models.orthodiffusion.segmentation import MultiscaleSegmentationHead
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.weights_folder import FeaturePoint
from orthokernels.training.baselines import resnet18, unet3d
from orthokernels.training.config_heads import LabelsConfig, SegmentConfig
from orthokernels.training.curves import progress
from orthokernels.training.distributed import Processes
from orthokernels.training.features import FeatureStore, SlabMaps
from orthokernels.training.finetune import DiagnosisTask, SlabClassifier, series_logits
from orthokernels.training.fusion_training import seeded
from orthokernels.training.loader import FixedSlabs, TrainingSlabs, covering_slabs, fixed_batches
from orthokernels.training.loop import Run, train
from orthokernels.training.plane_heads import truth_and_weight
from orthokernels.training.probe import new_classifier, vectors_of
from orthokernels.training.regional_probe import grid_arguments, grid_numbers_of, train_regional_probe
from orthokernels.training.segment import CLASSES, head_arguments, map_of
from orthokernels.training.segmentation_task import SegmentationNetwork, SegmentationTask, confusion, groups
from orthokernels.training.selection import Selection
from orthokernels.training.weights_folder import load_denoiser


def train_and_score(
    method: str,
    seed: int,
    selection: Selection,
    weights: Path,
    config: LabelsConfig,
    folder: Path,
    identity: Mapping[str, Any],
    processes: Processes,
    silent: bool,
) -> list[list[Any]]:
    """Train on ``selection.train``, score on ``selection.validate`` (the test set).

    Args:
        config: with the point at which features are taken.
        folder: of the run, whose checkpoints are taken up where ``identity`` is theirs.

    Returns:
        Dice of each series and structure (None where neither map has it), or probability of each series and label.
    """
    point = config.point
    assert point is not None
    if config.task == "diagnosis" and config.pooling == "grid" and method != "monai":
        return _grid_probabilities(method, seed, selection, weights, config, point)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, scale = _network(method, weights, point, config, seed)
    timestep = None if method == "monai" else point.timestep
    segments = config.task == "segmentation"
    task: Any
    if segments:
        slabs = FixedSlabs(selection.cache, covering_slabs(selection.cache, selection.validate), labelled=True)
        task = SegmentationTask(module, timestep, CLASSES, slabs, seed=seed, processes=processes)
    else:
        truth, weight = truth_and_weight(selection.train)
        task = DiagnosisTask(module, timestep, truth, weight, selection, seed=seed, processes=processes)
    run = Run(
        out=folder,
        samples=TrainingSlabs(selection.cache, selection.train, seed, config.augment, labelled=segments),
        config=config.loop.model_copy(update={"seed": seed}),
        optimiser=config.optimiser,
        identity=dict(identity),
        groups=None if scale is None else groups(module, scale),
        workers=config.data.workers,
        prefetch=config.data.prefetch,
        processes=processes,
    )
    with progress(folder.name, config.loop.log_every, silent or not processes.first) as run.tell:
        train(task, run)
    module.eval()
    return dice_per_series(task, module, selection) if segments else series_logits(task, module).sigmoid().tolist()


def _network(
    method: str, weights: Path, point: FeaturePoint, config: LabelsConfig, seed: int
) -> tuple[nn.Module, float | None]:
    """The network, and its encoder's share of the rate; None where all parameters are alike."""
    from orthokernels.tasks import LABELS

    labels = len(LABELS[config.data.joint])
    if method == "monai":
        return (unet3d(CLASSES) if config.task == "segmentation" else resnet18(labels)), None
    unet, card = load_denoiser(weights, config.plane)
    if method in ("scratch", "untrained"):
        unet = UNet(**card.arguments)
    scale = {"pretrained": config.encoder_rate, "scratch": 1.0, "frozen": 0.0, "untrained": 0.0}[method]
    if config.task == "segmentation":
        chosen = SegmentConfig(head_channels=config.head_channels)
        head = MultiscaleSegmentationHead(**head_arguments(unet, card.arguments, point.block, chosen))
        return SegmentationNetwork(unet, head, point.block, trainable=scale > 0), scale
    channels = map_of(unet, point.block)[0]
    classifier = new_classifier(config.pooling, channels, config.pooling_heads, labels, seed=seed)
    return SlabClassifier(unet, classifier, point.block, trainable=scale > 0), scale


def _grid_probabilities(
    method: str, seed: int, selection: Selection, weights: Path, config: LabelsConfig, point: FeaturePoint
) -> list[list[float]]:
    """Probabilities [series, labels] of a grid's head, trained on features of the denoiser or of random weights."""
    unet, card = load_denoiser(weights, config.plane)
    if method == "untrained":
        unet = seeded(lambda: UNet(**card.arguments), seed)
    store = FeatureStore(selection.cache.folder.parent / "features", unet, selection.cache)
    train, test = (
        SlabMaps.of(store.maps(records, point.block, point.timestep))
        for records in (selection.train, selection.validate)
    )
    arguments = grid_arguments(train.maps.shape[1], config.grid, config.plane)
    classifier = train_regional_probe(
        lambda kept: GridPool(**arguments, kept=kept), grid_numbers_of(GridPool(**arguments, kept=1), train),
        *truth_and_weight(selection.train), config.grid_kept, config.probe, seed=seed,
    )  # fmt: skip
    with torch.no_grad():
        return classifier.head(vectors_of(classifier, test)).sigmoid().tolist()


@torch.no_grad()
def dice_per_series(task: SegmentationTask, module: nn.Module, selection: Selection) -> list[list[float | None]]:
    """Dice of each test series and structure on the prepared grid; slices that two slabs share count twice."""
    place = {id(record): n for n, record in enumerate(selection.validate)}
    tables = torch.zeros(len(place), CLASSES, CLASSES, dtype=torch.float64)
    for batch in fixed_batches(task.validation, 4):
        predicted = task.predict(module, batch)
        for number, own, truth in zip(batch["number"].tolist(), predicted, batch["labels"], strict=True):
            tables[place[id(task.validation.slabs[number][0])]] += confusion(own, truth, CLASSES)
    found = []
    for table in tables:
        either = table.sum(dim=0) + table.sum(dim=1)
        found.append([float(2 * table[c, c] / either[c]) if either[c] else None for c in range(1, CLASSES)])
    return found
