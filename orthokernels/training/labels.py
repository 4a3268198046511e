"""How few labels do: the same heads on pre-trained features and on the same network from scratch, and MONAI's networks.

Every run (method, share, seed) has a folder of its own with checkpoints and, once done, its scores; a killed comparison
takes up where it was.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orthokernels.errors import InputError
from orthokernels.models.weights_folder import Card, load_card, load_settings
from orthokernels.training.bootstrap import aurocs, interval, mean_over_labels, means, patient_counts
from orthokernels.training.config import named
from orthokernels.training.config_heads import LabelsConfig
from orthokernels.training.contenders import train_and_score
from orthokernels.training.distributed import Processes, alone
from orthokernels.training.randomness import Stream, generator
from orthokernels.training.selection import Selection, diagnosed, labelled
from orthokernels.training.series import Record
from orthokernels.training.splits import fill, load_splits, patients_of, prepared_cache
from orthokernels.training.weights_folder import folder_for_results, need_denoisers, written_to

Rows = list[dict[str, Any]]
HELD_OUT, PERHAPS_SEEN = "held out", "perhaps seen"  # test patients, from the denoiser and by it
METRIC = {"segmentation": "dice", "diagnosis": "macro_auroc"}


def labels(
    data: Path,
    weights: Path,
    out: Path,
    config: LabelsConfig,
    *,
    processes: Processes | None = None,
    silent: bool = True,
) -> Rows:
    """Train every method on every share with every seed, score on the test patients, and write table and plot.

    The denoiser may have seen test patients in its pre-training, without their labels, unless it was pre-trained on
    exactly the training patients: as ``train pretrain`` does by default on the same data set. Its card tells.

    Args:
        data: a data set; its test split, or ``data.test_share`` of the patients, is scored on.
        weights: folder with the denoiser.
        out: folder for label_efficiency_TASK_PLANE.csv and .png, and the runs.

    Returns:
        Rows of method, share, patients, the mean over seeds ("value") with its interval ("low", "high"), by how much it
        beats ``config.baseline``, where that is compared ("gain", "gain_low", "gain_high"), and whether the test
        patients were ``HELD_OUT`` or ``PERHAPS_SEEN``. Intervals draw test patients again; the seeds' scores are
        averaged within each draw.

    Raises:
        InputError: data or weights can not be used.
    """
    from orthokernels.training.plots import efficiency_curves

    processes = processes or alone()
    need_denoisers(weights, (config.plane,))
    settings = load_settings(weights)
    task = "segmentation" if config.task == "segmentation" else config.data.joint
    config = config.model_copy(update={"point": config.point or settings.point(task, config.plane)})
    with folder_for_results(out):
        selection, seen = _selection(data, weights, config, settings.size, processes, silent)
    scores: dict[tuple[str, float], list[Any]] = {}
    for share in config.shares:
        for seed in config.seeds:
            chosen = Selection(subset(selection.train, share, seed), selection.validate, selection.cache)
            for method in config.methods:
                folder = out / "runs" / f"{config.task}_{config.plane}" / f"{method}_{share:g}_{seed}"
                found = _scores(folder, method, seed, chosen, weights, config, processes, silent)
                scores.setdefault((method, share), []).append(found)
    rows = [{**row, "test_patients": seen} for row in _rows(scores, selection, config)]
    name = f"label_efficiency_{config.task}_{config.plane}"
    with written_to(out):
        with (out / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        efficiency_curves(rows, METRIC[config.task], out / f"{name}.png")
    return rows


def _selection(
    data: Path, weights: Path, config: LabelsConfig, size: int, processes: Processes, silent: bool
) -> tuple[Selection, str]:
    """Training records, and the test records where others hold what they validate on; and whether these were seen."""
    own = config.data.model_copy(update={"size": size})
    usable = labelled if config.task == "segmentation" else diagnosed
    splits = load_splits(data, own, (config.plane,))
    train, test = (tuple(record for record in splits.get(side, []) if usable(record)) for side in ("train", "test"))
    if not train or not test:
        side = "train" if not train else "test"
        raise InputError(f"{data}: no {config.plane} series to {side} on has labels. Set data.test_share, or a split.")
    cache = prepared_cache(own)
    fill(cache, [*train, *test], own.workers, processes, silent)
    pretrained = _denoiser_of(weights, config).origin.get("patients")
    return Selection(train, test, cache), HELD_OUT if pretrained == patients_of(splits["train"]) else PERHAPS_SEEN


def _denoiser_of(weights: Path, config: LabelsConfig) -> Card:
    return load_card(weights / f"{config.plane}.safetensors", ("unet",))


def subset(records: Sequence[Record], share: float, seed: int) -> tuple[Record, ...]:
    """The records of a share of the patients, at least one; a larger share keeps those of a smaller one."""
    patients = sorted({record.patient for record in records})
    order = generator(seed, Stream.ORDER).permutation(len(patients))
    kept = {patients[n] for n in order[: max(1, math.ceil(share * len(patients) - 1e-9))]}
    return tuple(record for record in records if record.patient in kept)


def _scores(
    folder: Path,
    method: str,
    seed: int,
    selection: Selection,
    weights: Path,
    config: LabelsConfig,
    processes: Processes,
    silent: bool,
) -> list[Any]:
    """A run's scores, from its folder where it is done: Dice [series, structures] or probabilities [series, labels]."""
    path = folder / "scores.json"
    identity = {
        **named(config, exclude={"shares", "seeds", "methods", "bootstrap", "data"}),
        **selection.identity(),
        "test series": selection.held_out(),
        "data.masks_mirrored": config.data.masks_mirrored,
        "method": method,
        "seed": seed,
        "denoiser": _denoiser_of(weights, config).digest,
    }
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored["identity"] != identity:
            raise InputError(f"{folder}: belongs to a comparison with other settings or data. Use another --out.")
        return stored["scores"]
    found = train_and_score(method, seed, selection, weights, config, folder, identity, processes, silent)
    with written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".writing")
        beside.write_text(json.dumps({"identity": identity, "scores": found}))
        os.replace(beside, path)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return found


