"""What ``diagnose`` makes, and how it is written into a weights folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from orthokernels.models.orthodiffusion.weights import save_module
from orthokernels.models.weights_folder import FeaturePoint, Settings
from orthokernels.tasks import LABELS, PLANES
from orthokernels.training.config_heads import DiagnoseConfig
from orthokernels.training.metrics import best_threshold
from orthokernels.training.probe import PlaneClassifier
from orthokernels.training.weights_folder import change_settings, remove_module


@dataclass
class PlaneResult:
    """A plane's heads and its series' pooled vectors [series, width], training and validation."""

    classifier: PlaneClassifier
    arguments: dict[str, Any]
    origin: dict[str, str]
    point: FeaturePoint
    train: Tensor
    validate: Tensor


@dataclass
class Fused:
    """A fusion and what it gives for the validation studies, [studies, labels]."""

    name: str
    module: nn.Module
    arguments: dict[str, Any]
    probability: np.ndarray
    heads: list[nn.Linear] = field(default_factory=list)  # the gate's own single-plane heads
    gates: np.ndarray | None = None  # [studies, planes, labels]


def write_heads(out: Path, planes: Mapping[str, PlaneResult], kept: Fused | None, config: DiagnoseConfig) -> None:
    """The planes' poolings and heads (the gate's own where there is one), the fusion, and where features are taken."""
    joint = config.data.joint
    for plane, own in planes.items():
        facts: dict[str, Any] = {"plane": plane, "joint": joint, "origin": own.origin, "half": config.half}
        head = own.classifier.head
        if kept is not None and kept.heads:
            head = kept.heads[PLANES.index(plane)]
        save_module(
            own.classifier.pooling, out / f"{plane}.{joint}.pooling.safetensors", config.pooling,
            arguments=own.arguments, **facts,
        )  # fmt: skip
        size = {"in_features": head.in_features, "out_features": head.out_features}
        save_module(head, out / f"{plane}.{joint}.head.safetensors", "linear", arguments=size, **facts)
    if kept is None:
        remove_module(out, f"{joint}.fusion")
    else:
        save_module(
            kept.module, out / f"{joint}.fusion.safetensors", kept.name, joint=joint, arguments=kept.arguments,
            half=config.half,
        )  # fmt: skip

    def add(settings: Settings) -> Settings:
        points = {**settings.points.get(joint, {}), **{plane: own.point for plane, own in planes.items()}}
        return settings.model_copy(update={"points": {**settings.points, joint: points}})

    change_settings(out, add)


def chosen_thresholds(joint: str, truth: np.ndarray, probability: np.ndarray, rule: str) -> dict[str, float]:
    """Each label's threshold, chosen on truth and probability [studies, labels]."""
    keys = [label.key for label in LABELS[joint]]
    chosen = {}
    for n, key in enumerate(keys):
        known = np.isfinite(truth[:, n])
        chosen[key] = 0.5 if rule == "half" else best_threshold(truth[known, n], probability[known, n], rule)
    return chosen


def write_thresholds(out: Path, joint: str, truth: np.ndarray, probability: np.ndarray, rule: str) -> None:
    """Thresholds of what the weights' fusion gives, into their settings."""
    chosen = chosen_thresholds(joint, truth, probability, rule)

    def add(settings: Settings) -> Settings:
        return settings.model_copy(update={"thresholds": {**settings.thresholds, joint: chosen}})

    change_settings(out, add)


def write_gates(path: Path, studies: Sequence[str], gates: np.ndarray, joint: str) -> None:
    """The weight of each plane for each study and label, as the publication exports it."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["study", "label", *(f"w_{plane}" for plane in PLANES)])
        for study, own in zip(studies, gates, strict=True):
            for n, label in enumerate(LABELS[joint]):
                writer.writerow([study, label.key, *(f"{weight:.4f}" for weight in own[:, n])])
