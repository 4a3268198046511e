"""What a parity check admits and refuses, and the page that shows it."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")

import torch
from orthokernels.export.gate import auroc_used, dice_used, logits_used
from orthokernels.export.parity import (
    FEW,
    REFERENCE,
    _Errors,
    _figures,
    _Run,
    _run_planes,
    metrics_of,
    refusals_of,
    verdict,
)
from orthokernels.export.parity_page import markdown, page, verdict_of, write_parity
from orthokernels.export.study_outputs import SCORERS, drawn_patient, study_outputs
from sklearn.metrics import roc_auc_score

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.patient_data import LateFusion
from orthokernels.models.orthodiffusion.study_model import load_torch
from orthokernels.models.patient_data import Encoding, LateFusionCard
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


def scored_by(**auroc):
    """Figures of each head and fusion, a finding's AUROC given by what scores it."""
    of = {"macro_auroc": 0.8, "calibration_error": {"ACL": 0.05, "PCL": 0.04}, "ece": 0.03}
    return {own: {**of, "auroc": {"ACL": auroc.get(own.split()[0], 0.8), "PCL": None}} for own in SCORERS}


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


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_form_is_held_to_what_each_head_and_fusion_finds_by_itself(scorer):
    names = ("int8 openvino", "fp32 openvino", FEW)
    few = {"errors": figures()["errors"], "studies": 10}
    for auroc, admitted in ((0.796, True), (0.794, False), (None, False)):
        own = {**figures(), "scored_by": scored_by(**{scorer.split()[0]: auroc})}
        fp32 = {**figures(), "scored_by": scored_by()}
        joints = {"knee": {REFERENCE: fp32, **dict(zip(names, (own, fp32, few), strict=True))}}
        found = verdict("int8", joints)
        assert found["admitted"] == admitted
        assert all(f"knee, int8 openvino: AUROC by {scorer} uses up" in reason for reason in found["reasons"])
        assert verdict("fp32", joints)["admitted"]


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


@pytest.mark.parametrize("output", ["axial head logits", "gate shares", "patient data logits"])
def test_errors_of_single_heads_and_patient_data_are_told_and_must_be_finite(output):
    for relative, admitted in ((2e-3, True), (np.inf, False)):
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


def test_labels_that_nobody_could_judge_admit_no_form_but_fp32():
    kept = ("errors", "studies")
    unlabelled = {name: own for name, own in figures().items() if name in kept} | {"asks_labels": True}
    joints = {"shoulder": dict.fromkeys((REFERENCE, "fp32 openvino", "int8 openvino"), unlabelled)}
    assert "neither Dice nor AUROC" in verdict("int8", joints)["reasons"][0]
    assert verdict("fp32", joints)["admitted"]
    assert verdict("int8", joints, judged=False)["admitted"]
    joints["shoulder"][REFERENCE] = unlabelled | {"asks_labels": False}  # nothing comes out that could be lost
    assert verdict("int8", joints)["admitted"]


def test_every_figure_stands_beside_fp32s():
    found = {metric.metric: (metric.value, metric.fp32) for metric in metrics_of(result(dice=0.899))}
    assert found["mean_dice"] == pytest.approx((0.9245, 0.925))
    assert found["macro_auroc"] == (0.8, 0.8)


def test_heads_fusions_and_shares_stand_on_the_page_and_in_the_manifest():
    own = result()
    for name, patient, share in ((REFERENCE, 0.8, 0.25), ("int8 openvino", 0.7975, None)):
        shares = {plane: {"ACL": share, "PCL": 0.5} for plane in PLANES}
        own["joints"]["knee"][name] |= {"scored_by": scored_by(patient=patient), "gate_shares": shares}
    told = markdown(own)
    assert "| knee | int8 openvino | patient data | 0.8000 | -0.0025 | 0.0300 |" in told
    assert "| knee | reference | axial | ACL 0.2500, PCL 0.5000 |" in told
    assert "| knee | int8 openvino | axial | ACL -, PCL 0.5000 |" in told
    written = page({**own, "versions": {}})
    assert "<td>-0.0025</td>" in written
    assert "<td>ACL 0.2500, PCL 0.5000</td>" in written
    assert {"macro_auroc", "axial_head_macro_auroc", "patient_data_ece"} < {own.metric for own in metrics_of(own)}


