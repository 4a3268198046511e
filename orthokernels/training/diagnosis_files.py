"""What ``diagnose`` makes, and how it is written into a weights folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.orthodiffusion.weights import (
    digest_of_encoder,
    digest_of_module,
    save_encoder,
    save_module,
)
from orthokernels.models.patient_data import MODULE, LateFusionCard
from orthokernels.models.weights_folder import FeaturePoint, Settings
from orthokernels.tasks import LABELS, PLANES
from orthokernels.training.config_heads import DiagnoseConfig
from orthokernels.training.metrics import best_threshold
from orthokernels.training.probe import PlaneClassifier
from orthokernels.training.weights_folder import change_settings, remove_module


@dataclass
class PlaneResult:
    """A plane's heads and its series' pooled vectors [series, width], training and validation.

    Attributes:
        origin: of encoder and heads alike; ``read`` is what the heads read besides.
        encoder: a network whose encoder and middle are the heads' own; None where they read the denoiser.
    """

    classifier: PlaneClassifier
    arguments: dict[str, Any]
    origin: dict[str, str]
    read: dict[str, str]
    point: FeaturePoint
    train: Tensor
    validate: Tensor
    encoder: UNet | None = None


@dataclass
class Fused:
    """A fusion and what it gives for the validation studies, [studies, labels]."""

    name: str
    module: nn.Module
    arguments: dict[str, Any]
    probability: np.ndarray
    heads: list[nn.Linear] = field(default_factory=list)  # the gate's own single-plane heads
    gates: np.ndarray | None = None  # [studies, planes, labels]


@dataclass
class Late:
    """A fusion with patient data, and what its card says of it."""

    module: nn.Module
    arguments: dict[str, Any]
    card: LateFusionCard


def write_heads(
    out: Path,
    planes: Mapping[str, PlaneResult],
    kept: Fused | None,
    late: Late | None,
    thresholds: Mapping[str, float],
    config: DiagnoseConfig,
) -> None:
    """All that was trained: fusions, the planes' heads (the gate's own where there is one), poolings and encoders; then
    the settings.

    Each names the modules that it was trained on and is written before them: where writing breaks off, it lies beside
    others, and the folder is refused.
    """
    joint, half = config.data.joint, config.half
    heads = {plane: own.classifier.head for plane, own in planes.items()}
    if kept is not None and kept.heads:
        heads = dict(zip(PLANES, kept.heads, strict=True))
    digests = {plane: _digests(own, heads[plane], half) for plane, own in planes.items()}
    fused = {f"{plane}.{part}": digest for plane, parts in digests.items() for part, digest in parts.items()}
    if kept is not None:
        save_module(
            kept.module, out / f"{joint}.fusion.safetensors", kept.name, joint=joint, arguments=kept.arguments,
            origin=fused, half=half,
        )  # fmt: skip
    if late is not None:
        save_module(
            late.module, out / f"{joint}.patient_data.safetensors", MODULE, joint=joint, arguments=late.arguments,
            origin=late.card.told() | fused, half=half,
        )  # fmt: skip
    for plane, own in planes.items():
        _write_plane(out, plane, own, heads[plane], digests[plane], config)
    if kept is None:
        remove_module(out, f"{joint}.fusion")
    if late is None:
        remove_module(out, f"{joint}.patient_data")  # of an earlier run, whose vectors were others

    def add(settings: Settings) -> Settings:
        points = {**settings.points.get(joint, {}), **{plane: own.point for plane, own in planes.items()}}
        return settings.model_copy(
            update={
                "points": {**settings.points, joint: points},
                "preparation": config.data.preparation,
                "thresholds": {**settings.thresholds, joint: dict(thresholds)},
            }
        )

    change_settings(out, add)


def _digests(own: PlaneResult, head: nn.Linear, half: bool) -> dict[str, str]:
    """What a plane's files will be, by the names that an origin has for them."""
    return {
        "head": digest_of_module(head, half=half),
        "pooling": digest_of_module(own.classifier.pooling, half=half),
        "encoder": "none" if own.encoder is None else digest_of_encoder(own.encoder, half=half),
    }


def _write_plane(
    out: Path, plane: str, own: PlaneResult, head: nn.Linear, digests: Mapping[str, str], config: DiagnoseConfig
) -> None:
    """A plane's head, then its pooling, then its encoder."""
    joint = config.data.joint
    facts: dict[str, Any] = {"plane": plane, "joint": joint, "half": config.half}
    origin = {**own.origin, **own.read, "encoder": digests["encoder"]}
    save_module(
        head, out / f"{plane}.{joint}.head.safetensors", "linear", origin={**origin, "pooling": digests["pooling"]},
        arguments={"in_features": head.in_features, "out_features": head.out_features}, **facts,
    )  # fmt: skip
    save_module(
        own.classifier.pooling, out / f"{plane}.{joint}.pooling.safetensors", config.pooling, origin=origin,
        arguments=own.arguments, **facts,
    )  # fmt: skip
    if own.encoder is None:
        remove_module(out, f"{plane}.{joint}.encoder")
    else:
        save_encoder(own.encoder, out / f"{plane}.{joint}.encoder.safetensors", origin=own.origin, **facts)


def chosen_thresholds(joint: str, truth: np.ndarray, probability: np.ndarray, rule: str) -> dict[str, float]:
    """Each label's threshold, chosen on truth and probability [studies, labels]."""
    keys = [label.key for label in LABELS[joint]]
    chosen = {}
    for n, key in enumerate(keys):
        known = np.isfinite(truth[:, n])
        chosen[key] = 0.5 if rule == "half" else best_threshold(truth[known, n], probability[known, n], rule)
    return chosen


def write_gates(path: Path, studies: Sequence[str], gates: np.ndarray, joint: str) -> None:
    """The weight of each plane for each study and label, as the publication exports it."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["study", "label", *(f"w_{plane}" for plane in PLANES)])
        for study, own in zip(studies, gates, strict=True):
            for n, label in enumerate(LABELS[joint]):
                writer.writerow([study, label.key, *(f"{weight:.4f}" for weight in own[:, n])])