def _rows(scores: dict[tuple[str, float], list[Any]], selection: Selection, config: LabelsConfig) -> Rows:
    test = selection.validate
    counts = patient_counts([record.patient for record in test], draws=config.bootstrap)
    counts = np.concatenate([np.ones((1, len(test))), counts])  # the first "draw" is the test set itself
    drawn = {key: _drawn(runs, test, counts, config.task) for key, runs in scores.items()}
    patients = {
        share: len({r.patient for r in subset(selection.train, share, config.seeds[0])}) for share in config.shares
    }
    rows = []
    for (method, share), values in drawn.items():
        low, high = interval(values[1:]) or (math.nan, math.nan)
        row: dict[str, Any] = {
            "task": config.task, "plane": config.plane, "method": method, "share": share, "patients": patients[share],
            "value": float(values[0]), "low": low, "high": high,
        }  # fmt: skip
        if (config.baseline, share) in drawn:
            gain = values - drawn[config.baseline, share]
            bounds = interval(gain[1:]) or (math.nan, math.nan)
            row |= {"gain": float(gain[0]), "gain_low": bounds[0], "gain_high": bounds[1]}
        rows.append(row)
    return rows


def _drawn(runs: Sequence[Any], test: Sequence[Record], counts: np.ndarray, task: str) -> np.ndarray:
    """The metric's mean over seeds in each draw, [draws]."""
    each = []
    for scores in runs:
        if task == "segmentation":
            structures = [means([row[n] for row in scores], counts) for n in range(len(scores[0]))]
            each.append(mean_over_labels(np.stack(structures, axis=1)))
        else:
            truth, probability = np.array([r.findings for r in test], float), np.array(scores, float)
            areas = []
            for n in range(truth.shape[1]):
                known = np.isfinite(truth[:, n])
                areas.append(aurocs(truth[known, n], probability[known, n], counts[:, known]))
            each.append(mean_over_labels(np.stack(areas, axis=1)))
    return np.mean(each, axis=0)
