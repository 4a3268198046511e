"""The golden case: a small phantom of each joint, and what the reference in PyTorch makes of it, kept in the bundle.

The images travel with what is recorded of them: a phantom made again on another processor may differ in a rounding, and
making one takes SciPy and a minute of compiling.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from orthokernels.bundle.golden import GOLDEN
from orthokernels.bundle.manifest import GoldenCase
from orthokernels.data.phantom import make_study, write_dicom
from orthokernels.models.orthodiffusion.weights import Weights
from orthokernels.pipeline import run
from orthokernels.progress import Progress

# Seen by no training, calibration or judgement. 96 pixels keep a joint's study below 2 MB; slabs are resized anyway.
GOLDEN_SEED, MATRIX = 7_000_000, 96


def write_golden(
    folder: Path, weights: Mapping[str, Weights], tell: Progress = lambda what, done, total: None
) -> dict[str, GoldenCase]:
    """Write a study and its label maps for each joint below ``folder``/golden; what the manifest says of them."""
    made = {}
    for number, (joint, own) in enumerate(weights.items()):
        tell("Running the golden case", number, len(weights))
        place = folder / GOLDEN / joint
        write_dicom(make_study(GOLDEN_SEED, joint=joint, matrix=MATRIX), place / "study")
        images = sorted((place / "study").rglob("*.dcm"))
        found = run([place / "study"], weights=own, joint=joint, device="cpu")
        labels = place / "labels.safetensors"
        # Not save_file, whose files only their owner can read: whoever serves a bundle is seldom who made it.
        labels.write_bytes(save({plane: _bytes(own) for plane, (own, _) in found.label_maps.items()}))
        made[joint] = GoldenCase(
            images=tuple(path.relative_to(folder).as_posix() for path in images),
            labels=labels.relative_to(folder).as_posix(),
            probabilities={finding.label: finding.probability for finding in found.result.findings},
        )
    return made


def _bytes(labels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(labels, dtype=np.uint8)
