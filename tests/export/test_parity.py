"""What a parity check admits and refuses, and the page that shows it."""

from __future__ import annotations

import copy
import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")

from orthokernels.export.parity import FEW, REFERENCE, metrics_of, refusals_of, verdict
from orthokernels.export.parity_page import markdown, verdict_of, write_parity


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
