"""Checks before and after inference: what a phantom passes, and what each wrong study is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from orthokernels.edge.checks import check_result, check_study, doubts, failures
from orthokernels.edge.checks.after import MARGIN
from orthokernels.edge.checks.measures import lateral_offset, measure
from orthokernels.edge.checks.ranges import read_ranges
from pydicom.uid import generate_uid

from orthokernels import tasks
from orthokernels.data.phantom import make_study, write_dicom
from orthokernels.data.phantom.painted import paint_study, read_atlas
from orthokernels.data.study import read_study
from tests.data.series import noise, write_series
from tests.edge.results import phantom_labels, true_run

NAMES = tasks.class_names(12)


@pytest.fixture(scope="module")
def left_knee():
    """A seed that the ranges were not measured on."""
    return make_study(20_001, side="left", matrix=96)


@pytest.fixture(scope="module")
def folder(left_knee, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("left") / "study"
    write_dicom(left_knee, target)
    return target


@pytest.fixture(scope="module")
def run(left_knee, folder):
    return true_run(folder, phantom_labels(left_knee), side="L")


def changed(run, plane, change):
    """The run with one plane's label map changed."""
    labels, affine = run.label_maps[plane]
    labels = labels.copy()
    change(labels)
    return replace(run, label_maps={**run.label_maps, plane: (labels, affine)})


def test_phantom_knee_passes_before_and_after(folder, run):
    assert [c.reason for c in check_study(read_study([folder]), "knee") if c.verdict != "passed"] == []
    assert [c.reason for c in check_result(run) if c.verdict != "passed"] == []


def rewritten(folder: Path, out: Path, **header) -> Path:
    """The study with every file's header changed."""
    for file in folder.rglob("*.dcm"):
        image = pydicom.dcmread(file)
        for keyword, value in header.items():
            setattr(image, keyword, value)
        target = out / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save_as(target)
    return out


@pytest.mark.parametrize(
    ("header", "failed", "doubtful"),
    [
        ({"BodyPartExamined": "ANKLE"}, "the header says ANKLE, not knee", None),
        ({"BodyPartExamined": "WRIST"}, "not knee", None),
        ({"BodyPartExamined": "LOWER_EXTREMITY"}, None, "which may be a knee or not"),
        ({"BodyPartExamined": ""}, None, "names no body part"),
        ({"Laterality": ""}, None, "do not say which side"),
        ({"EchoTime": "12", "RepetitionTime": "600"}, None, "not fluid-sensitive"),
    ],
)
def test_header_decides_before_inference(folder, tmp_path, header, failed, doubtful):
    checks = check_study(read_study([rewritten(folder, tmp_path, **header)]), "knee")
    for told, wanted in ((failures(checks), failed), (doubts(checks), doubtful)):
        if wanted is None:
            assert told == []
        else:
            assert told
            assert all(wanted in reason for reason in told)


def test_two_sides_in_one_study_fail(folder, tmp_path):
    rewritten(folder / "1_sagittal", tmp_path / "1", Laterality="R")
    rewritten(folder / "2_coronal", tmp_path / "2")
    assert failures(check_study(read_study([tmp_path]), "knee")) == [
        "the headers name both sides, so they show two joints or one is wrong"
    ]


@pytest.fixture
def far(tmp_path):
    """Series of a study once more, 200 mm to the side."""

    def write(folder, *planes):
        for plane in planes:
            series = rewritten(folder / plane, tmp_path / "far" / plane, SeriesInstanceUID=f"1.2.{plane[0]}")
            for path in series.rglob("*.dcm"):
                dataset = pydicom.dcmread(path)
                x, y, z = dataset.ImagePositionPatient
                dataset.ImagePositionPatient, dataset.SOPInstanceUID = [x + 200, y, z], generate_uid()
                dataset.save_as(path)
        return tmp_path / "far"

    return write


def test_two_joints_whose_headers_name_no_side_fail_and_a_volume_that_is_far_off_is_told(folder, far):
    study = read_study([folder, far(folder, "1_sagittal")])
    assert [len(study.stacks[plane]) for plane in tasks.PLANES] == [1, 1, 1]
    checks = check_study(study, "knee")
    assert failures(checks) == []
    assert doubts(checks) == ["volumes that lie too far off to show this joint: 1"]
    study = read_study([folder, far(folder, "2_coronal", "3_axial")])
    assert failures(check_study(study, "knee")) == ["the volumes lie too far apart to show one joint"]


def test_missing_plane_is_told_but_does_not_stop(folder):
    checks = check_study(read_study([folder / "1_sagittal", folder / "3_axial"]), "knee")
    assert failures(checks) == []
    assert doubts(checks) == ["coronal: there is no volume"]


