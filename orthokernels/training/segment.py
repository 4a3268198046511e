"""Train a segmentation head per plane on a pre-trained denoiser, and write it into a weights folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.segmentation import (
    MultiscaleSegmentationHead,
    SegmentationHead,
    level_names,
)
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.orthodiffusion.weights import digest_of_encoder, save_encoder, save_module
from orthokernels.models.weights_folder import FeaturePoint, Settings, load_settings
from orthokernels.tasks import STRUCTURES
from orthokernels.training import checkpoint
from orthokernels.training.config import named
from orthokernels.training.config_heads import SegmentConfig
from orthokernels.training.curves import progress
from orthokernels.training.distributed import Processes, alone
from orthokernels.training.loader import FixedSlabs, TrainingSlabs, covering_slabs
from orthokernels.training.loop import Run, samples_per_step, steps_of, train
from orthokernels.training.segmentation_task import SegmentationNetwork, SegmentationTask, groups
from orthokernels.training.selection import Selection, labelled, select
from orthokernels.training.weights_folder import (
    change_settings,
    load_denoiser,
    need_denoisers,
    remove_module,
    started_from,
)

CLASSES = len(STRUCTURES) + 1
# Settings that do not decide what a step learns, and those that another part of a run's identity tells.
_NOT_IN_IDENTITY = {
    "planes", "data", "points", "loop", "epochs", "half", "validate_series", "keep_best", "optimiser",
}  # fmt: skip


def segment(
    data: Path,
    weights: Path,
    out: Path,
    config: SegmentConfig,
    *,
    processes: Processes | None = None,
    resume: bool = True,
    silent: bool = True,
) -> dict[str, dict[str, float]]:
    """Train the heads of every plane of ``config``; returns each plane's last figures.

    Args:
        data: a data set with label maps or label pictures.
        weights: folder with the denoisers.
        out: folder for the result, a weights folder like ``weights`` with the heads added; it may be the same.
        processes: of a run over several devices.
        resume: take up checkpoints under ``out``.

    Raises:
        InputError: data or weights can not be used.
    """
    processes = processes or alone()
    with started_from(weights, out, config.data.preparation) if processes.first else nullcontext():
        processes.wait()
        need_denoisers(out, config.planes)
        settings = load_settings(out)
        selection = select(data, config.data, settings.size, config.planes, labelled, processes, silent=silent)
    return {
        plane: _segment_plane(plane, selection.of_plane(plane), out, settings, config, processes, resume, silent)
        for plane in config.planes
    }


def _segment_plane(
    plane: str,
    selection: Selection,
    out: Path,
    settings: Settings,
    config: SegmentConfig,
    processes: Processes,
    resume: bool,
    silent: bool,
) -> dict[str, float]:
    unet, card = load_denoiser(out, plane)
    point = config.points.get(plane, settings.point("segmentation", plane))  # type: ignore[call-overload]
    arguments = head_arguments(unet, card.arguments, point.block, config)
    head = new_head(config.head, arguments, config.loop.seed)
    network = SegmentationNetwork(unet, head, point.block, trainable=config.encoder_rate > 0)
    task = SegmentationTask(
        network,
        point.timestep,
        CLASSES,
        validation_slabs(selection, config.validate_series),
        cross_entropy=config.cross_entropy,
        seed=config.loop.seed,
        processes=processes,
    )
    run = training_run(out / "training" / f"{plane}.segmentation", selection, config, processes)
    run.groups, run.resume = groups(network, config.encoder_rate), resume
    run.identity |= {"task": "segment", "plane": plane, "denoiser": card.digest, **named(point)}
    run.identity["data.masks_mirrored"] = config.data.masks_mirrored
    run.identity |= named(config, exclude=_NOT_IN_IDENTITY)
    run.identity |= {f"head.{name}": str(value) for name, value in arguments.items()}
    with progress(f"Segmentation, {plane}", config.loop.log_every, silent or not processes.first) as run.tell:
        trained = train(task, run)
    if config.keep_best:
        best = run.out / "checkpoints" / "best.pt"
        if not best.is_file():  # its steps were done without keep_best, or no Dice could be told
            raise InputError(f"{best}: the run kept no best weights. Set keep_best=false, or train again with --fresh.")
        network.load_state_dict(checkpoint.read(best)["model"])
    figures = {**trained.figures, "validated_on_training_data": not selection.validate}
    if processes.first:
        _write(out, plane, network, point, arguments, config, card.digest, figures)
    processes.wait()
    return figures


def training_run(out: Path, selection: Selection, config: SegmentConfig, processes: Processes) -> Run:
    """The loop's run over slabs of the training records."""
    loop = config.loop
    if config.epochs is not None:
        loop = loop.model_copy(update={"steps": steps_of(config.epochs, len(selection.train), loop, processes)})
    whole_from = round((1 - config.whole_share) * loop.steps) * samples_per_step(loop, processes)
    return Run(
        out=out,
        samples=TrainingSlabs(
            selection.cache,
            selection.train,
            loop.seed,
            config.augment,
            labelled=True,
            placed=config.placed,
            whole_from=whole_from,
        ),
        config=loop,
        optimiser=config.optimiser,
        identity=selection.identity(),
        best=("dice", "max") if config.keep_best else None,
        workers=config.data.workers,
        prefetch=config.data.prefetch,
        processes=processes,
    )


