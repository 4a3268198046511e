"""What a model makes of a study's vectors, output by output: each plane's own head, the fusion, and patient data."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from orthokernels.models.patient_data import CLASSES, NUMBERS, PatientColumns
from orthokernels.models.study_model import Array, StudyModel
from orthokernels.tasks import LABELS, PLANES

STUDY_LOGITS, GATE_SHARES = "study logits", "gate shares"
PATIENT_LOGITS, PATIENT_SHARES = "patient data logits", "patient data shares"
HEAD_LOGITS = {plane: f"{plane} head logits" for plane in PLANES}

# What scores findings beside what ``probabilities_of`` gives, which the fusion is part of.
SCORERS = {**{f"{plane} head": output for plane, output in HEAD_LOGITS.items()}, "patient data": PATIENT_LOGITS}

Outputs = Mapping[str, Array]


def study_outputs(model: StudyModel, study: str, vectors: Mapping[str, Array]) -> dict[str, Array]:
    """Everything that a model gives for a study.

    Args:
        study: its name, which draws its patient where the model fuses patient data.
        vectors: by plane, [width].

    Returns:
        Logits, [labels], of each head and fusion that there is; each plane's share where the fusion gates, [3, labels];
        the images' share beside patient data, [labels]. Fusions need all three planes.
    """
    found = {HEAD_LOGITS[plane]: model.planes[plane].score(own) for plane, own in vectors.items()
             if model.planes[plane].scores}  # fmt: skip
    if len(vectors) < len(PLANES):
        return found
    rows = np.stack([vectors[plane] for plane in PLANES])
    if model.fusion_name is not None:
        gated = model.fusion_name == "gating"
        read = np.stack([found[HEAD_LOGITS[plane]] for plane in PLANES]) if gated else rows
        found[STUDY_LOGITS], shares = model.fuse(read)
        if shares is not None:
            found[GATE_SHARES] = shares
    if model.late_fusion is not None:
        columns = drawn_patient(study, len(model.late_fusion.encoding.events))
        found[PATIENT_LOGITS], found[PATIENT_SHARES] = model.fuse_with_patient(rows, columns)
    return found


def drawn_patient(study: str, events: int) -> PatientColumns:
    """A patient for a study that has none, drawn by the study's name: it tells models apart, and nothing of anybody."""
    rng = np.random.default_rng(zlib.crc32(study.encode()))
    classes = np.eye(len(CLASSES), dtype=np.float32)
    return PatientColumns(
        rng.uniform(-2, 2, len(NUMBERS)).astype(np.float32), classes[rng.integers(len(classes))],
        classes[rng.integers(len(classes))], int(rng.integers(events)),
    )  # fmt: skip


def mean_shares(joint: str, outputs: Sequence[Outputs]) -> dict[str, dict[str, float]]:
    """Each plane's share in each label, over the studies; empty without a gate."""
    shares = [own[GATE_SHARES] for own in outputs if GATE_SHARES in own]
    if not shares:
        return {}
    keys = [label.key for label in LABELS[joint]]
    means: np.ndarray = np.stack(shares).mean(axis=0, dtype=np.float64)
    return {plane: dict(zip(keys, own.tolist(), strict=True)) for plane, own in zip(PLANES, means, strict=True)}
