"""Stage I of the diagnosis: one plane's pooling and head, on frozen features or with the encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.regional_pooling import GridPool, StructurePool
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.orthodiffusion.weights import PlaneWeights
from orthokernels.models.weights_folder import FeaturePoint, Settings
from orthokernels.tasks import PLANES
from orthokernels.training.config_heads import DiagnoseConfig
from orthokernels.training.curves import progress
from orthokernels.training.diagnosis_files import PlaneResult
from orthokernels.training.distributed import Processes
from orthokernels.training.features import FeatureStore, SlabMaps, Tell
from orthokernels.training.finetune import finetune_plane
from orthokernels.training.probe import PlaneClassifier, new_classifier, pooling_arguments, train_probe, vectors_of
from orthokernels.training.regional_probe import grid_arguments, grid_numbers_of, structure_sums, train_regional_probe
from orthokernels.training.segment import map_of
from orthokernels.training.selection import Selection
from orthokernels.training.series import Record
from orthokernels.training.weights_folder import (
    load_denoiser,
    load_segmentation,
    load_segmentation_encoder,
)


@dataclass(frozen=True)
class _Stage:
    """What every way of training a plane's heads needs."""

    plane: str
    selection: Selection
    config: DiagnoseConfig
    processes: Processes
    unet: UNet
    point: FeaturePoint
    channels: int
    truth: Tensor
    weight: Tensor
    seed: int

    @property
    def features(self) -> Path:
        return self.config.features or self.selection.cache.folder.parent / "features"

    def grid(self) -> dict[str, Any]:
        return grid_arguments(self.channels, self.config.grid, self.plane)


class _Heads(NamedTuple):
    """A pooling and head, the pooling's arguments, and the vectors of training and validation series."""

    classifier: PlaneClassifier
    arguments: dict[str, Any]
    train: Tensor
    validate: Tensor


def train_plane(
    plane: str,
    selection: Selection,
    out: Path,
    settings: Settings,
    config: DiagnoseConfig,
    processes: Processes,
    resume: bool,
    silent: bool,
) -> PlaneResult:
    """Train a plane's pooling and head, with the encoder that they read where it is an own one; nothing is written.

    Raises:
        InputError: the settings do not fit each other or the network.
    """
    if config.pooling in ("grid", "structures") and config.encoder == "finetune":
        raise InputError(f"pooling = {config.pooling} reads frozen features. Set encoder=probe, or another pooling.")
    joint = config.data.joint
    unet, card = load_denoiser(out, plane)
    origin = {"denoiser": card.digest}
    if config.start == "segmentation":
        unet, card = load_segmentation_encoder(out, plane, unet)
        origin["start"] = card.digest
    point = config.points.get(plane, settings.point(joint, plane))  # type: ignore[call-overload]
    origin |= {"timestep": str(point.timestep), "block": point.block, "stage": config.encoder}
    channels, seed = map_of(unet, point.block)[0], config.seed + PLANES.index(plane)
    stage = _Stage(
        plane, selection, config, processes, unet, point, channels, *truth_and_weight(selection.train), seed
    )  # fmt: skip
    made = _finetuned(stage, out, origin, resume, silent) if config.encoder == "finetune" else None
    read: dict[str, str] = {}
    with progress(f"Features, {plane}", 100, silent or not processes.first) as told:

        def tell(done: int, total: int) -> None:
            told(done, total, {})

        if config.pooling == "structures":
            segmenting, read = _with_segmentation(stage, out, settings)
            heads = _on_structures(stage, segmenting, tell)
        else:
            heads = _on_maps(stage, made, tell)
    own = None if config.encoder == "probe" and config.start == "denoiser" else unet.cpu()
    return PlaneResult(heads.classifier, heads.arguments, origin, read, point, heads.train, heads.validate, own)


def _finetuned(stage: _Stage, out: Path, origin: dict[str, str], resume: bool, silent: bool) -> PlaneClassifier:
    """A pooling and head, trained together with the encoder, which changes in place."""
    config, joint = stage.config, stage.config.data.joint
    with _told_heads():
        made = new_classifier(
            config.pooling, stage.channels, config.pooling_heads, stage.truth.shape[1], seed=stage.seed
        )
    finetune_plane(
        stage.unet, made, stage.point, stage.selection, stage.truth, stage.weight, config,
        out / "training" / f"{stage.plane}.{joint}",
        {"plane": stage.plane, "joint": joint, **origin},
        processes=stage.processes, resume=resume, silent=silent,
    )  # fmt: skip
    return made


