"""At which timestep and behind which block features are best: tried on validation data, and written down."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.weights_folder import READ, FeaturePoint, Settings, load_card, load_settings
from orthokernels.training.config_heads import SweepConfig
from orthokernels.training.curves import progress
from orthokernels.training.distributed import Processes, alone
from orthokernels.training.features import FeatureStore, slab_maps, slabs_of
from orthokernels.training.metrics import auroc, mean_of
from orthokernels.training.randomness import Stream, generator
from orthokernels.training.selection import Selection, diagnosed, labelled, select
from orthokernels.training.series import Record
from orthokernels.training.weights_folder import (
    change_settings,
    load_denoiser,
    need_denoisers,
    started_from,
    written_to,
)

Rows = list[dict[str, Any]]
METRIC = {"diagnosis": "macro_auroc", "segmentation": "mean_recall"}


def sweep(
    data: Path,
    weights: Path,
    out: Path,
    config: SweepConfig,
    *,
    processes: Processes | None = None,
    silent: bool = True,
) -> Rows:
    """Score every timestep and block of every plane; write sweep_TASK.csv and a plot per plane to ``out``.

    Returns:
        Rows of plane, timestep, block, the task's metric, and whether it was chosen.

    Raises:
        InputError: data or weights can not be used, nobody is held out for validation, or ``out`` has heads that were
            trained at other points than those that would be written.
    """
    from orthokernels.training.plots import sweep_curves

    processes = processes or alone()
    with started_from(weights, out, config.data.preparation if config.write else None):
        need_denoisers(out, config.planes)
        settings, metric = load_settings(out), METRIC[config.task]
        usable = diagnosed if config.task == "diagnosis" else labelled
        selection = select(data, config.data, settings.size, config.planes, usable, processes, silent=silent)
        for plane in config.planes:
            _check_can_be_scored(data, plane, selection.of_plane(plane), config)
    rows: Rows = []
    for plane in config.planes:
        own = selection.of_plane(plane)
        unet, _ = load_denoiser(out, plane)
        found = _sweep_plane(plane, unet, own, config, processes, silent)
        best = max(found, key=lambda row: row[metric])
        rows += [{**row, "chosen": row is best} for row in found]
        with written_to(out):
            sweep_curves(found, metric, out / f"sweep_{config.task}_{plane}.png")
    with written_to(out), (out / f"sweep_{config.task}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if config.write:
        _write(out, config, [row for row in rows if row["chosen"]])
    return rows


def _check_can_be_scored(data: Path, plane: str, selection: Selection, config: SweepConfig) -> None:
    if not selection.validate:
        raise InputError(f"{data}: no {plane} series is held out to validate on. Set data.validate_share.")
    if config.task == "diagnosis" and not _scorable(selection):
        raise InputError(
            f"{data}: no finding is both there and not there among the {plane} series of each side, so that no "
            "point can be scored. Set data.validate_share higher."
        )


def _sweep_plane(
    plane: str, unet: UNet, selection: Selection, config: SweepConfig, processes: Processes, silent: bool
) -> Rows:
    blocks = config.blocks or tuple(n for n in unet.feature_names if n.startswith(("in_", "mid_")))
    unknown = [block for block in blocks if block not in unet.feature_names]
    if unknown:
        raise InputError(f"the {plane} network has no block {unknown[0]!r}; it has {', '.join(unet.feature_names)}.")
    folder = config.features or selection.cache.folder.parent / "features"
    store = FeatureStore(folder, unet, selection.cache, device=processes.device, seed=config.seed)
    rows: Rows = []
    with progress(f"Sweep, {plane}", 1, silent) as tell:
        for number, timestep in enumerate(config.timesteps):
            tell(number, len(config.timesteps), {})
            if config.task == "diagnosis":
                scores = _diagnosis_scores(store, selection, blocks, timestep, config)
            else:
                scores = _segmentation_scores(store, selection, blocks, timestep, config)
            rows += [
                {"plane": plane, "timestep": timestep, "block": block, METRIC[config.task]: score}
                for block, score in scores.items()
            ]
        tell(len(config.timesteps), len(config.timesteps), {})
    return rows


def _truth(selection: Selection) -> tuple[np.ndarray, np.ndarray]:
    """Findings [series, labels] to train and to validate on; NaN where unknown."""
    train, validate = (np.array([r.findings for r in side], float) for side in (selection.train, selection.validate))
    return train, validate


def _scorable(selection: Selection) -> list[int]:
    """The labels of which both classes occur to train and to validate on."""
    sides = _truth(selection)
    return [n for n in range(sides[0].shape[1]) if all({0.0, 1.0} <= set(truth[:, n]) for truth in sides)]


def _diagnosis_scores(
    store: FeatureStore, selection: Selection, blocks: Sequence[str], timestep: int, config: SweepConfig
) -> dict[str, float]:
    """Macro AUROC of a logistic regression per label on each block's mean features."""
    train, validate = (store.means(side, blocks, timestep) for side in (selection.train, selection.validate))
    taught, held_out = _truth(selection)
    scores = {}
    for block in blocks:
        areas = []
        for label in _scorable(selection):
            known, held = np.isfinite(taught[:, label]), np.isfinite(held_out[:, label])
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=config.regularisation, max_iter=1000))
            probe.fit(train[block].numpy()[known], taught[known, label])
            areas.append(auroc(held_out[held, label], probe.decision_function(validate[block].numpy()[held])))
        scores[block] = mean_of(areas) or 0.0
    return scores


