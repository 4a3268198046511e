"""Train the diagnosis heads: a pooling and a head per plane, then the fusion of the planes, then thresholds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orthokernels.errors import InputError
from orthokernels.models.patient_data import LateFusionCard
from orthokernels.models.weights_folder import load_settings
from orthokernels.tasks import LABELS, PLANES
from orthokernels.training.config_heads import DiagnoseConfig
from orthokernels.training.diagnosis_files import (
    Fused,
    Late,
    PlaneResult,
    chosen_thresholds,
    write_gates,
    write_heads,
)
from orthokernels.training.distributed import Processes, alone
from orthokernels.training.fusion_training import Vectors, fusion_arguments, train_fusion, train_gate
from orthokernels.training.metrics import diagnosis_metrics
from orthokernels.training.patient_table import (
    PatientTable,
    columns_of,
    late_fusion_arguments,
    read_patient_table,
    train_late_fusion,
)
from orthokernels.training.plane_heads import train_plane
from orthokernels.training.selection import diagnosed, select
from orthokernels.training.series import Record
from orthokernels.training.triplets import Triplets, triplets
from orthokernels.training.weights_folder import need_denoisers, started_from, written_to


def diagnose(
    data: Path,
    weights: Path,
    out: Path,
    config: DiagnoseConfig,
    *,
    processes: Processes | None = None,
    resume: bool = True,
    silent: bool = True,
) -> dict[str, Any]:
    """Train diagnosis heads and write them; returns the validation figures of every plane and fusion.

    Args:
        data: a data set with findings of ``config.data.joint``.
        weights: folder with the denoisers.
        out: folder for the result, a weights folder like ``weights`` with the heads added; it may be the same.

    Raises:
        InputError: data, weights or patient data can not be used.
    """
    processes = processes or alone()
    _check_other_planes(weights, out, config)
    if config.patient_data is not None and set(config.planes) != set(PLANES):
        missing = " and ".join(plane for plane in PLANES if plane not in config.planes)
        raise InputError(
            f"patient_data {config.patient_data}: is fused with the vectors of all three planes, and {missing} would "
            "not be trained. Leave it out, or train all three."
        )
    table = None if config.patient_data is None else read_patient_table(config.patient_data)
    with started_from(weights, out, config.data.preparation) if processes.first else nullcontext():
        processes.wait()
        need_denoisers(out, config.planes)
        settings, joint = load_settings(out), config.data.joint
        selection = select(data, config.data, settings.size, config.planes, diagnosed, processes, silent=silent)
        sides = {side: _by_plane(getattr(selection, side), config.planes) for side in ("train", "validate")}
        if table is not None:
            _check_patients(table, sides, config)
    planes: dict[str, PlaneResult] = {
        plane: train_plane(plane, selection.of_plane(plane), out, settings, config, processes, resume, silent)
        for plane in config.planes
    }
    if not processes.first:
        return {}
    held_out = _held_out(sides, config.planes)
    if not held_out:
        sides["validate"] = sides["train"]  # figures are then of the training data
        for own in planes.values():
            own.validate = own.train
    report: dict[str, Any] = {"joint": joint, "validated_on_training_data": not held_out, "planes": {}}
    single: dict[str, tuple[Triplets, np.ndarray]] = {}
    for plane, own in planes.items():
        found = triplets(sides["validate"], (plane,))
        logits = own.classifier.head(own.validate[found.rows[:, 0]]).detach()
        single[plane] = found, found.mean_per_study(logits.sigmoid().numpy())
        report["planes"][plane] = _figures(*single[plane], joint)
    fused, late = _fuse(planes, sides, config, report, table) if set(config.planes) == set(PLANES) else ([], None)
    kept = _kept(fused, config, report)
    truth, probability = _final(kept, single, sides["validate"], config.planes)
    thresholds = chosen_thresholds(joint, truth, probability, config.thresholds)
    write_heads(out, planes, kept, late, thresholds, config)
    gates = out / f"{joint}.gate_weights.csv"
    with written_to(out):
        if kept is not None and kept.gates is not None:
            write_gates(gates, triplets(sides["validate"]).studies, kept.gates, joint)
        else:
            gates.unlink(missing_ok=True)  # of an earlier run, whose fusion was another
        (out / f"{joint}.diagnosis.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _by_plane(records: Sequence[Record], planes: Sequence[str]) -> dict[str, list[Record]]:
    return {plane: [record for record in records if record.plane == plane] for plane in planes}


def _held_out(sides: dict[str, dict[str, list[Record]]], planes: Sequence[str]) -> bool:
    """Whether a study with every plane is held out; where none is to train on either, whether a series of each is."""
    if triplets(sides["train"], planes).studies:
        return bool(triplets(sides["validate"], planes).studies)
    return all(sides["validate"].values())


def _figures(found: Triplets, probability: np.ndarray, joint: str) -> dict[str, Any]:
    """Figures at 0.5 of the labels that the data tell, over studies that know all of these."""
    studies, labels = found.told()
    if not studies.any():
        return {}
    keys = [label.key for label, told in zip(LABELS[joint], labels, strict=True) if told]
    told = np.ix_(studies, labels)
    return diagnosis_metrics(found.truth[told], probability[told], keys, [0.5] * len(keys))


def _vectors(planes: dict[str, PlaneResult], found: Triplets, side: str) -> Vectors:
    return Vectors(
        tuple(getattr(planes[plane], side)[found.rows[:, n]] for n, plane in enumerate(PLANES)),
        torch.from_numpy(found.truth[found.study]),
        torch.from_numpy(found.weight),
        tuple(found.patients[study] for study in found.study),
    )


def _fuse(
    planes: dict[str, PlaneResult],
    sides: dict[str, dict[str, list[Record]]],
    config: DiagnoseConfig,
    report: dict[str, Any],
    table: PatientTable | None,
) -> tuple[list[Fused], Late | None]:
    """Every mode, trained on the training triplets and scored on the validation studies; so with patient data."""
    found = {side: triplets(records) for side, records in sides.items()}
    if not len(found["train"].rows) or not len(found["validate"].rows):
        return [], None
    train, validate = (_vectors(planes, found[side], side) for side in ("train", "validate"))
    made = []
    for name in config.fusion.modes:
        arguments = fusion_arguments(name, train, config.fusion)
        if name == "gating":
            heads, gate = train_gate(train, config.fusion, seed=config.seed)
            with torch.no_grad():
                single = torch.stack([h(v) for h, v in zip(heads, validate.planes, strict=True)], dim=1)
                logits, gates = gate(single)
            fused = Fused(name, gate, arguments, logits.sigmoid().numpy(), heads, gates.numpy())
            fused.gates = found["validate"].mean_per_study(gates.numpy())
        else:
            module = train_fusion(name, train, config.fusion, seed=config.seed)
            with torch.no_grad():
                fused = Fused(name, module, arguments, module(*validate.planes).sigmoid().numpy())
        fused.probability = found["validate"].mean_per_study(fused.probability)
        report.setdefault("fusion", {})[name] = _figures(found["validate"], fused.probability, config.data.joint)
        made.append(fused)
    if table is None:
        return made, None
    late, report["patient_data"] = _patient_data(train, validate, found, table, config)
    return made, late


def _kept(fused: list[Fused], config: DiagnoseConfig, report: dict[str, Any]) -> Fused | None:
    """The fusion to write: the one asked for, or the best macro AUROC on validation data."""
    if not fused:
        return None
    name = config.fusion.keep
    if name == "best":
        name = max(fused, key=lambda f: report["fusion"][f.name].get("macro_auroc") or 0.0).name  # type: ignore[assignment]
    report["kept_fusion"] = name
    return next(f for f in fused if f.name == name)


def _final(
    kept: Fused | None,
    single: dict[str, tuple[Triplets, np.ndarray]],
    records: dict[str, list[Record]],
    planes: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probability [studies, labels] of the validation studies as the pipeline will score them."""
    if kept is not None:
        return triplets(records).truth, kept.probability
    common = sorted(set.intersection(*(set(single[plane][0].studies) for plane in planes)))
    rows = {plane: [single[plane][0].studies.index(study) for study in common] for plane in planes}
    truth = single[planes[0]][0].truth[rows[planes[0]]]
    return truth, np.mean([single[plane][1][rows[plane]] for plane in planes], axis=0)


