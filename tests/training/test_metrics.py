"""Metrics against scikit-learn, hand-computed values and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from orthokernels.training.metrics import (
    auroc,
    average_precision,
    best_threshold,
    calibration_error,
    diagnosis_metrics,
    dice,
    mean_of,
)
from orthokernels.training.surface_distance import surface_distance_95


def findings(studies=60, labels=3, seed=0):
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 2, (studies, labels))
    # Rounded, so that scores tie; but none on a bound of the calibration's bins.
    return truth, np.round(np.clip(0.5 + 0.2 * (2 * truth - 1) + draw.normal(0, 0.3, truth.shape), 0, 0.98), 2) + 0.004


def test_figures_per_label_are_scikit_learns():
    truth, probability = findings()
    found = diagnosis_metrics(truth, probability, ["a", "b", "c"], [0.5, 0.4, 0.6])
    called = probability >= [0.5, 0.4, 0.6]
    for n, label in enumerate("abc"):
        assert found["auroc"][label] == sk.roc_auc_score(truth[:, n], probability[:, n])
        assert found["average_precision"][label] == sk.average_precision_score(truth[:, n], probability[:, n])
        assert found["accuracy"][label] == np.mean(called[:, n] == truth[:, n])
        assert found["f1"][label] == sk.f1_score(truth[:, n], called[:, n])
    assert found["macro_auroc"] == pytest.approx(sk.roc_auc_score(truth, probability, average="macro"), abs=1e-12)
    assert found["CF1"] == pytest.approx(sk.f1_score(truth, called, average="macro"), abs=1e-12)
    assert found["OF1"] == pytest.approx(sk.f1_score(truth, called, average="micro"), abs=1e-12)
    assert found["CP"] == pytest.approx(sk.precision_score(truth, called, average="macro"), abs=1e-12)
    assert found["OR"] == pytest.approx(sk.recall_score(truth, called, average="micro"), abs=1e-12)


def test_micro_figures_count_hits_over_all_labels():
    truth = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])
    probability = np.array([[0.9, 0.8], [0.2, 0.7], [0.1, 0.9], [0.6, 0.2]])
    found = diagnosis_metrics(truth, probability, ["a", "b"], [0.5, 0.5])
    # 3 hits among 5 calls and 4 positives.
    assert (found["OP"], found["OR"], found["OF1"]) == pytest.approx((3 / 5, 3 / 4, 6 / 9))
    # a: 1 of 2 calls, 1 of 2 positives; b: 2 of 3 calls, 2 of 2 positives.
    assert (found["CP"], found["CR"], found["CF1"]) == pytest.approx((7 / 12, 3 / 4, (1 / 2 + 4 / 5) / 2))


def test_label_of_one_class_is_left_out_of_the_means():
    truth, probability = findings()
    truth[:, 1] = 0
    found = diagnosis_metrics(truth, probability, ["a", "b", "c"], [0.5] * 3)
    assert found["auroc"]["b"] is None
    assert found["average_precision"]["b"] is None
    assert found["macro_auroc"] == pytest.approx((found["auroc"]["a"] + found["auroc"]["c"]) / 2)
    assert auroc(np.ones(3), np.arange(3)) is None
    assert average_precision(np.zeros(3), np.arange(3)) is None
    assert mean_of([None, None]) is None


def test_one_label_alone_is_not_two_classes():
    truth, probability = findings(labels=1)
    found = diagnosis_metrics(truth, probability, ["a"], [0.5])
    assert found["CF1"] == pytest.approx(sk.f1_score(truth[:, 0], probability[:, 0] >= 0.5), abs=1e-12)
    assert found["OF1"] == found["CF1"]


def test_calibration_error_by_hand():
    # Bins of 1/15: 0.1 lies in the second (present 1 of 2), 0.9 in the fourteenth (present 2 of 2).
    truth, probability = np.array([0, 1, 1, 1]), np.array([0.1, 0.1, 0.9, 0.9])
    assert calibration_error(truth, probability) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1, abs=1e-6)  # float32
    assert calibration_error(np.array([0, 1]), np.array([0.0, 1.0])) == 0


@pytest.mark.parametrize("rule", ["f1", "youden"])
def test_best_threshold_beats_every_other(rule):
    truth, probability = findings(labels=1, seed=3)
    truth, score = truth[:, 0], probability[:, 0]

    def value(threshold):
        called = score >= threshold
        if rule == "f1":
            return sk.f1_score(truth, called, zero_division=0)
        return called[truth == 1].mean() - called[truth == 0].mean()

    best = best_threshold(truth, score, rule)
    assert best not in score  # rounding can't tip a study
    assert value(best) == pytest.approx(max(value(t) for t in np.linspace(0, 1, 1001)))


def test_threshold_of_a_label_of_one_class_is_a_half():
    assert best_threshold(np.zeros(4), np.arange(4) / 4) == 0.5
    with pytest.raises(ValueError, match="'f1' or 'youden'"):
        best_threshold(np.array([0, 1]), np.array([0.1, 0.2]), "f2")


def test_dice_by_hand_and_none_where_nobody_has_the_class():
    truth = np.array([[1, 1, 0], [2, 0, 0]])
    predicted = np.array([[1, 0, 1], [0, 0, 0]])
    assert dice(predicted, truth, 4) == [0.5, 0.0, None]


def test_dice_leaves_ignored_voxels_out():
    truth, predicted = np.array([1, 1, 255, 0], np.uint8), np.array([1, 0, 1, 0], np.uint8)
    assert dice(predicted, truth, 2) == [pytest.approx(2 / 3)]
    assert dice(predicted, truth.astype(np.int16) - 256 * (truth == 255), 2) == [pytest.approx(2 / 3)]


def brute_distance(a, b, spacing):
    """Every surface voxel to every other, float64."""

    def surface(mask):
        padded = np.pad(mask, 1)
        core = np.ones_like(mask)
        for axis in range(3):
            for step in (-1, 1):
                core &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        return np.argwhere(mask & ~core) * np.array(spacing)

    p, q = surface(a), surface(b)
    apart = np.linalg.norm(p[:, None] - q[None], axis=2)
    return max(np.percentile(apart.min(axis=1), 95), np.percentile(apart.min(axis=0), 95))


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.4, 0.7, 4.5)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_surface_distance_equals_brute_force(spacing, seed):
    draw = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, (9, 11, 7)), indexing="ij"), axis=-1)
    # Balls that may touch the border, with holes.
    a, b = (
        (np.linalg.norm(grid - draw.uniform(2, 6, 3), axis=3) < 3) & (draw.random(grid.shape[:3]) < 0.9)
        for _ in range(2)
    )
    assert surface_distance_95(a, b, spacing) == pytest.approx(brute_distance(a, b, spacing), rel=1e-12)


def test_surface_distance_agrees_with_monai():
    monai = pytest.importorskip("monai.metrics")
    import torch

    draw = np.random.default_rng(0)
    a, b = np.zeros((2, 12, 14, 10), bool)
    a[2:8, 3:9, 2:7] = True
    b[3:10, 2:9, 3:8] = draw.random((7, 7, 5)) < 0.8
    theirs = monai.compute_hausdorff_distance(
        *(torch.from_numpy(m)[None, None] for m in (a, b)), include_background=True, percentile=95,
        spacing=[0.5, 0.8, 3.0],
    )  # fmt: skip
    assert surface_distance_95(a, b, (0.5, 0.8, 3.0)) == pytest.approx(float(theirs), rel=1e-6)  # theirs is float32


def test_shifted_box_is_as_far_as_its_shift():
    a, b = np.zeros((2, 10, 10, 10), bool)
    a[2:5, 2:5, 2:5] = True
    b[2:5, 2:5, 4:7] = True
    assert surface_distance_95(a, b, (1, 1, 4.5)) == pytest.approx(9.0)
    assert surface_distance_95(a, a, (1, 1, 1)) == 0


def test_a_mask_that_ends_where_knowledge_ends_has_no_surface_there():
    known = np.zeros((9, 9, 9), bool)
    known[:, :, 3:6] = True
    a, b = np.zeros((2, 9, 9, 9), bool)
    a[2:7, 2:7, 1:8] = True
    b[1:8, 1:8, 1:8] = True
    assert surface_distance_95(a, b, (1, 1, 4), known) == pytest.approx(np.sqrt(2))  # at the edges of the larger
    assert surface_distance_95(a & known, b & known, (1, 1, 4), known) == pytest.approx(np.sqrt(2))
    whole = np.ones_like(a)
    within = np.zeros_like(a)
    within[4, 4, 4] = True
    assert surface_distance_95(whole, whole, (1, 1, 1), within) is None  # nothing is known around it


def test_no_surface_no_distance():
    a = np.zeros((4, 4, 4), bool)
    assert surface_distance_95(a, ~a, (1, 1, 1)) is None
    assert surface_distance_95(a, a, (1, 1, 1)) is None
    with pytest.raises(ValueError, match="masks of shapes"):
        surface_distance_95(a, a[1:], (1, 1, 1))
