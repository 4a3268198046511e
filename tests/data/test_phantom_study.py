"""Phantom studies: what is asked for, what the seed draws, contrasts, and folders of studies with their findings."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from orthokernels.data.geometry import plane_of
from orthokernels.data.phantom import PhantomStudy, dataset, make_study, write_dicom, write_nifti
from orthokernels.data.phantom.dataset import Recipe, write_single, write_studies
from orthokernels.data.phantom.parts import Part
from orthokernels.data.phantom.protocol import KNEE, TIMINGS, draw_protocols
from orthokernels.data.phantom.signal import TISSUES, spin_echo
from orthokernels.data.phantom.study import JOINTS, REVISION, draw_findings
from orthokernels.data.study import read_study
from orthokernels.errors import InputError
from orthokernels.tasks import LABELS, PLANES

KEYS = {joint: [label.key for label in labels] for joint, labels in LABELS.items()}
SMALL = Recipe(matrix=32, nifti=True)


def digest(study: PhantomStudy) -> str:
    parts = (a.tobytes() for s in study.series for a in (s.voxels, s.labels, s.affine))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "studies.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("joint", JOINTS)
def test_every_joint_makes_three_planes_with_all_its_findings_named(joint):
    study = make_study(3, joint=joint, matrix=32)
    assert study.joint == joint
    assert list(study.findings) == KEYS[joint]
    assert tuple(series.plane for series in study.series) == PLANES
    for series in study.series:
        plane, obliquity = plane_of(series.affine)
        assert plane == series.plane
        assert obliquity > 0.0
        assert series.voxels.shape == series.labels.shape
        assert (series.labels.any()) == (joint == "knee")


@pytest.mark.parametrize("joint", JOINTS)
def test_same_arguments_give_the_same_bytes(joint):
    first, again = (make_study(11, joint=joint, side=None, matrix=32) for _ in range(2))
    assert digest(first) == digest(again)
    assert (first.findings, first.side) == (again.findings, again.side)


def test_findings_are_drawn_as_often_as_asked():
    drawn = np.array([list(draw_findings(seed, "knee", prevalence=0.3).values()) for seed in range(400)])
    # Of 400 draws a share of 0.3 has a standard error of 0.023; eight findings within four of them.
    np.testing.assert_allclose(drawn.mean(axis=0), 0.3, atol=0.092)
    assert not any(draw_findings(seed, "shoulder", prevalence=0.0)["SSP"] for seed in range(50))
    assert all(all(draw_findings(seed, "ankle", prevalence=1.0).values()) for seed in range(50))


def test_forced_findings_are_those_and_no_others():
    study = make_study(2, matrix=32, findings={"ACL": True, "MM": False})
    assert study.findings == {key: key == "ACL" for key in KEYS["knee"]}


@pytest.mark.parametrize(("joint", "key"), [("knee", "EFFU"), ("knee", "ACL"), ("ankle", "ATR"), ("shoulder", "SSP")])
def test_forcing_a_finding_changes_its_surroundings_and_leaves_the_rest_of_the_seed(joint, key):
    without, present = (make_study(5, joint=joint, matrix=64, findings={key: forced}) for forced in (False, True))
    for a, b in zip(without.series, present.series, strict=True):
        np.testing.assert_array_equal(a.affine, b.affine)
        assert (a.echo_time_ms, a.slice_thickness_mm) == (b.echo_time_ms, b.slice_thickness_mm)
        changed = np.abs(a.voxels.astype(int) - b.voxels) > 100  # some ten standard deviations of the noise
        assert (
            0 < np.count_nonzero(changed) < 0.12 * changed.size
        )  # a lesion and its motion artefacts, not another joint


@pytest.mark.parametrize("contrast", TIMINGS)
def test_contrast_ranks_tissues_as_textbooks_do(contrast):
    for seed in range(6):
        for protocol in draw_protocols(KNEE, contrast, np.random.default_rng(seed)):
            fluid, fat, muscle, cartilage, tendon = (
                spin_echo(TISSUES[part], protocol.contrast)
                for part in (Part.FLUID, Part.SUBCUTANEOUS_FAT, Part.MUSCLE, Part.FEMORAL_CARTILAGE, Part.TENDON)
            )
            assert tendon < 0.6 * min(fluid, muscle)
            if contrast == "t1":
                assert fat > 3.0 * max(fluid, muscle, cartilage)
                assert fluid < 1.25 * muscle  # as dark as muscle
            elif contrast == "pd":
                assert fat > fluid > cartilage > muscle
            else:
                assert fluid > 1.5 * cartilage
                assert cartilage > muscle
                assert fluid > 2.5 * fat


def test_contrast_names_its_series_and_times_them():
    shown = {contrast: make_study(1, matrix=32, contrast=contrast).series[0] for contrast in TIMINGS}
    assert {c: s.description for c, s in shown.items()} == {
        "pd_fs": "SAG PD FS", "pd": "SAG PD", "t1": "SAG T1", "t2": "SAG T2 FS",
    }  # fmt: skip
    assert {c: s.fat_suppressed for c, s in shown.items()} == {"pd_fs": True, "pd": False, "t1": False, "t2": True}
    assert shown["t1"].repetition_time_ms < 1000.0 < shown["t2"].repetition_time_ms
    assert shown["t1"].echo_time_ms < shown["pd_fs"].echo_time_ms < shown["t2"].echo_time_ms


def test_clinics_differ_within_what_clinics_use():
    drawn = [p for seed in range(40) for p in draw_protocols(KNEE, "pd_fs", np.random.default_rng(seed))]
    assert len({p.echo_time for p in drawn}) > 20
    assert len({p.field_of_view for p in drawn}) > 5
    for p in drawn:
        assert 28.0 < p.echo_time < 42.0
        assert 2.9 < p.thickness < 3.8
        assert 0.05 * p.thickness < p.spacing - p.thickness < 0.25 * p.thickness
        assert 20 <= p.slices <= 34


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed is 0 or more"), ({"joint": "hip"}, "no phantom of the hip"), ({"side": "up"}, "right"),
        ({"matrix": 8}, "matrix of 8"), ({"findings": {"GOUT": True}}, "no finding 'GOUT'"),
        ({"joint": "ankle", "findings": {"ACL": True}}, "ankle has no finding 'ACL'"),
        ({"prevalence": 1.5}, "prevalence is from 0 to 1"), ({"contrast": "flair"}, "no contrast 'flair'"),
    ],
)  # fmt: skip
def test_unusable_argument_is_named_in_one_sentence(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        make_study(**arguments)
    assert "\n" not in str(caught.value)


def test_folder_of_studies_has_a_row_of_findings_for_each(tmp_path):
    write_studies(tmp_path / "set", range(4, 7), SMALL)
    rows = rows_of(tmp_path / "set")
    assert [row["study"] for row in rows] == ["study_00004", "study_00005", "study_00006"]
    assert list(rows[0]) == ["study", "patient", "joint", "side", *KEYS["knee"]]
    assert len({row["patient"] for row in rows}) == 3
    for seed, row in zip(range(4, 7), rows, strict=True):
        study = make_study(seed, side=None, matrix=32)
        assert {key: row[key] == "1" for key in KEYS["knee"]} == study.findings
        assert (row["joint"], row["side"]) == ("knee", study.side)
        image = nibabel.load(tmp_path / "set" / row["study"] / "coronal.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), study.plane("coronal").voxels)


def test_processes_share_the_work_and_write_the_same_files(tmp_path):
    write_studies(tmp_path / "one", range(3), SMALL)
    write_studies(tmp_path / "two", range(3), SMALL, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_stopped_run_lists_what_is_complete_and_is_taken_up(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(name: str) -> None:
        if name == "study_00001":
            raise StoppedError

    with pytest.raises(StoppedError):
        write_studies(tmp_path / "set", range(4), SMALL, done=stop)
    assert [row["study"] for row in rows_of(tmp_path / "set")] == ["study_00000", "study_00001"]
    before = (tmp_path / "set" / "study_00001").stat().st_mtime_ns
    told: list[str] = []
    write_studies(tmp_path / "set", range(4), SMALL, done=told.append)
    assert sorted(told) == [f"study_0000{n}" for n in range(4)]
    assert (tmp_path / "set" / "study_00001").stat().st_mtime_ns == before
    write_studies(tmp_path / "whole", range(4), SMALL)
    assert files_of(tmp_path / "set") == files_of(tmp_path / "whole")
    assert not list(tmp_path.rglob(".*"))


def test_studies_of_other_options_are_not_mixed(tmp_path):
    write_studies(tmp_path / "set", [0], SMALL)
    with pytest.raises(InputError, match="other options"):
        write_studies(tmp_path / "set", [1], Recipe(matrix=32, nifti=True, contrast="t1"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_studies(tmp_path / "mine", [0], SMALL)
    with pytest.raises(InputError, match="no contrast"):
        write_studies(tmp_path / "new", [0], Recipe(contrast="flair"))
    assert not (tmp_path / "new").exists()


def test_studies_of_another_revision_are_not_mixed(tmp_path, monkeypatch):
    write_studies(tmp_path / "set", [0], SMALL)
    arguments = tmp_path / "set" / "phantom.json"
    record = json.loads(arguments.read_text())
    assert record.pop("revision") == REVISION
    arguments.write_text(json.dumps(record))  # as they were before revisions were counted
    write_studies(tmp_path / "set", [0], SMALL)
    monkeypatch.setattr(dataset, "REVISION", REVISION + 1)
    with pytest.raises(InputError, match=f"holds studies of revision {REVISION} of the phantom, and this version"):
        write_studies(tmp_path / "set", [0, 1], SMALL)
    assert not (tmp_path / "set" / "study_00001").exists()


def test_dicom_studies_have_their_label_maps_beside_them_not_among_them(tmp_path):
    write_studies(tmp_path / "set", [8, 9], Recipe(matrix=32))
    for name in ("study_00008", "study_00009"):
        read = read_study([tmp_path / "set" / name])
        assert read.left_out == []
        for plane in PLANES:
            labels = nibabel.load(tmp_path / "set" / "labels" / name / f"{plane}_labels.nii.gz")
            np.testing.assert_allclose(labels.affine, read.stacks[plane][0].affine, atol=2e-5)  # float32 of 200 mm
            assert labels.shape == read.stacks[plane][0].shape
    assert json.loads((tmp_path / "set" / "phantom.json").read_text())["contrast"] == "pd_fs"


@pytest.mark.parametrize("nifti", [False, True])
def test_single_study_is_read_in_spite_of_its_table(tmp_path, nifti):
    write_single(tmp_path / "study", 5, Recipe(matrix=32, nifti=nifti))
    read = read_study([tmp_path / "study"])
    assert all(len(read.stacks[plane]) == 1 for plane in PLANES)
    assert "studies.csv" not in " ".join(item.what for item in read.left_out), "a table was not left out"
    (row,) = rows_of(tmp_path / "study")
    assert (row["study"], row["patient"]) == (".", "PHANTOM5")


@pytest.mark.parametrize("joint", ["ankle", "shoulder"])
def test_headers_name_the_joint_and_the_contrast(tmp_path, joint):
    write_dicom(make_study(2, joint=joint, matrix=32, contrast="t2"), tmp_path / "study")
    image = pydicom.dcmread(next((tmp_path / "study" / "2_coronal").iterdir()))
    assert image.BodyPartExamined == joint.upper()
    assert image.SeriesDescription == "COR T2 FS"
    assert image.StudyDescription == f"{joint.capitalize()} phantom"
    assert image.ScanOptions == "FS"


def test_other_findings_are_another_study(tmp_path):
    for name, present in (("a", True), ("b", False)):
        write_dicom(make_study(2, matrix=32, findings={"EFFU": present}), tmp_path / name)
    first, second = (pydicom.dcmread(tmp_path / name / "1_sagittal" / "0001.dcm") for name in ("a", "b"))
    assert first.StudyInstanceUID != second.StudyInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_a_joint_without_labelled_structures_has_no_label_maps(tmp_path):
    write_nifti(make_study(2, joint="ankle", matrix=32), tmp_path / "study")
    assert {path.name for path in (tmp_path / "study").iterdir()} == {f"{plane}.nii.gz" for plane in PLANES}


@pytest.mark.parametrize("count", [1, 2])
def test_a_full_disk_is_one_sentence_and_the_table_lists_what_is_complete(tmp_path, monkeypatch, count):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("orthokernels.data.phantom.dataset.write_nifti", full)
    with pytest.raises(InputError, match=r"can't be written \(No space left on device\)\. Make room"):
        write_single(tmp_path / "one", 0, SMALL) if count == 1 else write_studies(tmp_path / "two", [0, 1], SMALL)
