"""A small bundle, made from untrained weights as any bundle is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from orthokernels.models.orthodiffusion import FUSIONS, POOLINGS, LateFusion, MultiscaleSegmentationHead, UNet
from orthokernels.models.orthodiffusion.weights import save_module
from orthokernels.models.patient_data import MODULE, Encoding, LateFusionCard
from orthokernels.models.weights_folder import Settings
from orthokernels.tasks import LABELS, PLANES

SIZE = 64
NETWORK = {"base_channels": 8, "channel_mults": [1, 2, 2], "groups": 4, "attention_rates": [4], "patch": [1, 2, 2]}
HEAD = {"widths": [8, 16, 16, 16], "patch": [1, 2, 2], "input_skip": True}
POOLING = {"channels": 16, "cells": [4, 4], "kept": 24, "classes": 12}
ENCODING = Encoding((40.0, 170.0, 70.0), (10.0, 10.0, 10.0), ("fall", "sport", "UNK"))


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


def write_late_fusion(folder: Path, mri_width: int, thresholds: Mapping[str, float], **changes: int) -> None:
    """An untrained fusion with patient data for the knee, whose first label hears the patient alone."""
    labels = len(LABELS["knee"])
    arguments = {"mri_width": mri_width, "labels": labels, "events": len(ENCODING.events), **changes}
    torch.manual_seed(0)
    fusion = LateFusion(**arguments)
    fusion.mri_head.weight.data *= 0.01  # vectors hold volumes and percentiles, of any size
    fusion.alpha_param.data[0] = -30.0
    path = folder / "knee.patient_data.safetensors"
    origin = LateFusionCard(ENCODING, arguments["mri_width"], thresholds).told()
    save_module(fusion, path, MODULE, joint="knee", arguments=arguments, origin=origin)


def _lively(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return module


def make_bundle(weights: Path, out: Path) -> Path:
    from orthokernels.export.bundle import BundleFolder, draft, finish

    with BundleFolder(out) as folder:
        finish(draft(str(weights), folder.draft))
        folder.publish(None)
    return out
