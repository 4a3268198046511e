"""Patient data beside the images: a CSV to columns, and their late fusion with the planes' vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.patient_data import LateFusion
from orthokernels.models.patient_data import NUMBERS, UNKNOWN, Encoding
from orthokernels.training.config_heads import HeadConfig
from orthokernels.training.fusion_training import Vectors, fit, seeded
from orthokernels.training.records import read_table

PatientTable = dict[str, dict[str, str]]  # rows by study


def read_patient_table(path: Path) -> PatientTable:
    """Rows by study (or ``acc_id``, as published).

    Raises:
        InputError: a column is missing, a study is there twice, or a number is none.
    """
    rows = read_table(path)
    key = next((name for name in ("study", "acc_id") if name in rows[0]), None)
    missing = [name for name in (*NUMBERS, "sex", "patient_type", "event") if name not in rows[0]]
    if key is None or missing:
        raise InputError(f"{path}: has no column {', '.join(missing) or 'study'}; patient data need them all.")
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row[key] in found:
            raise InputError(f"{path}: lists study {row[key]} twice.")
        for name in NUMBERS:
            if row[name] and not _is_number(row[name]):
                raise InputError(f"{path}, study {row[key]}: {name} is {row[name]!r}; leave it empty where unknown.")
        found[row[key]] = row
    return found


def encoding_of(rows: Sequence[Mapping[str, str]]) -> Encoding:
    """The encoding that training rows fix."""
    means, deviations = [], []
    for name in NUMBERS:
        known = torch.tensor([float(row[name]) for row in rows if row[name]], dtype=torch.float64)
        means.append(float(known.mean()) if len(known) else 0.0)
        deviation = float(known.std(correction=0)) if len(known) else 0.0
        deviations.append(deviation if deviation > 0 else 1.0)
    events = sorted({row["event"] for row in rows if row["event"]} - {UNKNOWN})
    return Encoding(tuple(means), tuple(deviations), (*events, UNKNOWN))


def columns_of(encoding: Encoding, rows: Sequence[Mapping[str, str]]) -> list[Tensor]:
    """Rows as ``LateFusion`` takes them: standard scores, one-hot sex and patient type, class of the event."""
    return [torch.from_numpy(column) for column in encoding.encode(rows)]


def late_fusion_arguments(vectors: Vectors, encoding: Encoding) -> dict[str, int]:
    return {
        "mri_width": sum(plane.shape[1] for plane in vectors.planes),
        "labels": vectors.truth.shape[1],
        "events": len(encoding.events),
    }


def train_late_fusion(
    vectors: Vectors, rows: Sequence[Mapping[str, str]], config: HeadConfig, *, seed: int
) -> tuple[LateFusion, Encoding]:
    """Late fusion of the planes' vectors, side by side, with each triplet's row of patient data."""
    encoding = encoding_of(rows)
    fusion = seeded(lambda: LateFusion(**late_fusion_arguments(vectors, encoding)), seed)
    inputs = [torch.cat(vectors.planes, dim=1), *columns_of(encoding, rows)]
    fit(fusion, inputs, vectors.truth, vectors.weight, config, seed=seed, logits_of=lambda out: out["fused"])
    return fusion, encoding


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