def _segmentation_scores(
    store: FeatureStore, selection: Selection, blocks: Sequence[str], timestep: int, config: SweepConfig
) -> dict[str, float]:
    """Mean recall over classes of a ridge classifier of voxels, each given the nearest feature of the block's map."""
    numbers = iter(range(len(selection.train) + len(selection.validate)))
    sampled = {
        side: [_sample(store, record, blocks, timestep, config, next(numbers)) for record in records]
        for side, records in (("train", selection.train), ("validate", selection.validate))
    }
    scores = {}
    for block in blocks:
        (x, y), (held_x, held_y) = (
            (np.concatenate([own[block] for own, _ in found]), np.concatenate([classes for _, classes in found]))
            for found in (sampled["train"], sampled["validate"])
        )
        probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1 / config.regularisation))
        probe.fit(x, y)
        seen = np.isin(held_y, np.unique(y))
        scores[block] = float(balanced_accuracy_score(held_y[seen], probe.predict(held_x[seen])))
    return scores


@torch.inference_mode()
def _sample(
    store: FeatureStore, record: Record, blocks: Sequence[str], timestep: int, config: SweepConfig, number: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features [voxels, channels] by block and classes [voxels] of a series' voxels: of each class as many as asked.

    Each series gets noise of its own: the same noise in all would tell the classifier where in the volume it is.
    """
    slabs, starts = slabs_of(store.cache, record)
    labels = store.cache.labels(record)
    truth = np.stack([labels[start : start + slabs.shape[2]] for start in starts])  # [slabs, 16, S, S]
    rng = generator(config.seed, Stream.VALIDATE, number)
    chosen = np.concatenate(
        [
            rng.permutation(np.flatnonzero(truth.ravel() == value))[: config.voxels]
            for value in np.unique(truth[truth >= 0])
        ]
    )
    places = np.stack(np.unravel_index(chosen, truth.shape))  # [4, voxels]: slab, then depth, height, width
    x0 = slabs.to(store.device).contiguous(memory_format=torch.channels_last_3d)
    maps = slab_maps(store.unet, x0, starts, blocks, timestep, seed=store.seed + 1 + number)
    return {block: _at(maps[block], places, truth.shape[1:]) for block in blocks}, truth.ravel()[chosen]


def _at(maps: Tensor, places: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """The feature under each voxel, [voxels, channels]."""
    slab, *position = (torch.from_numpy(axis) for axis in places)
    d, h, w = (p * small // side for p, small, side in zip(position, maps.shape[2:], sides, strict=True))
    return maps.cpu().float()[slab, :, d, h, w].numpy()


def _head_of(out: Path, stem: str) -> Path | None:
    """A module of a task and plane that reads features at the task's point; None where there is none."""
    names = (f"{stem}.safetensors", *(f"{stem}.{part}.safetensors" for part in ("head", *READ)))
    return next((out / name for name in names if (out / name).is_file()), None)


def _trained_at(head: Path, point: FeaturePoint, chosen: FeaturePoint) -> tuple[str, str]:
    """Timestep and block that a head was trained at: by its card, else by the settings' ``point``. A multiscale head
    reads every level, so that the block which is ``chosen`` is its own.
    """
    card = load_card(head, None)
    block = chosen.block if card.module == "multiscale_segmentation_head" else point.block
    return card.origin.get("timestep", str(point.timestep)), card.origin.get("block", block)


def _write(out: Path, config: SweepConfig, chosen: Rows) -> None:
    """The chosen points, unless heads are there that were trained at others."""
    task = config.data.joint if config.task == "diagnosis" else "segmentation"
    command = "diagnose" if config.task == "diagnosis" else "segment"
    settings = load_settings(out)
    for row in chosen:
        plane, point = row["plane"], FeaturePoint(timestep=row["timestep"], block=row["block"])
        head = _head_of(out, f"{plane}.{task}")
        if head is None:
            continue
        timestep, block = _trained_at(head, settings.point(task, plane), point)
        if (timestep, block) != (str(point.timestep), point.block):
            raise InputError(
                f"{head}: was trained at timestep {timestep} behind {block}, and the sweep chose "
                f"timestep {point.timestep} behind {point.block}, which is therefore not written into weights.json. "
                f"Train it again there (orthokernels train {command} --set "
                f"points.{plane}.timestep={point.timestep} --set points.{plane}.block={point.block})."
            )

    def add(settings: Settings) -> Settings:
        points = {row["plane"]: FeaturePoint(timestep=row["timestep"], block=row["block"]) for row in chosen}
        return settings.model_copy(
            update={"points": {**settings.points, task: {**settings.points.get(task, {}), **points}}}
        )

    change_settings(out, add)