@contextmanager
def _told_heads() -> Iterator[None]:
    """Heads that do not divide a map's channels are the settings' fault."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"pooling_heads: {error}; choose another number.") from error


def _on_maps(stage: _Stage, made: PlaneClassifier | None, tell: Tell) -> _Heads:
    """A head on maps, computed once for all series; ``made`` where it was trained with the encoder."""
    config, point, selection = stage.config, stage.point, stage.selection
    store = FeatureStore(
        stage.features, stage.unet, selection.cache, device=stage.processes.device, draws=config.draws
    )  # fmt: skip
    train, validate = (
        SlabMaps.of(store.maps(records, point.block, point.timestep, tell=tell)) if records else None
        for records in (selection.train, selection.validate)
    )
    assert train is not None
    arguments = pooling_arguments(config.pooling, stage.channels, config.pooling_heads)
    if config.pooling == "grid":
        arguments = stage.grid()
        numbers = grid_numbers_of(GridPool(**arguments, kept=1), train)
        made = _regional(stage, lambda kept: GridPool(**arguments, kept=kept), numbers)
        arguments["kept"] = made.pooling.out_channels
    elif made is None:
        with _told_heads():
            made = train_probe(
                train, stage.truth, stage.weight, config.pooling, config.pooling_heads, config.probe, seed=stage.seed
            )
    vectors = vectors_of(made, train)
    held = vectors[:0] if validate is None else vectors_of(made, validate)
    return _Heads(made, arguments, vectors, held)


def _regional(
    stage: _Stage, build: Callable[[int], GridPool | StructurePool], numbers: Tensor
) -> PlaneClassifier:  # fmt: skip
    config = stage.config
    return train_regional_probe(
        build, numbers, stage.truth, stage.weight, config.grid_kept, config.probe, seed=stage.seed
    )  # fmt: skip


def _with_segmentation(stage: _Stage, out: Path, settings: Settings) -> tuple[PlaneWeights, dict[str, str]]:
    """The plane as the pipeline will run it, with a pooling that makes all numbers; and the segmentation's origin."""
    denoiser, _ = load_denoiser(out, stage.plane)
    weights, read = load_segmentation(out, stage.plane, denoiser, settings)
    weights.timestep, weights.block = stage.point.timestep, stage.point.block
    weights.encoder = stage.unet if stage.config.start == "segmentation" else None
    assert weights.segmentation is not None
    weights.pooling = StructurePool(**stage.grid(), kept=1, classes=weights.segmentation.classes)
    return weights, read


def _on_structures(stage: _Stage, weights: PlaneWeights, tell: Tell) -> _Heads:
    """A head on what the cells of a grid and the found structures look like."""

    def sums_of(records: Sequence[Record]) -> Tensor | None:
        if not records:
            return None
        return structure_sums(
            weights, stage.selection.cache, records, stage.features, device=stage.processes.device,
            draws=stage.config.draws, tell=tell,
        )  # fmt: skip

    every = weights.pooling
    assert isinstance(every, StructurePool)
    arguments = every.arguments()
    train, validate = sums_of(stage.selection.train), sums_of(stage.selection.validate)
    assert train is not None
    made = _regional(stage, lambda kept: StructurePool(**{**arguments, "kept": kept}), every.every(train))
    pooling = made.pooling
    assert isinstance(pooling, StructurePool)
    vectors = pooling.of_series(train)
    held = vectors[:0] if validate is None else pooling.of_series(validate)
    return _Heads(made, pooling.arguments(), vectors, held)


def truth_and_weight(records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """Findings [series, labels], NaN where unknown, and weights [series]: a study's series of a plane share one."""
    counts: dict[str, int] = {}
    for record in records:
        counts[record.study] = counts.get(record.study, 0) + 1
    truth = torch.tensor([record.findings for record in records], dtype=torch.float32)
    return truth, torch.tensor([1 / counts[record.study] for record in records])
