"""Stage I of the poolings that keep places: which few of their many numbers follow the labels, and a head on those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orthokernels.models.orthodiffusion.inference import slab_features, slab_output
from orthokernels.models.orthodiffusion.regional_pooling import GridPool, StructurePool
from orthokernels.models.orthodiffusion.weights import PlaneWeights, digest_of
from orthokernels.training.cache import PreparedCache, entry_path, write_array
from orthokernels.training.config_heads import HeadConfig
from orthokernels.training.features import SlabMaps, Tell, mean_per_series, read_array, slabs_of
from orthokernels.training.fusion_training import Standardisation, fit, seeded
from orthokernels.training.probe import PlaneClassifier
from orthokernels.training.series import Record

_VERSION = 1


def train_regional_probe(
    build: Callable[[int], GridPool | StructurePool],
    numbers: Tensor,
    truth: Tensor,
    weight: Tensor,
    each: int,
    config: HeadConfig,
    *,
    seed: int,
) -> PlaneClassifier:
    """Choose a pooling's numbers on the training series, and train a head on them.

    For each label those are kept whose mean differs most between series with and without it, in units of the standard
    error (Welch's t). Hundreds of studies can't tell thousands of numbers apart; they can tell which few follow it.

    Args:
        build: the pooling that keeps so many numbers.
        numbers: [series, numbers], all that the pooling makes; NaN where a structure was not found.
        truth: [series, labels], NaN where unknown.
        weight: [series].
        each: numbers kept for each label.
    """
    usual = numbers.nanmedian(dim=0).values.nan_to_num()
    numbers = torch.where(numbers.isfinite(), numbers, usual)
    places = chosen_numbers(numbers, truth, each)
    pooling = build(len(places))
    pooling.places.copy_(places)
    if isinstance(pooling, StructurePool):
        pooling.usual.copy_(usual[places])
    classifier = seeded(lambda: PlaneClassifier(pooling, truth.shape[1]), seed)
    inputs = numbers[:, places]
    scale = Standardisation.of(inputs, enabled=config.standardise)
    fit(classifier.head, [scale(inputs)], truth, weight, config, seed=seed)
    scale.fold_into(classifier.head)
    return classifier


def grid_arguments(channels: int, cells: Sequence[int], plane: str) -> dict[str, Any]:
    """Arguments of a plane's grid.

    The other side's coronal and axial views are mirrored; its sagittal slices are reversed.
    """
    return {"channels": channels, "cells": list(cells), "mirror": plane != "sagittal"}


@torch.no_grad()
def grid_numbers_of(pooling: GridPool, maps: SlabMaps) -> Tensor:
    """All of a grid's numbers, mean over each series' slabs, [series, numbers]."""
    rows = torch.arange(len(maps)).split(64)
    found = [(pooling.every(own), owner) for own, owner in (maps[chosen] for chosen in rows)]
    return torch.cat([mean_per_series(values, owner) for values, owner in found])


def chosen_numbers(numbers: Tensor, truth: Tensor, each: int) -> Tensor:
    """Columns of [series, numbers] with the largest absolute t between a label's values, ``each`` for each label.

    Args:
        truth: [series, labels]; NaN where unknown.

    Returns:
        int64, ascending, without repetition: ``each`` times the labels in all. A column that two labels share leaves a
        place, which goes to the next best of any label.
    """
    t = torch.zeros(truth.shape[1], numbers.shape[1], dtype=torch.float64)
    for row, label in zip(t, truth.T, strict=True):
        without, having = (numbers[label == value].double() for value in (0, 1))
        if min(len(without), len(having)) > 1:
            error = (without.var(dim=0) / len(without) + having.var(dim=0) / len(having)).sqrt()
            row += (having.mean(dim=0) - without.mean(dim=0)).abs() / error.clamp(min=1e-12)
    each = min(each, numbers.shape[1] // truth.shape[1])
    kept = dict.fromkeys(t.topk(each, dim=1).indices.flatten().tolist())
    rest = t.amax(dim=0).argsort(descending=True, stable=True).tolist()
    for column in rest:
        if len(kept) == each * truth.shape[1]:
            break
        kept.setdefault(column)
    return torch.tensor(sorted(kept))


@torch.inference_mode()
def structure_sums(
    weights: PlaneWeights,
    cache: PreparedCache,
    records: Sequence[Record],
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    draws: int = 1,
    tell: Tell = lambda done, total: None,
) -> Tensor:
    """What ``weights.pooling`` makes of each series, mean over its slabs, float32 [series, width]; kept on disk.

    Every slab goes the pipeline's way: its noise, its segmentation, its pooling.

    Args:
        weights: with a segmentation head and a ``StructurePool``; moved to ``device``.
        folder: of the entries, named by all that they depend on.
    """
    pooling = weights.pooling
    assert isinstance(pooling, StructurePool)
    modules = {name: module for name, module in weights.modules().items() if module is not pooling}
    for module in modules.values():
        module.eval().to(device)
    for unet in weights.networks():
        unet.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    digest = digest_of({f"{name}/{key}": t for name, own in modules.items() for key, t in own.state_dict().items()})
    told = f"{_VERSION} {digest} {weights.timestep} {weights.block} {weights.segmentation_point} {draws} "
    told += f"{pooling.cells} {pooling.mirror} {pooling.bins}"
    found = []
    for number, record in enumerate(records):
        tell(number, len(records))
        path = entry_path(folder, f"{told} {cache.key(record)}", "sums")
        entry = read_array(path)
        if entry is None:
            entry = _sums_of_series(weights, *slabs_of(cache, record), device, draws)
            write_array(path, entry)
        found.append(torch.from_numpy(entry))
    return torch.stack(found)


def _sums_of_series(
    weights: PlaneWeights, slabs: Tensor, starts: Sequence[int], device: torch.device | str, draws: int
) -> np.ndarray:
    made = []
    for slab, start in zip(slabs, starts, strict=True):
        x0 = slab[None].to(device).contiguous(memory_format=torch.channels_last_3d)
        vector = slab_output(weights, slab_features(weights, x0, seed=0, draws=draws, sample=start), x0).vector
        assert vector is not None
        made.append(vector[0])
    return torch.stack(made).mean(dim=0).float().cpu().numpy()
