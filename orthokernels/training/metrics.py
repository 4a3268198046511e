"""How good predictions are: findings, label maps, and calibration. Libraries compute what they have.

What can't be scored (a label of which only one class occurs, a structure that is in neither map) is None and is left
out of means, never counted as 0 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_calibration_error

CALIBRATION_BINS = 15


def auroc(truth: np.ndarray, score: np.ndarray) -> float | None:
    """Area under the ROC curve of one label; None where only one class occurs.

    Args:
        truth: [studies], 0 or 1.
        score: [studies], higher for present.
    """
    return float(sk.roc_auc_score(truth, score)) if len(np.unique(truth)) == 2 else None


def average_precision(truth: np.ndarray, score: np.ndarray) -> float | None:
    """Area under the precision-recall curve as a step function; None where only one class occurs."""
    return float(sk.average_precision_score(truth, score)) if len(np.unique(truth)) == 2 else None


def calibration_error(truth: np.ndarray, probability: np.ndarray) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599) of one label, or of several together.

    Over equal bins of the probability: how far its mean is from how often the label is present, weighted by count.
    """
    return float(
        binary_calibration_error(
            torch.from_numpy(np.asarray(probability, np.float32).ravel()),
            torch.from_numpy(np.asarray(truth).astype(np.int64).ravel()),
            n_bins=CALIBRATION_BINS,
            norm="l1",
        )
    )


def diagnosis_metrics(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], thresholds: Sequence[float]
) -> dict[str, Any]:
    """Every figure of a set of findings.

    Args:
        truth: [studies, labels], 0 or 1.
        probability: [studies, labels].
        labels: their keys.
        thresholds: probability from which each counts as present.

    Returns:
        ``auroc``, ``average_precision``, ``accuracy``, ``f1``, ``calibration_error``: by label. ``macro_auroc``,
        ``map`` (mean average precision), ``mean_accuracy``, ``ece`` (over all labels together); macro and micro
        precision, recall and F1 at the thresholds under the publication's names ``CP``, ``CR``, ``CF1`` and ``OP``,
        ``OR``, ``OF1``. CF1 is the mean of the labels' F1.
    """
    truth, probability = np.asarray(truth).astype(int), np.asarray(probability, np.float64)
    called = (probability >= np.asarray(thresholds)).astype(int)
    columns = {label: (truth[:, n], probability[:, n], called[:, n]) for n, label in enumerate(labels)}
    by_label: dict[str, dict[str, float | None]] = {
        "auroc": {label: auroc(t, p) for label, (t, p, _) in columns.items()},
        "average_precision": {label: average_precision(t, p) for label, (t, p, _) in columns.items()},
        "accuracy": {label: float(sk.accuracy_score(t, c)) for label, (t, _, c) in columns.items()},
        "f1": {label: float(sk.f1_score(t, c, zero_division=0.0)) for label, (t, _, c) in columns.items()},
        "calibration_error": {label: calibration_error(t, p) for label, (t, p, _) in columns.items()},
    }
    found: dict[str, Any] = {
        **by_label,
        "macro_auroc": mean_of(by_label["auroc"].values()),
        "map": mean_of(by_label["average_precision"].values()),
        "mean_accuracy": mean_of(by_label["accuracy"].values()),
        "ece": calibration_error(truth, probability),
    }
    for average, names in (("macro", ("CP", "CR", "CF1")), ("micro", ("OP", "OR", "OF1"))):
        # A single label must not turn into two classes: the columns say which positives are counted.
        figures = sk.precision_recall_fscore_support(
            np.column_stack([truth, np.zeros(len(truth), int)]),
            np.column_stack([called, np.zeros(len(truth), int)]),
            labels=range(len(labels)),
            average=average,
            zero_division=0.0,
        )
        found |= {name: float(value) for name, value in zip(names, figures[:3], strict=True)}
    return found


def best_threshold(truth: np.ndarray, score: np.ndarray, rule: str = "f1") -> float:
    """The probability from which a label should count as present; 0.5 where only one class occurs.

    Args:
        truth, score: [studies], of data that the test set has no part in.
        rule: "f1" for the largest F1, "youden" for the largest sensitivity + specificity - 1.

    Returns:
        Halfway between the last score that counts and the next one below, so that rounding can't tip a study.
    """
    truth, score = np.asarray(truth).astype(bool), np.asarray(score, np.float64)
    if truth.all() or not truth.any():
        return 0.5
    candidates = np.unique(score)
    called = score[None] >= candidates[:, None]  # [candidates, studies]
    hits, false = (called & truth).sum(axis=1), (called & ~truth).sum(axis=1)
    if rule == "youden":
        value = hits / truth.sum() - false / (~truth).sum()
    elif rule == "f1":
        value = 2 * hits / (hits + false + truth.sum())
    else:
        raise ValueError(f"the rule is 'f1' or 'youden', not {rule!r}")
    best = int(np.argmax(value))
    below = candidates[best - 1] if best else 0.0
    return float((candidates[best] + below) / 2)


def dice(predicted: np.ndarray, truth: np.ndarray, classes: int) -> list[float | None]:
    """Dice coefficient of classes 1 to ``classes`` - 1, 2 |A and B| / (|A| + |B|); None where neither map has it.

    Args:
        predicted, truth: label maps of one shape, any integer dtype. Voxels whose truth is no class (255, negative) do
            not count.
    """
    predicted, truth = np.asarray(predicted).ravel(), np.asarray(truth).ravel()
    counted = (truth >= 0) & (truth < classes)
    pairs = np.bincount(truth[counted].astype(np.int64) * classes + predicted[counted], minlength=classes**2)
    table = pairs.reshape(classes, classes)  # [truth, predicted]
    both, either = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
    return [float(2 * both[c] / either[c]) if either[c] else None for c in range(1, classes)]


def mean_of(values: Any) -> float | None:
    """Mean of those that are not None; None where none is left."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
