"""The bootstrap: its weighted figures are scikit-learn's, its draws keep patients together, its intervals cover."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn import metrics as sk

from orthokernels.training.bootstrap import (
    aurocs,
    average_precisions,
    calibration_errors,
    diagnosis_intervals,
    interval,
    means,
    patient_counts,
)
from orthokernels.training.metrics import calibration_error, diagnosis_metrics
from tests.training.test_metrics import findings

PATIENTS = [f"p{n // 2}" for n in range(60)]  # two studies each


def test_a_patients_studies_count_alike_and_every_draw_has_as_many_patients():
    counts = patient_counts(PATIENTS, draws=50, seed=1)
    assert counts.shape == (50, 60)
    np.testing.assert_array_equal(counts[:, ::2], counts[:, 1::2])
    np.testing.assert_array_equal(counts[:, ::2].sum(axis=1), 30)
    np.testing.assert_array_equal(counts, patient_counts(PATIENTS, draws=50, seed=1))
    assert (counts != patient_counts(PATIENTS, draws=50, seed=2)).any()


def test_weighted_figures_equal_scikit_learns_with_sample_weights():
    truth, probability = findings()
    truth, score = truth[:, 0], probability[:, 0]
    counts = patient_counts(PATIENTS, draws=40)
    for draw, area, precision in zip(
        counts, aurocs(truth, score, counts), average_precisions(truth, score, counts), strict=True
    ):
        assert area == pytest.approx(sk.roc_auc_score(truth, score, sample_weight=draw), abs=1e-12)
        assert precision == pytest.approx(sk.average_precision_score(truth, score, sample_weight=draw), abs=1e-12)


def test_undrawn_figures_are_the_metrics_own():
    truth, probability = findings()
    once = np.ones((1, len(truth)))
    labels, thresholds = ["a", "b", "c"], [0.5, 0.3, 0.6]
    found = diagnosis_metrics(truth, probability, labels, thresholds)
    drawn = diagnosis_intervals(truth, probability, labels, thresholds, once)
    assert found.keys() == drawn.keys()
    for name, value in found.items():
        for key in value if isinstance(value, dict) else [None]:
            figure, bounds = (value, drawn[name]) if key is None else (value[key], drawn[name][key])
            # Calibration is computed in float32 by torchmetrics.
            assert bounds == pytest.approx((figure, figure), abs=1e-6), name


def test_calibration_draws_equal_the_metric_on_repeated_studies():
    truth, probability = findings()
    counts = patient_counts(PATIENTS, draws=5)
    for draw, value in zip(counts, calibration_errors(truth, probability, counts), strict=True):
        again = np.repeat(np.arange(60), draw.astype(int))
        assert value == pytest.approx(calibration_error(truth[again], probability[again]), abs=1e-6)


def test_probabilities_on_the_edges_of_bins_are_counted_as_the_metric_counts_them():
    probability = np.arange(16)[:, None] / 15
    for first in range(16):  # a label of its own for each edge, so that no two gaps can make up for each other
        truth = (np.arange(16) >= first).astype(int)[:, None]
        own = calibration_errors(truth, probability, np.ones((1, 16)))[0]
        assert own == pytest.approx(calibration_error(truth, probability), abs=1e-6)  # float32's own error


def test_draws_without_both_classes_are_left_out():
    truth, score = np.array([1, 0, 0]), np.array([0.9, 0.1, 0.2])
    values = aurocs(truth, score, np.array([[1.0, 1, 1], [0, 2, 1], [3, 0, 0]]))
    assert values[0] == 1
    assert np.isnan(values[1:]).all()
    assert interval(values) == (1.0, 1.0)
    assert interval(values[1:]) is None
    assert np.isnan(average_precisions(truth, score, np.array([[0.0, 2, 1], [3, 0, 0]]))).all()


def test_a_label_that_is_known_of_no_study_has_no_area_in_any_draw():
    none, counts = np.zeros(0), np.ones((3, 0))
    assert np.isnan(aurocs(none, none, counts)).all()
    assert np.isnan(average_precisions(none, none, counts)).all()


def test_means_leave_out_series_that_lack_the_figure():
    values = means([1.0, None, 3.0], np.array([[1.0, 5, 1], [0, 1, 2], [0, 3, 0]]))
    assert values[:2].tolist() == [2.0, 3.0]
    assert np.isnan(values[2])


def test_intervals_cover_the_true_mean():
    draw = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        sample = draw.normal(0.7, 0.1, 40)
        counts = patient_counts([str(n) for n in range(40)], draws=400, seed=seed)
        low, high = interval(means(list(sample), counts))
        covered += low < 0.7 < high
    # A 95 % interval of 40 normal values covers in about 94 % of cases; three standard errors of 200 trials are 5 %.
    assert 0.89 <= covered / 200 <= 0.99


def test_a_thousand_draws_of_a_hundred_studies_take_under_a_second():
    truth, probability = findings(studies=100, labels=8)
    counts = patient_counts([str(n) for n in range(100)])
    started = time.process_time()
    diagnosis_intervals(truth, probability, [str(n) for n in range(8)], [0.5] * 8, counts)
    assert time.process_time() - started < 1.0