def _check_other_planes(weights: Path, out: Path, config: DiagnoseConfig) -> None:
    """Refuse heads of a plane that would not be trained: a run would average them with those of the planes that are,
    by thresholds that were chosen without them.
    """
    joint = config.data.joint
    files = {path.name for folder in (weights, out) if folder.is_dir() for path in folder.glob("*.safetensors")}
    others = [
        plane for plane in PLANES
        if plane not in config.planes and {f"{plane}.safetensors", f"{plane}.{joint}.head.safetensors"} <= files
    ]  # fmt: skip
    if others:
        folder = next(own for own in (weights, out) if (own / f"{others[0]}.{joint}.head.safetensors").is_file())
        together = ",".join(plane for plane in PLANES if plane in (*config.planes, *others))
        raise InputError(
            f"--planes {','.join(config.planes)}: {folder} also has {joint} heads of {' and '.join(others)}, which the "
            f"fusion and thresholds would no longer fit. Train them together (--planes {together}), or remove "
            f"{' and '.join(f'{plane}.{joint}.*' for plane in others)} first."
        )


def _check_patients(
    table: PatientTable, sides: dict[str, dict[str, list[Record]]], config: DiagnoseConfig
) -> None:  # fmt: skip
    """Refuse a table that nothing can be fused with, or that lacks a study which the fusion will see: before the
    training, which takes longer.
    """
    if not triplets(sides["train"]).studies:
        raise InputError(
            f"patient_data {config.patient_data}: is fused with the vectors of all three planes, and no training study "
            "has all three. Leave it out."
        )
    studies = [s for records in sides.values() for s in triplets(records).studies]
    missing = [study for study in studies if study not in table]
    if missing:
        raise InputError(f"{config.patient_data}: has no row for study {missing[0]} ({len(missing)} are missing).")


def _patient_data(
    train: Vectors,
    validate: Vectors,
    found: dict[str, Triplets],
    table: PatientTable,
    config: DiagnoseConfig,
) -> tuple[Late, dict[str, Any]]:
    """Late fusion with patient data, and its figures."""
    joint = config.data.joint
    rows = {side: [table[own.studies[study]] for study in own.study] for side, own in found.items()}
    fusion, encoding = train_late_fusion(train, rows["train"], config.late_fusion, seed=config.seed)
    with torch.no_grad():
        output = fusion(torch.cat(validate.planes, dim=1), *columns_of(encoding, rows["validate"]))
    own = found["validate"]
    scores = {name: own.mean_per_study(output[name].sigmoid().numpy()) for name in ("fused", "mri", "tabular")}
    arguments = late_fusion_arguments(train, encoding)
    thresholds = chosen_thresholds(joint, own.truth, scores["fused"], config.thresholds)
    late = Late(fusion, arguments, LateFusionCard(encoding, arguments["mri_width"], thresholds))
    figures = {name: _figures(own, score, joint) for name, score in scores.items()}
    return late, {**figures, "mri_share": [float(value) for value in output["alpha"]]}