def validation_slabs(selection: Selection, series: int) -> FixedSlabs:
    """Slabs of the first labelled validation series, of the training series where there are none to validate on."""
    records = [r for r in (selection.validate or selection.train) if r.labelled][:series]
    return FixedSlabs(selection.cache, covering_slabs(selection.cache, records), labelled=True)


def head_arguments(unet: UNet, network: Mapping[str, Any], block: str, config: SegmentConfig) -> dict[str, Any]:
    """Constructor arguments of the head for a network, as its card keeps them.

    Raises:
        InputError: the published head does not fit the block's resolution.
    """
    if config.head == "published":
        channels, factors = map_of(unet, block)
        if factors != (16, 16, 16):
            times = " x ".join(map(str, factors))
            raise InputError(
                f"the published segmentation head doubles a map four times, but {block} is {times} times smaller than "
                "the volume. Use head=multiscale, or a network with four halvings and no patch."
            )
        return {"in_channels": channels, "classes": CLASSES}
    widths = [map_of(unet, name)[0] for name in level_names(unet)]
    return {
        "widths": widths,
        "classes": CLASSES,
        "channels": None if config.head_channels is None else list(config.head_channels),
        "patch": list(network.get("patch", (1, 1, 1))),
        "input_skip": config.input_skip,
    }


def new_head(kind: str, arguments: Mapping[str, Any], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SegmentationHead(**arguments) if kind == "published" else MultiscaleSegmentationHead(**arguments)


@torch.inference_mode()
def map_of(unet: UNet, block: str) -> tuple[int, tuple[int, ...]]:
    """Channels of a block's map, and how much smaller than the volume it is along each axis."""
    if block not in unet.feature_names:
        raise InputError(f"the network has no block {block!r}; it has {', '.join(unet.feature_names)}.")
    sides = (16, 64, 64)
    device = next(unet.parameters()).device
    channels = int(unet.input_blocks[0][0].in_channels) // math.prod(unet.patch)  # type: ignore[index]
    found = unet.features(torch.zeros(1, channels, *sides, device=device), torch.zeros(1, device=device), [block])
    shape = found[block].shape
    return int(shape[1]), tuple(side // small for side, small in zip(sides, shape[2:], strict=True))


def _write(
    out: Path,
    plane: str,
    network: SegmentationNetwork,
    point: FeaturePoint,
    arguments: dict[str, Any],
    config: SegmentConfig,
    denoiser: str,
    figures: Mapping[str, float],
) -> None:
    origin = {"denoiser": denoiser, "timestep": str(point.timestep)}
    if "validation/dice" in figures and not config.keep_best:
        side = "training" if figures["validated_on_training_data"] else "validation"
        origin[f"{side}_dice"] = f"{figures['validation/dice']:.4f}"
    kind = "segmentation_head" if config.head == "published" else "multiscale_segmentation_head"
    facts: dict[str, Any] = {"plane": plane, "joint": config.data.joint, "half": config.half}
    unet, tuned = network.features.unet, config.encoder_rate > 0
    read = {"segmentation.encoder": digest_of_encoder(unet, half=config.half) if tuned else "none"}
    if config.head == "published":  # the other head reads every level, whatever the block
        read["block"] = point.block
    # The head first: where writing breaks off, it names an encoder that is not there, and is refused.
    save_module(
        network.head, out / f"{plane}.segmentation.safetensors", kind, arguments=arguments, origin=origin | read,
        **facts,
    )  # fmt: skip
    if tuned:
        save_encoder(unet, out / f"{plane}.segmentation.encoder.safetensors", origin=origin, **facts)
    else:
        remove_module(out, f"{plane}.segmentation.encoder")

    def add(settings: Settings) -> Settings:
        points = {**settings.points, "segmentation": {**settings.points.get("segmentation", {}), plane: point}}
        return settings.model_copy(update={"points": points, "preparation": config.data.preparation})

    change_settings(out, add)
