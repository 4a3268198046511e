"""Small data sets in which findings and structures can be seen, and small networks to train on them."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np

from orthokernels import tasks
from orthokernels.data.geometry import plane_of

# Voxel axes (i, j, k) of each plane's series as RAS mm: slices along x, y and z.
_AXES = {
    "sagittal": [[0, 0, 3.0], [1.0, 0, 0], [0, 1.0, 0]],
    "coronal": [[1.0, 0, 0], [0, 0, 3.0], [0, 1.0, 0]],
    "axial": [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 3.0]],
}


def affine_of(plane: str) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = _AXES[plane]
    assert plane_of(affine)[0] == plane
    return affine


def write_volume(
    path: Path, *, plane: str = "sagittal", depth: int = 16, side: int = 32, seed: int = 0, voxels=None
) -> Path:
    """Noise, or the given voxels, as NIfTI."""
    if voxels is None:
        voxels = np.random.default_rng(seed).normal(100, 20, (side, side, depth)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine_of(plane))
    image.set_sform(affine_of(plane), code="scanner")
    nibabel.save(image, path)
    return path


def write_studies(
    folder: Path, count: int = 12, *, joint: str = "knee", side: int = 32, first: int = 0, labels: bool = True
) -> Path:
    """Studies of the simple layout: ball n of the structures' is brighter, and stripes of label n's pitch show it."""
    keys = [label.key for label in tasks.LABELS[joint]]
    rows = []
    for number in range(first, first + count):
        draw = np.random.default_rng(1000 + number)
        findings = draw.integers(0, 2, len(keys))
        for plane in tasks.PLANES:
            voxels, structures = _picture(draw, findings, side)
            home = folder / f"study_{number:03d}"
            write_volume(home / f"{plane}.nii.gz", plane=plane, voxels=voxels)
            if labels:
                write_volume(home / f"{plane}_labels.nii.gz", plane=plane, voxels=structures)
        rows.append([f"study_{number:03d}", f"patient_{number // 2:03d}", joint, "right", *findings])
    with (folder / "studies.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["study", "patient", "joint", "side", *keys], *rows])
    return folder


def _picture(draw: np.random.Generator, findings: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (side, side, 16): a box per structure, its brightness its own; the first findings change the whole."""
    voxels = draw.normal(100, 5, (side, side, 16))
    labels = np.zeros((side, side, 16), np.uint8)
    cell = side // 4
    for index in range(1, len(tasks.STRUCTURES) + 1):
        row, column = divmod(index, 4)
        i, j = row * cell + draw.integers(0, 2), column * cell + draw.integers(0, 2)
        where = np.s_[i : i + cell - 2, j : j + cell - 2, 3:13]
        labels[where] = index
        voxels[where] += 25 * index
    position = np.arange(side)
    for n, present in enumerate(findings):
        voxels += 40 * present * np.sin(2 * np.pi * position * (n + 1) / side)[:, None, None]
    return voxels.astype(np.float32), labels


NETWORK = {"base_channels": 8, "channel_mults": (1, 2, 2), "groups": 4, "attention_rates": (4,), "patch": (1, 2, 2)}
SIZE = 32


def write_weights(folder: Path, *, planes=tasks.PLANES, network=NETWORK, size: int = SIZE) -> Path:
    """A weights folder of untrained denoisers whose features follow the picture."""
    import torch

    from orthokernels.models.orthodiffusion import UNet
    from orthokernels.models.orthodiffusion.weights import save_module
    from orthokernels.models.weights_folder import Settings

    torch.manual_seed(0)
    for plane in planes:
        save_module(
            UNet(**network), folder / f"{plane}.safetensors", "unet",
            plane=plane, arguments={name: list(v) if isinstance(v, tuple) else v for name, v in network.items()},
        )  # fmt: skip
    (folder / "weights.json").write_text(Settings(name="toy", size=size).model_dump_json())
    return folder


def data_settings(folder: Path, **changes):
    """How the toy studies are read: everything covered, prepared beside them, a quarter for validation."""
    from orthokernels.training.config import DataConfig

    return DataConfig(
        **{"preparation": "full", "cache": folder / "prepared", "validate_share": 0.25, "workers": 0, **changes}
    )
