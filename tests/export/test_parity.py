"""What a parity check admits and refuses, and the page that shows it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")

from orthokernels.export.gate import auroc_used, dice_used, logits_used
from orthokernels.export.parity import (
    FEW,
    REFERENCE,
    _Errors,
    _figures,
    _Run,
    metrics_of,
    refusals_of,
    verdict,
)
from orthokernels.export.parity_page import markdown, verdict_of, write_parity
from sklearn.metrics import roc_auc_score

from orthokernels.models.orthodiffusion.study_model import load_torch
from orthokernels.tasks import LABELS, PLANES
from orthokernels.training.series import Record
from tests.test_pipeline import toy_weights


def figures(dice=0.9, auroc=0.8, relative=1e-6, studies=100, output="sagittal logits"):
    return {
        "errors": {output: {"largest": 10 * relative, "relative": relative, "nine_tenths": relative / 10}},
        "studies": studies,
        "dice": {"sagittal": {"femur": 0.95, "acl": dice}},
        "mean_dice": (0.95 + dice) / 2,
        "auroc": {"ACL": auroc, "PCL": None},
        "macro_auroc": auroc,
        "calibration_error": {"ACL": 0.05, "PCL": 0.04},
        "ece": 0.03,
    }


def result(**changed):
    joints = {"knee": {REFERENCE: figures(), "int8 openvino": figures(**changed)}}
    return {
        "name": "toy",
        "bundle": "0" * 64,
        "trained": True,
        "joints": joints,
        "forms": {"int8": verdict("int8", joints)},
    }


def test_a_form_that_loses_nothing_is_admitted():
    own = result()
    used = own["forms"]["int8"]["used"]
    assert own["forms"]["int8"] == {"judged": True, "admitted": True, "used": used, "reasons": []}
    assert not refusals_of(own)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dice": 0.893}, "knee, int8 openvino: Dice uses up"),
        ({"auroc": 0.79}, "knee, int8 openvino: AUROC uses up 2.00"),
    ],
)
def test_a_form_that_loses_too_much_is_refused_with_the_reason(changed, said):
    own = result(**changed)
    assert not own["forms"]["int8"]["admitted"]
    assert said in refusals_of(own)[0].reason


def test_few_studies_admit_nothing():
    joints = {"knee": {REFERENCE: figures(studies=99), "int8 openvino": figures(studies=99)}}
    assert verdict("int8", joints)["reasons"] == ["knee: 99 studies, and 100 are asked for"]


def test_untrained_weights_are_judged_by_errors_alone():
    joints = {"knee": {REFERENCE: figures(studies=1), "fp32 openvino": figures(studies=1, relative=1e-5)}}
    own = verdict("fp32", joints, judged=False)
    assert own["admitted"]
    assert verdict_of(own).startswith("not judged but by its errors: knee, fp32 openvino: relative error uses up 0.10")


def test_fp32_is_held_to_its_error():
    joints = {"knee": {REFERENCE: figures(relative=0), "fp32 openvino": figures(relative=2e-4)}}
    assert "relative error uses up 2.00" in verdict("fp32", joints)["reasons"][0]


@pytest.mark.parametrize("output", ["sagittal vector", "study logits"])
def test_of_numbers_that_one_voxel_can_move_nine_tenths_are_held_to_it(output):
    for relative, admitted in ((9e-4, True), (2e-3, False)):
        joints = {"knee": {REFERENCE: figures(relative=0), "fp32 openvino": figures(relative=relative, output=output)}}
        assert verdict("fp32", joints)["admitted"] == admitted


def test_what_is_not_finite_loses_everything():
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    broken = rows.copy()
    broken[1, 2] = np.nan
    assert logits_used(broken, rows) == np.inf
    assert logits_used(broken[:, ::-1], rows[:, ::-1]) == np.inf
    assert dice_used([0.9, float("nan")], [0.9, 0.9]) == np.inf
    assert auroc_used({"ACL": 0.8, "PCL": float("nan")}, {"ACL": 0.8, "PCL": 0.8}) == np.inf
    assert auroc_used({"ACL": 0.8, "PCL": None}, {"ACL": 0.8, "PCL": 0.8}) == np.inf


@pytest.mark.parametrize(("form", "name"), [("fp32", "fp32 openvino"), ("int8", "int8 openvino")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_not_finite_refuses_a_form(form, name, value, tmp_path):
    found = np.ones((1, 4), np.float32)
    errors = _Errors()
    for number in range(30):
        errors.add(np.where(np.arange(4) == number, np.float32(value), found), np.ones_like(found))
    joints = {"knee": {REFERENCE: figures(relative=0), name: {**figures(), "errors": {"axial vector": errors.told()}}}}
    own = verdict(form, joints)
    assert not own["admitted"]
    whole = {"name": "toy", "bundle": "", "trained": True, "joints": joints, "forms": {form: own}}
    write_parity(whole, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "parity.json").read_text())["joints"]["knee"][name]["errors"]["axial vector"]
    assert told == {"largest": None, "relative": None, "nine_tenths": None}


def test_findings_that_nobody_could_judge_admit_no_form_but_fp32():
    unjudged = {**figures(), "asks_findings": True, "auroc": {"ACL": None, "PCL": None}}
    names = ("fp32 openvino", "int8 openvino")
    joints = {"knee": {REFERENCE: unjudged, **dict.fromkeys(names, unjudged)}}
    assert verdict("int8", joints)["reasons"] == [
        "knee: the studies have findings, and no AUROC could be computed of them"
    ]
    assert verdict("fp32", joints)["admitted"]


def test_every_figure_stands_beside_fp32s():
    found = {metric.metric: (metric.value, metric.fp32) for metric in metrics_of(result(dice=0.899))}
    assert found["mean_dice"] == pytest.approx((0.9245, 0.925))
    assert found["macro_auroc"] == (0.8, 0.8)


def test_the_page_needs_nothing_beside_it(tmp_path):
    own = result(dice=0.893)
    few = {name: value for name, value in figures(studies=10).items() if name in ("errors", "studies")}
    own["joints"]["knee"][FEW] = few  # which is run on too few studies for Dice and AUROC
    before = copy.deepcopy(own)
    write_parity(own, tmp_path / "out")
    page = (tmp_path / "out" / "parity.html").read_text()
    assert page.count("data:image/png;base64,") == 3  # Dice, AUROC, calibration
    assert "<script" not in page
    assert "http" not in page
    assert "not admitted: knee, int8 openvino: Dice" in page
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["joints"] == own["joints"]
    assert "| knee | int8 openvino | 100 |" in (tmp_path / "out" / "parity.md").read_text()
    assert "| knee | fp32 onnxruntime | 10 |" in (tmp_path / "out" / "parity.md").read_text()
    assert own == before
    assert markdown(own) == (tmp_path / "out" / "parity.md").read_text()


def test_planes_without_a_fusion_are_judged_by_the_mean_of_their_probabilities():
    rng = np.random.default_rng(0)
    weights = toy_weights()
    weights.fusion = weights.fusion_name = None
    model, run = load_torch(weights, "cpu"), _Run()
    records, expected, truths = [], [], rng.integers(0, 2, (12, len(LABELS["knee"]))).astype(np.float32)
    for number, truth in enumerate(truths):
        vectors = {plane: rng.normal(size=32).astype(np.float32) for plane in PLANES}
        run.vectors[f"study {number}"] = vectors
        records.append(Record(f"study {number}", "", "axial", Path(), findings=tuple(truth)))
        logits = np.stack([model.planes[plane].score(vectors[plane]) for plane in PLANES])
        expected.append((1 / (1 + np.exp(-logits.astype(np.float64)))).mean(axis=0))
    found = _figures(model, run, records)
    for n, label in enumerate(LABELS["knee"]):
        assert found["auroc"][label.key] == pytest.approx(roc_auc_score(truths[:, n], np.array(expected)[:, n]))
    run.vectors["study 3"]["coronal"][5] = np.nan
    broken = _figures(model, run, records)
    assert set(broken["auroc"].values()) == {None}
    joints = {"knee": {REFERENCE: {**found, "studies": 100}, "int8 openvino": broken}}
    assert "AUROC uses up inf" in verdict("int8", joints)["reasons"][0]
