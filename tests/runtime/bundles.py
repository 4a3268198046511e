"""A small bundle, made from untrained weights as any bundle is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from orthokernels.export.bundle import BundleFolder, draft, finish
from torch import nn

from orthokernels.models.orthodiffusion import FUSIONS, POOLINGS, MultiscaleSegmentationHead, UNet
from orthokernels.models.orthodiffusion.patient_data import LateFusion
from orthokernels.models.orthodiffusion.weights import save_module
from orthokernels.models.patient_data import MODULE, Encoding, LateFusionCard
from orthokernels.models.weights_folder import Settings
from orthokernels.tasks import LABELS, PLANES

SIZE = 64
NETWORK = {"base_channels": 8, "channel_mults": [1, 2, 2], "groups": 4, "attention_rates": [4], "patch": [1, 2, 2]}
HEAD = {"widths": [8, 16, 16, 16], "patch": [1, 2, 2], "input_skip": True}
POOLING = {"channels": 16, "cells": [4, 4], "kept": 24, "classes": 12}


def write_weights(folder: Path, *, trained: bool = False, planes: Sequence[str] = tuple(PLANES)) -> Path:
    """Planes for the knee, with the demo weights' kinds of heads: nothing in them is zero."""
    torch.manual_seed(0)
    labels = len(LABELS["knee"])
    modules: list[tuple[str, str, nn.Module, dict]] = []
    for plane in planes:
        pooling = POOLINGS["structures"](**POOLING)
        pooling.places.copy_(torch.randperm(2 * 16 * 4 * 4 + 11 * 14 + 11 * 33)[:24])
        linear = {"in_features": 24, "out_features": labels}
        head = _lively(MultiscaleSegmentationHead(**HEAD))
        modules += [
            (plane, "unet", _lively(UNet(**NETWORK)), NETWORK),
            (f"{plane}.segmentation", "multiscale_segmentation_head", head, HEAD),
            (f"{plane}.knee.pooling", "structures", pooling, POOLING),
            (f"{plane}.knee.head", "linear", nn.Linear(**linear), linear),
        ]
    modules.append(("knee.fusion", "gating", FUSIONS["gating"](labels=labels), {"labels": labels}))
    for stem, kind, module, arguments in modules:
        save_module(module, folder / f"{stem}.safetensors", kind, arguments=arguments, trained=trained)
    settings = Settings(name="small", size=SIZE, thresholds={"knee": {"ACL": 0.3}})
    (folder / "weights.json").write_text(settings.model_dump_json())
    return folder


def add_late_fusion(folder: Path) -> Path:
    """A fusion with patient data for the knee, beside ``write_weights``'s; the folder."""
    encoding = Encoding((40.0, 170.0, 70.0), (10.0, 10.0, 15.0), ("fall", "sport", "UNK"))
    arguments = {"mri_width": len(PLANES) * POOLING["kept"], "labels": len(LABELS["knee"]), "events": 3}
    origin = LateFusionCard(encoding, arguments["mri_width"], {"ACL": 0.4}).told()
    path = folder / "knee.patient_data.safetensors"
    save_module(_lively(LateFusion(**arguments)), path, MODULE, joint="knee", arguments=arguments, origin=origin)
    return folder


def _lively(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return module


def make_bundle(weights: Path, out: Path) -> Path:
    with BundleFolder(out) as folder:
        finish(draft(str(weights), folder.draft))
        folder.publish(None)
    return out
