"""Confidence intervals by drawing patients again (percentile bootstrap).

A draw of n patients with replacement is a count per patient. Every figure here is computed from counts, for all draws
at once: a figure that takes weights per study then needs no loop. The weighted forms equal scikit-learn's with
``sample_weight``; tests compare them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from orthokernels.training.metrics import CALIBRATION_BINS

DRAWS = 1000


def patient_counts(patients: Sequence[str], *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each study (or series) counts in each draw: [draws, studies], float64. A patient's studies count alike.

    The same patients, draws and seed give the same counts.
    """
    names, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    chosen = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return chosen[:, owner].astype(np.float64)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of a figure's draws; draws in which it can't be scored (NaN) are left out."""
    known = values[np.isfinite(values)]
    if not known.size:
        return None
    tail = 50 * (1 - level)
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def means(values: Sequence[float | None], counts: np.ndarray) -> np.ndarray:
    """Mean of a figure that each series has (or has not: None) in each draw, [draws]."""
    known = np.array([value is not None for value in values], bool)
    held = np.array([value for value in values if value is not None], np.float64)
    with np.errstate(invalid="ignore"):
        return counts[:, known] @ held / counts[:, known].sum(axis=1)


def aurocs(truth: np.ndarray, score: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Area under the ROC curve in each draw, [draws]: the share of pairs in the right order, ties counting half.

    Args:
        truth: [studies], 0 or 1.
        score: [studies].
        counts: [draws, studies].
    """
    present, absent, ends = _sorted(truth, score, counts)
    absent_up_to = np.cumsum(absent, axis=1)[:, ends]
    absent_at = np.diff(absent_up_to, axis=1, prepend=0.0)
    present_at = np.diff(np.cumsum(present, axis=1)[:, ends], axis=1, prepend=0.0)
    right = (present_at * (absent_up_to - absent_at / 2)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return 1.0 - right / (present.sum(axis=1) * absent.sum(axis=1))


def average_precisions(truth: np.ndarray, score: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average precision in each draw, [draws]; arguments as in ``aurocs``."""
    present, absent, ends = _sorted(truth, score, counts)
    hits = np.cumsum(present, axis=1)[:, ends]
    called = hits + np.cumsum(absent, axis=1)[:, ends]
    with np.errstate(invalid="ignore"):
        precision = np.where(called > 0, hits / called, 0.0)
        value = (np.diff(hits, axis=1, prepend=0.0) * precision).sum(axis=1) / present.sum(axis=1)
    return np.where(absent.sum(axis=1) > 0, value, np.nan)


def _sorted(truth: np.ndarray, score: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of present and of absent studies from the highest score down, and where each run of equal scores ends."""
    order = np.argsort(-score, kind="stable")
    truth, score, counts = np.asarray(truth).astype(bool)[order], score[order], counts[:, order]
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)[: len(score)]  # none where there is no study
    return counts * truth, counts * ~truth, ends


def f1_and_parts(
    truth: np.ndarray, called: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hits, calls, positives and right answers of each draw and label, [draws, labels] each."""
    truth, called = truth.astype(np.float64), called.astype(np.float64)
    return counts @ (truth * called), counts @ called, counts @ truth, counts @ (truth == called)


def calibration_errors(truth: np.ndarray, probability: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Expected calibration error over all labels together in each draw, [draws].

    Args:
        truth, probability: [studies, labels].
        counts: [draws, studies].
    """
    # As torchmetrics, in float32: a probability on an edge must fall into the same bin here.
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1).numpy()
    bins = np.searchsorted(edges, probability.astype(np.float32), side="right") - 1
    total = np.zeros(len(counts))
    for number in range(CALIBRATION_BINS + 1):  # torchmetrics gives a probability of 1 a bin of its own
        inside = bins == number
        gap = counts @ (inside * (probability - truth)).sum(axis=1)
        total += np.abs(gap)
    return total / (counts.sum(axis=1) * truth.shape[1])


def diagnosis_intervals(
    truth: np.ndarray,
    probability: np.ndarray,
    labels: Sequence[str],
    thresholds: Sequence[float],
    counts: np.ndarray,
    level: float = 0.95,
) -> dict[str, Any]:
    """Intervals of all that ``metrics.diagnosis_metrics`` gives, in the same layout."""
    truth, probability = np.asarray(truth).astype(int), np.asarray(probability, np.float64)
    columns = range(len(labels))
    areas = np.stack([aurocs(truth[:, n], probability[:, n], counts) for n in columns], axis=1)
    precisions = np.stack([average_precisions(truth[:, n], probability[:, n], counts) for n in columns], axis=1)
    called = (probability >= np.asarray(thresholds)).astype(int)
    hits, calls, positives, right = f1_and_parts(truth, called, counts)
    accuracy = right / counts.sum(axis=1, keepdims=True)
    f1 = _share(2 * hits, calls + positives)
    calibration = np.stack([calibration_errors(truth[:, [n]], probability[:, [n]], counts) for n in columns], axis=1)
    found: dict[str, Any] = {
        name: {label: interval(values[:, n], level) for n, label in enumerate(labels)}
        for name, values in (
            ("auroc", areas), ("average_precision", precisions), ("accuracy", accuracy), ("f1", f1),
            ("calibration_error", calibration),
        )
    }  # fmt: skip
    sums = hits.sum(axis=1), calls.sum(axis=1), positives.sum(axis=1)
    whole = {
        "macro_auroc": mean_over_labels(areas),
        "map": mean_over_labels(precisions),
        "mean_accuracy": accuracy.mean(axis=1),
        "ece": calibration_errors(truth, probability, counts),
        "CP": _share(hits, calls).mean(axis=1),
        "CR": _share(hits, positives).mean(axis=1),
        "CF1": f1.mean(axis=1),
        "OP": _share(sums[0], sums[1]),
        "OR": _share(sums[0], sums[2]),
        "OF1": _share(2 * sums[0], sums[1] + sums[2]),
    }
    return found | {name: interval(values, level) for name, values in whole.items()}


def mean_over_labels(values: np.ndarray) -> np.ndarray:
    """Mean of [draws, labels] over the labels that could be scored in the draw; NaN where none could."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where the whole is 0, as scikit-learn with ``zero_division=0``."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
