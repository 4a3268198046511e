"""What a run over one study gives: the schema of ``findings.json``, and the pictures' raw material beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from orthokernels import tasks
from orthokernels.data.study import LeftOut

Plane = Literal["sagittal", "coronal", "axial"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Record):
    """One label's score.

    ``status`` is "indeterminate" only where someone asked for it; see ``StudyResult.with_indeterminate``.
    ``plane_weights`` sum to 1 over the planes used, and are empty where a fusion has none. ``images_share`` is theirs
    beside the patient data's, where those were fused.
    """

    label: str
    name: str
    status: Literal["present", "absent", "indeterminate", "not evaluated"]
    probability: float | None = None
    threshold: float | None = None
    reason: str | None = None
    plane_weights: dict[Plane, float] = {}
    images_share: float | None = None

    @property
    def shown(self) -> tuple[str, str]:
        """Probability and threshold for people, "" where there is none: two decimals, or as many as tell them apart."""
        both = self.probability, self.threshold
        for decimals in range(2, 7):
            probability, threshold = ("" if own is None else f"{own:.{decimals}f}" for own in both)
            if probability != threshold or None in both or both[0] == both[1] or self.status == "present":
                break
        return probability, threshold


class StructureVolume(_Record):
    """Volume of one structure within the slices that were labelled.

    ``cut_off`` where it reaches the edge of what was labelled: there may be more of it beyond.
    """

    index: int
    key: str
    name: str
    ml: float
    voxels: int
    cut_off: bool = False


class PlaneResult(_Record):
    """The volume that stood for a plane, and what was made of it.

    ``labelled_slices`` are the first and the last plus one, counted from 0 in the plane's usual view.
    """

    plane: Plane
    description: str
    series_hash: str
    chosen_because: str
    obliquity_degrees: float
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    echo_time_ms: float | None = None
    contrast: str = "unknown"
    labelled_slices: tuple[int, int] | None = None
    segmentation: str | None = None
    segmentation_reason: str | None = None
    montage: str | None = None
    structures: tuple[StructureVolume, ...] = ()
    warnings: tuple[str, ...] = ()


class Model(_Record):
    """Which weights ran: ``digest`` is the SHA-256 over every tensor's name, type, shape and bytes.

    ``notice`` is what the weights say of themselves, in one sentence. ``engine`` computed them, in the arithmetic of
    ``form``; ``bundle`` is the SHA-256 of the manifest of the bundle they came in.
    """

    weights: str
    digest: str
    trained: bool
    timestep: dict[Plane, int]
    block: dict[Plane, str]
    fusion: str | None = None
    notice: str | None = None
    engine: str = "torch"
    form: str = "fp32"
    bundle: str | None = None


class PatientData(_Record):
    """What was done with the patient data that were given: ``reason`` says why they were not used.

    ``known`` names what they hold; values are not repeated in results.
    """

    known: tuple[str, ...]
    used: bool
    reason: str | None = None


class StudyResult(_Record):
    """Everything ``findings.json`` holds."""

    notice: str = tasks.RESEARCH_NOTICE
    untrained: str | None = None
    study_hash: str
    joint: str
    laterality: str | None = None
    preparation: Literal["published", "full"]
    seed: int
    model: Model
    planes: tuple[PlaneResult, ...]
    findings: tuple[Finding, ...]
    patient_data: PatientData | None = None
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    seconds: dict[str, float] = {}
    peak_memory_mb: float | None = None

    def with_indeterminate(self, within: float) -> StudyResult:
        """The same, but that findings whose probability lies nearer to their threshold than this are indeterminate."""
        return self.model_copy(update={"findings": tuple(_unless_near(own, within) for own in self.findings)})


def _unless_near(finding: Finding, within: float) -> Finding:
    if finding.probability is None or finding.threshold is None:
        return finding
    near = abs(finding.probability - finding.threshold) < within
    return finding.model_copy(update={"status": "indeterminate"}) if near else finding


@dataclass(frozen=True)
class PlaneArrays:
    """Arrays behind one plane's pictures and label map.

    Attributes:
        voxels: intensities, axes (i, j, k): i along an image row to its right, j up the image, k across slices.
        labels: uint8 label map on the same grid, or None where the weights have no segmentation head.
        affine: (4, 4) float64, voxel indices to RAS millimetres.
        names: class names by label value, background first.
    """

    voxels: np.ndarray
    labels: np.ndarray | None
    affine: np.ndarray
    names: tuple[str, ...] = field(default=())


def label_counts(labels: np.ndarray) -> np.ndarray:
    """Voxels of each label from 0 to 255 in a uint8 label map with axes (i, j, k)."""
    # Slice by slice: a whole map as the wide integers that NumPy counts would be fresh memory eight times its size.
    return sum((np.bincount(own.ravel(order="K"), minlength=256) for own in labels.T), np.zeros(256, np.int64))
