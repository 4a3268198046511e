"""Results over DICOM series whose labels are known: what the pipeline gives, with the truth in place of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from orthokernels import tasks
from orthokernels.data.geometry import plane_of, spacing
from orthokernels.data.phantom import PhantomStudy
from orthokernels.data.study import read_study
from orthokernels.data.volume import Volume
from orthokernels.pipeline import StudyRun
from orthokernels.result import Finding, Model, PlaneArrays, PlaneResult, StructureVolume, StudyResult

DIGESTS = {"model_digest": "a" * 64, "configuration_digest": "b" * 64}
NAMES = tasks.class_names(12)


def phantom_labels(study: PhantomStudy) -> Callable[[Volume], np.ndarray]:
    """The phantom's own label maps, by grid."""
    return lambda volume: next(s.labels for s in study.series if np.allclose(s.affine, volume.affine, atol=1e-3))


def true_run(paths: Sequence[Path] | Path, labels: Callable[[Volume], np.ndarray], side: str | None = "R") -> StudyRun:
    """A run over a study whose label maps ``labels`` gives, on each volume's own grid."""
    study = read_study([paths] if isinstance(paths, Path) else list(paths))
    volumes = {plane: volume for plane in study.stacks if (volume := study.load(plane)) is not None}
    maps = {plane: labels(volume) for plane, volume in volumes.items()}
    result = StudyResult(
        study_hash=study.study_hash,
        joint="knee",
        laterality=side,
        preparation="full",
        seed=0,
        model=Model(weights="truth", digest="a" * 64, trained=True, timestep={}, block={}),
        planes=tuple(_plane(plane, volume, maps[plane]) for plane, volume in volumes.items()),
        findings=tuple(
            _finding(label, probability) for label, probability in zip(tasks.LABELS["knee"], PROBABILITIES, strict=True)
        ),
    )
    arrays = {
        plane: PlaneArrays(
            volume.turn.apply(volume.voxels),
            volume.turn.apply(maps[plane]),
            volume.turn.apply_affine(volume.affine, volume.shape),
            NAMES,
        )
        for plane, volume in volumes.items()
    }
    label_maps = {plane: (maps[plane], volume.affine) for plane, volume in volumes.items()}
    return StudyRun(result, arrays, label_maps, {plane: volume.frames for plane, volume in volumes.items()})


# Present, absent, near the threshold on either side, and one that was not evaluated.
PROBABILITIES = (0.91, 0.07, 0.52, 0.48, 0.5, 0.0, 1.0, None)


def _finding(label: tasks.Label, probability: float | None) -> Finding:
    if probability is None:
        return Finding(label=label.key, name=label.name, status="not evaluated", reason="no head scores it")
    status = "present" if probability >= 0.5 else "absent"
    return Finding(label=label.key, name=label.name, status=status, probability=probability, threshold=0.5)


def _plane(plane: str, volume: Volume, labels: np.ndarray) -> PlaneResult:
    counts = np.bincount(labels.ravel(), minlength=len(NAMES))
    ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    names = {s.key: s.name for s in tasks.STRUCTURES}
    return PlaneResult(
        plane=plane,
        description=volume.source.description,
        series_hash=volume.source.series_hash,
        chosen_because="the only usable volume of this plane",
        obliquity_degrees=plane_of(volume.affine)[1],
        shape=volume.shape,
        spacing_mm=spacing(volume.affine),
        labelled_slices=(0, volume.shape[2]),
        structures=tuple(
            StructureVolume(index=n, key=key, name=names[key], ml=round(counts[n] * ml, 4), voxels=int(counts[n]))
            for n, key in enumerate(NAMES)
            if n
        ),
    )


def comments_of(report: Dataset) -> list[str]:
    """What a structured report says beside its measurements."""
    items = [item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeMeaning == "Comment"]
    return [item.TextValue for item in items]
