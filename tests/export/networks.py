"""Small random weights with every kind of head, pooling and fusion, and engines that run a graph as it lies on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from orthokernels.models.orthodiffusion import (
    FUSIONS,
    POOLINGS,
    MultiscaleSegmentationHead,
    SegmentationHead,
    UNet,
)
from orthokernels.models.orthodiffusion.weights import FeaturePoint, PlaneWeights, Weights, ready
from orthokernels.runtime.sessions import openvino_core
from orthokernels.tasks import LABELS, PLANES

SIZE = 32
LEVELS = {"base_channels": 8, "channel_mults": (1, 2, 2), "groups": 4, "attention_rates": (4,), "patch": (1, 2, 2)}
PUBLISHED_LEVELS = {"base_channels": 8, "channel_mults": (1, 1, 1, 2, 2), "groups": 4}


def lively(module: nn.Module) -> nn.Module:
    """No layer at zero: those that start there would hide what lies before them."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return module


def random_pooling(kind: str, channels: int, classes: int) -> nn.Module:
    arguments = {
        "selfattn": {"heads": 4}, "grid": {"cells": (4, 4), "kept": 24, "mirror": True},
        "structures": {"cells": (4, 4), "kept": 24, "classes": classes, "bins": 16},
    }.get(kind, {})  # fmt: skip
    return POOLINGS[kind](channels, **arguments)


def random_fusion(kind: str, width: int, labels: int) -> nn.Module:
    if kind == "gating":
        return FUSIONS[kind](labels, stacking=True)
    return FUSIONS[kind](width, labels, **({} if kind == "simple_concat" else {"out_width": 16}), hidden=True)


def random_weights(
    *, joint: str = "knee", pooling: str = "none", fusion: str = "gating", published: bool = False,
    segmentation: bool = True, seed: int = 0,
) -> Weights:  # fmt: skip
    """Every plane, with heads over one network; the published head reads the middle of five levels."""
    torch.manual_seed(seed)
    labels, planes = len(LABELS[joint]), {}
    for plane in PLANES:
        unet = lively(UNet(**(PUBLISHED_LEVELS if published else LEVELS)))
        head: nn.Module = (
            SegmentationHead(16) if published else MultiscaleSegmentationHead((8, 16, 16, 16), patch=(1, 2, 2))
        )
        pool = random_pooling(pooling, 16, 12)
        planes[plane] = PlaneWeights(
            unet, timestep=100, block="mid_2", segmentation=lively(head) if segmentation else None,
            segmentation_point=FeaturePoint(timestep=100), pooling=pool, head=nn.Linear(pool.out_channels, labels),
        )  # fmt: skip
    fused = lively(random_fusion(fusion, planes["axial"].pooling.out_channels, labels))
    return ready(
        Weights("random", False, joint, planes, fusion=fused, fusion_name=fusion, size=SIZE, notice="Random weights.")
    )


def inputs_of(sides: Mapping[str, tuple[int, ...]], batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors; volumes in [-1, 1], a timestep in its range."""
    rng = np.random.default_rng(seed)
    found = {name: rng.standard_normal((batch, *own), dtype=np.float32) for name, own in sides.items()}
    if "volume" in found:
        found["volume"] = rng.uniform(-1, 1, found["volume"].shape).astype(np.float32)
    if "timestep" in found:
        found["timestep"] = rng.integers(0, 1000, batch).astype(np.float32)
    return found


def by_onnxruntime(path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def by_openvino(path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    found = openvino_core().compile_model(str(path), "CPU", settings)(dict(inputs))
    return {output.any_name: np.asarray(found[output]) for output in found}


ENGINES = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}
