"""The golden case: what counts as the same result, and what does not."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from safetensors.numpy import save

from orthokernels.bundle.golden import EXACT, REDUCED, check_golden, golden_study
from orthokernels.bundle.manifest import File, GoldenCase, Joint, Manifest
from orthokernels.bundle.verify import Bundle
from orthokernels.errors import InputError

SHAPE = (50, 40, 16)
PROBABILITIES = {"acl": 0.7, "mcl": 0.2, "pcl": None}


@pytest.fixture
def labels():
    """A sagittal map of which 10,000 voxels are labelled, and a coronal one."""
    sagittal = np.zeros(SHAPE, np.uint8)
    sagittal.ravel()[:10_000] = 1 + np.arange(10_000) % 11
    return {"sagittal": sagittal, "coronal": np.full((8, 8, 16), 3, np.uint8)}


@pytest.fixture
def bundle(tmp_path, labels):
    contents = {"labels.safetensors": save(labels), "golden/1.dcm": b"an image"}
    (tmp_path / "golden").mkdir()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    listed = {
        name: File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)) for name, content in contents.items()
    }
    case = GoldenCase(images=("golden/1.dcm",), labels="labels.safetensors", probabilities=PROBABILITIES)
    manifest = Manifest(
        name="small", version="0.1.0", intended_use="Tests.", limits=(), trained=False, licence="Apache-2.0",
        origin="a test", size=16, depth=16, structures={}, graphs={}, native=False, minimum_versions={}, files=listed,
        joints={"knee": Joint(weights_digest="", findings=(), planes={})}, golden={"knee": case},
    )  # fmt: skip
    return Bundle(tmp_path, manifest, "", None)


def changed(labels: np.ndarray, voxels: int) -> np.ndarray:
    other = labels.copy()
    other.ravel()[:voxels] = 12
    return other


def test_same_result_is_told_with_its_planes(bundle, labels):
    outcome = check_golden(bundle, "knee", labels, PROBABILITIES, "fp32")
    assert (outcome.label_share, outcome.probability) == (0.0, 0.0)
    assert outcome.told().startswith("100.00 % of the labelled voxels as recorded (")


@pytest.mark.parametrize(("form", "allowance"), [("fp32", EXACT), ("int8", REDUCED)])
def test_labels_may_differ_in_the_share_that_the_form_allows(bundle, labels, form, allowance):
    most = round(10_000 * allowance.label_share)
    inside = {**labels, "sagittal": changed(labels["sagittal"], most)}
    assert check_golden(bundle, "knee", inside, PROBABILITIES, form).label_share == allowance.label_share
    beyond = {**labels, "sagittal": changed(labels["sagittal"], most + 1)}
    with pytest.raises(InputError, match="does not come out on this machine"):
        check_golden(bundle, "knee", beyond, PROBABILITIES, form)


def test_voxels_that_nobody_labels_do_not_dilute_the_share(bundle, labels):
    found = {**labels, "sagittal": np.zeros(SHAPE, np.uint8)}
    with pytest.raises(InputError, match=r"0\.00 % of the labelled voxels"):
        check_golden(bundle, "knee", found, PROBABILITIES, "int8")


@pytest.mark.parametrize(
    "change",
    [{"acl": 0.7 + 2 * EXACT.probability}, {"acl": None}, {"pcl": 0.5}, {"acl": float("nan")}, {"mcl": float("nan")}],
    ids=["moved", "gone", "new", "no number", "no number at the end"],
)
def test_finding_that_comes_out_different_is_refused(bundle, labels, change):
    with pytest.raises(InputError, match="findings within"):
        check_golden(bundle, "knee", labels, {**PROBABILITIES, **change}, "fp32")


def test_findings_are_not_compared_where_planes_do_not_run(bundle, labels):
    outcome = check_golden(bundle, "knee", {"sagittal": labels["sagittal"]}, {"acl": 0.1}, "fp32")
    assert outcome.probability is None
    assert "findings not compared" in outcome.told()


def test_labels_on_another_grid_are_another_result(bundle, labels):
    found = {**labels, "coronal": labels["coronal"][:, :, :-1]}
    with pytest.raises(InputError, match="does not come out"):
        check_golden(bundle, "knee", found, PROBABILITIES, "fp32")


def test_bundle_without_a_case_for_the_joint_has_no_study(bundle):
    assert [path.name for path in golden_study(bundle, "knee")] == ["1.dcm"]
    assert golden_study(bundle, "ankle") == []


def test_files_that_were_touched_since_the_verification_are_not_believed(bundle, labels):
    for path in bundle.folder.rglob("*.*"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(InputError, match=r"labels\.safetensors.*content does not match its digest"):
        check_golden(bundle, "knee", labels, PROBABILITIES, "fp32")
    with pytest.raises(InputError, match=r"1\.dcm.*content does not match its digest"):
        golden_study(bundle, "knee")