@pytest.mark.parametrize(
    ("spacing", "reason"),
    [
        ((1.5, 1.5, 2.0), "sagittal, depth of the stack"),
        ((0.5, 0.5, 4.0), "sagittal, smallest side of a slice"),
        ((3.0, 3.0, 4.0), "sagittal, largest side of a slice"),
    ],
)
def test_slices_that_show_too_little_or_two_legs_fail(tmp_path, spacing, reason):
    write_series(tmp_path, noise(0, slices=24, rows=96, columns=96), spacing=spacing, BodyPartExamined="KNEE",
                 Laterality="R")  # fmt: skip
    told = failures(check_study(read_study([tmp_path]), "knee"))
    assert len(told) == 1
    assert told[0].startswith(reason)
    assert "outside" in told[0]


def test_real_knee_may_be_read_though_its_header_says_little(real_data):
    checks = check_study(read_study([real_data / "knee-mese"]), "knee")
    assert failures(checks) == []
    assert "sagittal: the header names no body part" in doubts(checks)


def test_labels_of_a_real_knee_pass_every_check(real_data, tmp_path):
    """A real knee's label map, which no range was measured on, cut as three series."""
    atlas = real_data / "knee-atlas-labels"
    study = paint_study(read_atlas(atlas / "seg.nrrd", atlas / "knee.ctbl"), matrix=96)
    write_dicom(study, tmp_path / "study")
    run = true_run(tmp_path / "study", phantom_labels(study), side=study.side[0].upper())
    assert [c.reason for c in check_result(run) if c.verdict != "passed"] == []


def test_wrong_side_fails_in_every_plane(run):
    told = failures(check_result(replace(run, result=run.result.model_copy(update={"laterality": "R"}))))
    assert len(told) == 3
    assert all("as in a left knee; the headers say R" in reason for reason in told)


def test_mirrored_labels_of_one_plane_fail(run):
    def mirror(labels):
        labels[labels == 8] = 99
        labels[labels == 9] = 8
        labels[labels == 99] = 9

    told = failures(check_result(changed(run, "coronal", mirror)))
    assert [reason.split(":")[0] for reason in told] == ["coronal"]


def test_missing_bone_fails_and_missing_ligament_is_doubtful(run):
    without_femur = check_result(changed(run, "sagittal", lambda labels: labels.__setitem__(labels == 1, 0)))
    assert [r for r in failures(without_femur) if r.startswith("sagittal, femur, volume: 0 ml, outside")]
    without_acl = check_result(changed(run, "sagittal", lambda labels: labels.__setitem__(labels == 10, 0)))
    assert failures(without_acl) == []
    assert [r for r in doubts(without_acl) if r.startswith("sagittal, acl, volume: 0 ml, outside")]


def test_shattered_bone_fails(run):
    """Every second slice of the femur gone: the volume may pass, the pieces do not."""
    told = failures(check_result(changed(run, "axial", lambda x: x[:, :, ::2].__setitem__(x[:, :, ::2] == 1, 0))))
    assert [reason for reason in told if "axial, femur, share in one piece" in reason]


def test_cartilage_away_from_its_bone_is_doubtful(run):
    def drift(labels):
        where = labels == 7
        labels[where] = 0
        free = np.roll(where, labels.shape[1] // 3, axis=1) & (labels == 0)
        labels[free] = 7

    told = doubts(check_result(changed(run, "sagittal", drift)))
    assert [reason for reason in told if "patellar cartilage, share that touches its neighbour" in reason]


def test_measures_are_those_of_a_drawn_block():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[1:5, 1:5, 1:5] = 1  # femur, 64 voxels
    labels[5, 1:5, 1:5] = 5  # its cartilage, 16 voxels, all of which touch it
    labels[9, 9, 9] = 5  # and one that does not
    found = measure(labels, np.diag([2.0, 0.5, 3.0, 1.0]), NAMES)
    assert found["femur"].ml == pytest.approx(0.192)  # 64 voxels of 3 cubic mm
    assert found["femur"].largest_share == 1.0
    assert found["femoral_cartilage"].largest_share == pytest.approx(16 / 17)
    assert found["femoral_cartilage"].touching_share == pytest.approx(16 / 17)
    assert found["tibia"].ml == 0.0


def test_lateral_meniscus_lies_to_the_right_in_a_right_knee(left_knee):
    right = make_study(left_knee.seed, side="right", matrix=96)
    for plane in tasks.PLANES:
        offsets = [lateral_offset(s.labels, s.affine, NAMES) for s in (right.plane(plane), left_knee.plane(plane))]
        assert offsets[0] > 20 > -20 > offsets[1]  # mm


def test_accepted_cartilage_volumes_cover_what_healthy_men_have():
    """Eckstein et al. 2001 (PubMed 11237657): 16.6 to 31.4 ml in all, femur, tibia and patella."""
    for plane in tasks.PLANES:
        cartilage = [r.ml for name, r in read_ranges().structures[plane].items() if name.endswith("cartilage")]
        assert sum(low for low, _ in cartilage) / MARGIN < 16.6
        assert sum(high for _, high in cartilage) * MARGIN > 31.4
