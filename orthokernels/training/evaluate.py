"""Judge weights on a test set: every metric with its interval, as one object, tables and plots."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.weights import Weights, load_weights
from orthokernels.tasks import PLANES, class_names
from orthokernels.training.bootstrap import (
    aurocs,
    diagnosis_intervals,
    interval,
    mean_over_labels,
    means,
    patient_counts,
)
from orthokernels.training.checks import check_records
from orthokernels.training.config_heads import EvaluateConfig
from orthokernels.training.curves import progress
from orthokernels.training.metrics import diagnosis_metrics, mean_of
from orthokernels.training.predictions import Findings, SeriesOutput, run_records, study_findings
from orthokernels.training.series import Record
from orthokernels.training.splits import read_both, split_as_set
from orthokernels.training.weights_folder import folder_for_results, written_to

Evaluation = dict[str, Any]


def evaluate(
    data: Path,
    weights: str | Weights,
    config: EvaluateConfig,
    out: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    silent: bool = True,
) -> Evaluation:
    """Run weights over a test set and score them.

    Args:
        data: a data set with label maps, findings, or both.
        weights: a folder or name, as ``orthokernels run`` takes it.
        out: folder for evaluation.json, tables (metrics.csv, findings.csv, series.csv) and plots.

    Returns:
        Figures, and under "intervals" the same layout with (low, high). "mean_dice" (over planes of the mean over
        structures), "mean_dice_by_plane", "dice" and "surface_distance_mm" (plane, then structure), what
        ``diagnosis_metrics`` gives ("macro_auroc", "auroc" by label, ...), "single_plane" (macro AUROC of each
        plane's own head) and "fusion_gain" (over the best single plane). Parts that can't be scored are absent, as are
        labels that the data do not tell.

    Raises:
        InputError: data or weights can not be used, or nothing in the data can be scored with them.
    """
    if isinstance(weights, str):
        weights = load_weights(weights, config.data.joint)
    config = _prepared_for(weights, config)
    with nullcontext() if out is None else folder_for_results(out):
        records = records_to_score(data, config)
        with progress("Evaluating", 10, silent) as tell:
            outputs = run_records(
                records, weights, mode=config.data.preparation, seed=config.seed, draws=config.draws, device=device,
                surface_distance=config.surface_distance, tell=lambda done, total: tell(done, total, {}),
            )  # fmt: skip
        findings = study_findings(outputs, weights)
        result = score(outputs, findings, weights, config)
        if "macro_auroc" not in result and "mean_dice" not in result:
            raise InputError(f"{data}: nothing can be scored: the weights' heads and the data's labels do not meet.")
    result = {"data": data.name, **result}
    if out is not None:
        write_evaluation(out, result, outputs, findings, weights)
    return result


def _prepared_for(weights: Weights, config: EvaluateConfig) -> EvaluateConfig:
    """The settings with the weights' own preparation, unless they name one.

    Raises:
        InputError: they name another than the heads were trained on.
    """
    own = weights.preparation
    named = config.data.preparation if "preparation" in config.data.model_fields_set else None
    if own is not None and named not in (None, own):
        raise InputError(
            f"data.preparation = {named}: the heads of {weights.name} were trained on studies of the {own} "
            "preparation. Leave it out."
        )
    data = config.data.model_copy(update={"preparation": named or own or "full"})
    return config.model_copy(update={"data": data})


def records_to_score(data: Path, config: EvaluateConfig) -> list[Record]:
    """The checked records of the test set; a split that the data set does not give is drawn as training draws it."""
    records = read_both(data, config.data)
    check_records(records, preparation=config.data.preparation)
    chosen = records if config.split == "all" else split_as_set(records, config.data)[config.split]
    if not chosen:
        raise InputError(
            f"{data}: no study is in the split {config.split!r}. Give the split file of the training, or its settings: "
            "data.validate_share, data.test_share and data.split_seed."
        )
    return chosen


def score(
    outputs: Sequence[SeriesOutput], findings: Findings | None, weights: Weights, config: EvaluateConfig
) -> Evaluation:
    """The figures and intervals of outputs; see ``evaluate``."""
    result: Evaluation = {
        "weights": weights.name,
        "digest": weights.digest(),
        "trained": weights.trained,
        "joint": weights.joint,
        "series": len(outputs),
        "studies": len({output.record.study for output in outputs}),
        "patients": len({output.record.patient for output in outputs}),
        "fusion": weights.fusion_name,
        "intervals": {"level": config.level, "draws": config.bootstrap, "by": "patient"},
    }
    segmented = [output for output in outputs if output.dice is not None]
    if segmented:
        _add(result, *_segmentation(segmented, weights, config))
    if findings is not None:
        _add(result, *_diagnosis(findings, weights, config))
    return result


def _add(result: Evaluation, figures: Evaluation, intervals: Evaluation) -> None:
    result.update(figures)
    result["intervals"].update(intervals)


def _segmentation(
    outputs: Sequence[SeriesOutput], weights: Weights, config: EvaluateConfig
) -> tuple[Evaluation, Evaluation]:
    """Scores by plane and structure. The mean over structures is of their means, so each counts the same."""
    figures: Evaluation = {"dice": {}, "mean_dice_by_plane": {}, "surface_distance_mm": {}}
    intervals: Evaluation = {"dice": {}, "mean_dice_by_plane": {}, "surface_distance_mm": {}}
    drawn_planes = []
    # One draw of patients for all planes, so that their mean's interval knows that planes share patients.
    counts_of_all = patient_counts([o.record.patient for o in outputs], draws=config.bootstrap)
    for plane in PLANES:
        rows = [n for n, output in enumerate(outputs) if output.record.plane == plane]
        if not rows:
            continue
        counts, own = counts_of_all[:, rows], [outputs[n] for n in rows]
        names = _structures(weights, plane)
        for key, scores in (("dice", [o.dice for o in own]), ("surface_distance_mm", [o.distance for o in own])):
            columns = {name: [s[n] if s is not None else None for s in scores] for n, name in enumerate(names)}
            drawn = {name: means(values, counts) for name, values in columns.items()}
            figures[key][plane] = {name: mean_of(values) for name, values in columns.items()}
            intervals[key][plane] = {name: interval(values, config.level) for name, values in drawn.items()}
            if key == "dice":
                drawn_planes.append(mean_over_labels(np.stack(list(drawn.values()), axis=1)))
                figures["mean_dice_by_plane"][plane] = mean_of(figures["dice"][plane].values())
                intervals["mean_dice_by_plane"][plane] = interval(drawn_planes[-1], config.level)
    figures["mean_dice"] = mean_of(figures["mean_dice_by_plane"].values())
    intervals["mean_dice"] = interval(mean_over_labels(np.stack(drawn_planes, axis=1)), config.level)
    if not config.surface_distance:
        del figures["surface_distance_mm"], intervals["surface_distance_mm"]
    return figures, intervals


def _diagnosis(findings: Findings, weights: Weights, config: EvaluateConfig) -> tuple[Evaluation, Evaluation]:
    keys = findings.labels
    thresholds = [weights.thresholds.get(key, 0.5) for key in keys]
    counts = patient_counts(findings.patients, draws=config.bootstrap)
    figures = diagnosis_metrics(findings.truth, findings.probability, keys, thresholds)
    intervals = diagnosis_intervals(findings.truth, findings.probability, keys, thresholds, counts, config.level)
    figures |= {"studies_with_findings": len(findings.studies), "positives": {}}
    figures["positives"] = {key: int(n) for key, n in zip(keys, findings.truth.sum(axis=0), strict=True)}
    figures["thresholds"] = dict(zip(keys, thresholds, strict=True))
    drawn = {
        plane: _drawn_area(findings.truth, probability, counts)
        for plane, probability in {**findings.single, "": findings.probability}.items()
    }
    fused = drawn.pop("")
    if drawn:
        single = {
            plane: diagnosis_metrics(findings.truth, p, keys, thresholds)["macro_auroc"]
            for plane, p in findings.single.items()
        }
        figures["single_plane"], intervals["single_plane"] = (
            single,
            {p: interval(v, config.level) for p, v in drawn.items()},
        )
        known = {plane: area for plane, area in single.items() if area is not None}
        if known and figures["macro_auroc"] is not None:
            best = max(known, key=lambda plane: known[plane])
            figures["best_single_plane"] = best
            figures["fusion_gain"] = figures["macro_auroc"] - known[best]
            intervals["fusion_gain"] = interval(fused - drawn[best], config.level)
    return figures, intervals


def _drawn_area(truth: np.ndarray, probability: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Macro AUROC in each draw."""
    areas = [aurocs(truth[:, n], probability[:, n], counts) for n in range(truth.shape[1])]
    return mean_over_labels(np.stack(areas, axis=1))


def rows_of(result: Evaluation) -> Iterator[tuple[str, str, str, float | None, Any]]:
    """Every figure with an interval as (metric, plane, item, value, interval)."""
    intervals: Mapping[str, Any] = result["intervals"]
    for name, bounds in intervals.items():
        if name not in result:
            continue
        value = result[name]
        if not isinstance(value, dict):
            yield name, "", "", value, bounds
            continue
        for key, own in value.items():
            plane, item = (key, "") if key in PLANES else ("", key)
            if isinstance(own, dict):
                for structure, figure in own.items():
                    yield name, plane, structure, figure, bounds[key][structure]
            else:
                yield name, plane, item, own, bounds[key]


def write_evaluation(
    out: Path, result: Evaluation, outputs: Sequence[SeriesOutput], findings: Findings | None, weights: Weights
) -> None:
    """evaluation.json, three tables, and the plots.

    Raises:
        InputError: ``out`` can not be written.
    """
    from orthokernels.training.plots import dice_boxes, finding_plots

    with written_to(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
        _write_table(
            out / "metrics.csv",
            ["metric", "plane", "item", "value", "low", "high"],
            [[name, plane, item, value, *(bounds or ("", ""))] for name, plane, item, value, bounds in rows_of(result)],
        )
        segmented = [output for output in outputs if output.dice is not None]
        if segmented:
            header = ["study", "plane", "structure", "dice", "surface_distance_mm"]
            _write_table(out / "series.csv", header, list(_series_rows(segmented, weights)))
            dice_boxes(segmented, {plane: _structures(weights, plane) for plane in weights.planes}, out)
        else:
            _remove(out, "series.csv", "dice.png")
        if findings is not None:
            keys = findings.labels
            _write_table(out / "findings.csv", ["study", "patient", *(f"{k} truth" for k in keys), *keys], [
                [study, patient, *truth, *(f"{p:.6f}" for p in probability)]
                for study, patient, truth, probability in zip(
                    findings.studies, findings.patients, findings.truth.tolist(), findings.probability, strict=True
                )
            ])  # fmt: skip
            finding_plots(findings.truth, findings.probability, keys, out)
        else:
            _remove(out, "findings.csv", "roc.png", "precision_recall.png", "calibration.png")


def _remove(out: Path, *names: str) -> None:
    """Drop what an evaluation of other data or weights left beside the files of this one."""
    for name in names:
        (out / name).unlink(missing_ok=True)


def _series_rows(outputs: Sequence[SeriesOutput], weights: Weights) -> Iterator[list[Any]]:
    for output in outputs:
        own = output.record
        for n, name in enumerate(_structures(weights, own.plane)):
            distance = output.distance[n] if output.distance is not None else ""
            yield [own.study, own.plane, name, output.dice[n] if output.dice is not None else "", distance]


def _structures(weights: Weights, plane: str) -> tuple[str, ...]:
    segmentation = weights.planes[plane].segmentation
    return class_names(segmentation.classes)[1:] if segmentation is not None else ()


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [header, *([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)]
        )
