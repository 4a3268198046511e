"""The golden case of a bundle: a small study that travels with the model, and what the model made of it at its maker's.

Whoever runs the bundle elsewhere runs this first. It shows that graphs, engine and machine together still compute what
they computed when the bundle was made; it says nothing of how good that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orthokernels.bundle.manifest import GoldenCase
from orthokernels.bundle.verify import Bundle
from orthokernels.errors import InputError
from orthokernels.tasks import PLANES

GOLDEN = "golden"


@dataclass(frozen=True)
class Allowance:
    """What a run may differ in: the share of labelled voxels in the worst plane, and the worst probability."""

    label_share: float
    probability: float


# fp32 differs between engines and processors in the order of sums alone, 1e-4 of a slab's logits at most (the parity
# check's bound): a label changes where two classes come that near each other, which is a voxel here and there along a
# border, and a probability by a quarter of a logit's error.
EXACT = Allowance(0.001, 0.001)

# The other forms may lose what the gate of the export allows them: 0.005 of a structure's Dice, which is up to one
# voxel in a hundred, and a fifth of a logit's spread over studies. The steepest slope of a sigmoid is 1/4.
REDUCED = Allowance(0.01, 0.1)


@dataclass(frozen=True)
class Outcome:
    """How far a run of the golden case is from what is recorded.

    Attributes:
        planes: that were compared.
        label_share: of the voxels that either labels, the share on which they differ, in the worst plane.
        probability: error of the worst finding; None where planes did not run, on which findings rest.
    """

    planes: tuple[str, ...]
    label_share: float
    probability: float | None

    def told(self) -> str:
        told = f"{100 * (1 - self.label_share):.2f} % of the labelled voxels as recorded ({', '.join(self.planes)})"
        if self.probability is None:
            return f"{told}, findings not compared, since they rest on planes that do not run"
        return f"{told}, findings within {self.probability:.1e}"

    def within(self, allowance: Allowance) -> bool:
        return self.label_share <= allowance.label_share and (self.probability or 0.0) <= allowance.probability


def golden_study(bundle: Bundle, joint: str) -> list[Path]:
    """The DICOM files of the golden study; none where the bundle carries none for this joint."""
    case = bundle.manifest.golden.get(joint)
    return [bundle.unchanged(name) for name in case.images] if case else []


def check_golden(
    bundle: Bundle,
    joint: str,
    labels: Mapping[str, np.ndarray],
    probabilities: Mapping[str, float | None],
    form: str,
) -> Outcome:
    """Hold a run of the golden study against what the bundle records.

    Args:
        bundle: verified, so that what it records is what its maker wrote.
        joint: which of its cases.
        labels: by plane that ran, (i, j, k) on the series' own grid.
        probabilities: by finding; None where one was not scored.
        form: of the graphs that ran, which decides what may differ.

    Raises:
        InputError: it came out different. The message says by how much, and what to do.
    """
    case = bundle.manifest.golden[joint]
    recorded = _recorded(bundle, case)
    planes = tuple(plane for plane in PLANES if plane in recorded and plane in labels)
    outcome = Outcome(
        planes,
        max((_differing(recorded[plane], labels[plane]) for plane in planes), default=0.0),
        _error(case.probabilities, probabilities) if len(planes) == len(recorded) else None,
    )
    if not outcome.within(EXACT if form == "fp32" else REDUCED):
        raise InputError(
            f"{bundle.folder}: the golden case does not come out on this machine as the bundle's maker recorded it: "
            f"{outcome.told()}. Choose another engine (orthokernels bundle tune), or fetch the bundle again."
        )
    return outcome


def _recorded(bundle: Bundle, case: GoldenCase) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = bundle.unchanged(case.labels)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: can't be read ({error}). Make the bundle again.") from error


def _differing(recorded: np.ndarray, found: np.ndarray) -> float:
    if recorded.shape != found.shape:
        return 1.0
    labelled = (recorded > 0) | (found > 0)
    return float((recorded != found)[labelled].mean()) if labelled.any() else 0.0


def worst(errors: Iterable[float]) -> float:
    """The largest, 0 where there is none; infinite where one is no number, which compares as if it were no error."""
    found = [0.0, *errors]
    return max(found) if np.isfinite(found).all() else float("inf")


def _error(recorded: Mapping[str, float | None], found: Mapping[str, float | None]) -> float:
    """The largest difference of a probability; 1 where only one side scored a finding."""
    errors = []
    for key, expected in recorded.items():
        own = found.get(key)
        if expected is None or own is None:
            errors.append(float((expected is None) != (own is None)))
        else:
            errors.append(abs(own - expected))
    return worst(errors)