def test_checks_of_before_heads_were_compared_can_be_shown_again():
    folder = Path(__file__).parents[2] / "bench" / "results" / "parity"
    for path in folder.glob("*/parity.md"):
        record = json.loads(path.with_suffix(".json").read_text())
        assert markdown(record) == path.read_text()
    assert "Findings by head" not in page(json.loads((folder / "random0" / "parity.json").read_text()))


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


def test_a_report_that_can_not_be_written_names_its_option(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--report .*file: can't be written"):
        write_parity(result(), tmp_path / "file", "--report")


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


def test_series_looked_at_in_part_tell_errors_and_no_findings():
    rng = np.random.default_rng(0)
    model, run, records = load_torch(toy_weights(), "cpu"), _Run(), []
    for number in range(4):
        run.vectors[f"study {number}"] = {plane: rng.normal(size=32).astype(np.float32) for plane in PLANES}
        findings = (float(number % 2),) * len(LABELS["knee"])
        records.append(Record(f"study {number}", "", "axial", Path(), findings=findings))
    assert _figures(model, run, records)["macro_auroc"] is not None
    assert _figures(model, run, records, whole=False).keys() == {"errors", "studies"}


def test_what_is_made_of_a_studys_vectors_is_what_its_heads_and_fusions_give():
    rng, weights = np.random.default_rng(0), toy_weights()
    labels, late = len(LABELS["knee"]), LateFusion(3 * 32, events=5).eval()
    encoding = Encoding((0.0,) * 3, (1.0,) * 3, ("a", "b", "c", "d", "UNK"))
    weights.late_fusion, weights.late_fusion_card = late, LateFusionCard(encoding, 3 * 32, {})
    model, run, records = load_torch(weights, "cpu"), _Run(), []
    for number, truth in enumerate(rng.integers(0, 2, (12, labels)).astype(np.float32)):
        study = f"study {number}"
        run.vectors[study] = {plane: rng.normal(size=32).astype(np.float32) for plane in PLANES}
        run.outputs[study] = study_outputs(model, study, run.vectors[study])
        records.append(Record(study, "", "axial", Path(), findings=tuple(truth)))
    found, own = _figures(model, run, records), run.outputs["study 7"]
    patient = drawn_patient("study 7", 5)
    columns = [torch.from_numpy(getattr(patient, name))[None] for name in ("continuous", "sex", "patient_type")]
    vectors = torch.from_numpy(np.concatenate(list(run.vectors["study 7"].values())))[None]
    with torch.no_grad():
        expected = late(vectors, *columns, torch.tensor([patient.event]))
    np.testing.assert_allclose(own["patient data logits"], expected["fused"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(own["patient data shares"], expected["alpha"], rtol=1e-6)
    np.testing.assert_allclose(own["gate shares"].sum(axis=0), 1, rtol=1e-6)
    assert found["scored_by"].keys() == SCORERS.keys()
    truths = np.stack([record.findings for record in records])
    for scorer, output in SCORERS.items():
        logits = np.stack([made[output] for made in run.outputs.values()])
        for n, label in enumerate(LABELS["knee"]):
            expected = roc_auc_score(truths[:, n], logits[:, n])
            assert found["scored_by"][scorer]["auroc"][label.key] == pytest.approx(expected)
    shares = np.mean([made["gate shares"][2, 0] for made in run.outputs.values()])
    assert found["gate_shares"]["axial"]["ACL"] == pytest.approx(shares)
    run.outputs["study 3"]["patient data logits"][2] = np.nan
    assert set(_figures(model, run, records)["scored_by"]["patient data"]["auroc"].values()) == {None}


def test_a_study_of_two_planes_has_their_heads_alone():
    model = load_torch(toy_weights(), "cpu")
    vectors = {plane: np.ones(32, np.float32) for plane in PLANES[:2]}
    assert list(study_outputs(model, "study", vectors)) == [f"{plane} head logits" for plane in PLANES[:2]]


def _coronal_fails(joint, plane, records):
    if plane == "coronal":
        raise ValueError("no coronal")
    time.sleep(120)


def test_a_check_that_ends_early_waits_for_no_other_plane():
    work = {("knee", plane): [] for plane in ("coronal", "sagittal", "axial")}
    started = time.monotonic()
    with pytest.raises(ValueError, match="no coronal"):
        _run_planes(_coronal_fails, work, 2, lambda what, done, total: None)
    assert time.monotonic() - started < 100
