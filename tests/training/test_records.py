"""Data-set layouts: the simple one, and the three CSV layouts of the published scripts."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from orthokernels.data.volume import Volume
from orthokernels.errors import InputError
from orthokernels.tasks import PLANES
from orthokernels.training.records import read_records, split_by_patient
from orthokernels.training.series import IGNORED, Record, load_labels, load_volume, read_mask
from orthokernels.training.splits import load_splits
from tests.data.series import noise, write_series
from tests.training.toy import data_settings, write_studies, write_volume


def write_table(path, header, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def record(patient, split=None, plane="sagittal"):
    return Record(f"study of {patient}", patient, plane, None, split=split)


def test_simple_layout_gives_a_record_per_series(tmp_path):
    write_studies(tmp_path, 3)
    found = read_records(tmp_path)
    assert [(r.study, r.plane) for r in found[:3]] == [("study_000", p) for p in ("sagittal", "coronal", "axial")]
    assert len(found) == 9
    assert found[0].image == tmp_path / "study_000" / "sagittal.nii.gz"
    assert found[0].labels == tmp_path / "study_000" / "sagittal_labels.nii.gz"
    assert set(found[0].findings) <= {0.0, 1.0}
    assert len(found[0].findings) == 8


def test_a_second_series_of_a_plane_has_its_own_label_map(tmp_path):
    write_studies(tmp_path, 1)
    write_volume(tmp_path / "study_000" / "axial_2.nii.gz", plane="axial")
    write_volume(tmp_path / "study_000" / "axial_2_labels.nii.gz", plane="axial")
    axial = [r for r in read_records(tmp_path) if r.plane == "axial"]
    assert [r.image.name for r in axial] == ["axial.nii.gz", "axial_2.nii.gz"]
    assert axial[1].labels.name == "axial_2_labels.nii.gz"


def test_an_empty_finding_is_unknown_and_other_joints_are_left_out(tmp_path):
    header = ["study", "patient", "joint", "ATFL", "CFL", "ATR", "OLT"]
    write_table(tmp_path / "studies.csv", header, ["a", "1", "ankle", 1, "", 0, 1], ["b", "2", "knee", 0, 0, 0, 0])
    write_volume(tmp_path / "a" / "axial.nii.gz", plane="axial")
    (found,) = read_records(tmp_path, "ankle")
    np.testing.assert_array_equal(found.findings, [1, np.nan, 0, 1])


def test_a_study_of_dicom_files_gives_the_planes_it_holds(tmp_path):
    write_table(tmp_path / "studies.csv", ["study", "patient", "joint"], ["a", "1", "knee"], ["b", "2", "knee"])
    write_series(tmp_path / "a" / "1_sagittal", noise(0), plane="sagittal")
    write_series(tmp_path / "b" / "any name", noise(1), plane="coronal")
    write_volume(tmp_path / "labels" / "a" / "sagittal_labels.nii.gz")
    first, second = read_records(tmp_path)
    assert (first.plane, first.image) == ("sagittal", tmp_path / "a" / "1_sagittal")
    assert first.labels == tmp_path / "labels" / "a" / "sagittal_labels.nii.gz"
    assert (second.plane, second.image) == ("coronal", tmp_path / "b")
    assert load_volume(first).shape == load_volume(second).shape


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (["study", "joint"], ["a", "knee"], "has no column patient"),
        (["study", "patient", "joint"], ["a", "1", "ankle"], "lists no study of the knee"),
        (["study", "patient", "split"], ["a", "1", "training"], "no split 'training'; use train, validate, test"),
        (["study", "patient", "joint"], ["a", "Doe", " John", "knee"], "line 2: has more cells than the header"),
        (["study", "patient", "joint"], ["a", "1", "hip"], "study a: there is no joint 'hip'; use knee"),
        (["study", "patient", "joint"], ["a", "", "knee"], "row 1: has no patient"),
        (["study", "patient", "joint"], ["", "1", "knee"], "row 1: has no study"),
    ],
)
def test_a_table_that_can_not_be_used_says_why(tmp_path, header, row, message):
    write_table(tmp_path / "studies.csv", header, row)
    with pytest.raises(InputError, match=message):
        read_records(tmp_path)


def test_a_study_that_is_listed_twice_is_refused(tmp_path):
    write_table(tmp_path / "studies.csv", ["study", "patient"], ["a", "1"], ["b", "1"], ["a", "2"])
    with pytest.raises(InputError, match="lists study a twice"):
        read_records(tmp_path)


def test_empty_cells_behind_the_last_column_do_no_harm(tmp_path):
    write_table(tmp_path / "studies.csv", ["study", "patient"], ["a", "1", "", ""])
    assert {(r.study, r.patient) for r in read_records(tmp_path)} == {("a", "1")}


def test_a_joint_s_capital_letter_leaves_no_study_out(tmp_path):
    write_table(tmp_path / "studies.csv", ["study", "patient", "joint"], ["a", "1", "Knee"], ["b", "2", "knee"])
    assert {r.study for r in read_records(tmp_path)} == {"a", "b"}


def test_a_folder_without_a_table_says_what_to_write(tmp_path):
    with pytest.raises(InputError, match=r"has no studies\.csv"):
        read_records(tmp_path)


def test_published_pretraining_table_names_planes_by_pose(tmp_path):
    table = write_table(tmp_path / "pretrain.csv", ["filename", "ID"], ["a.nii.gz", 0], ["b.nii.gz", 2])
    found = read_records(table, images=tmp_path / "images")
    assert [r.plane for r in found] == ["axial", "coronal"]
    assert found[0].image == tmp_path / "images" / "a.nii.gz"
    assert found[0].findings is None
    assert [r.plane for r in read_records(table, poses=("sagittal", "coronal", "axial"))] == ["sagittal", "axial"]
    assert [r.plane for r in read_records(table, plane="coronal")] == ["coronal", "coronal"]


def test_published_classification_table_gives_study_labels_to_each_series(tmp_path):
    labels = ["ACL", "PCL", "MM", "LM", "MCL", "LCL", "PD", "EFFU"]
    rows = [["x/1.nii.gz", "A1", 1, 0, 0, 0, 0, 0, 0, 1], ["x/2.nii.gz", "A1", 1, 0, 0, 0, 0, 0, 0, 1]]
    table = write_table(tmp_path / "train.csv", ["filename", "acc_id", *labels], *rows)
    first, second = read_records(table, plane="sagittal")
    assert first.study == second.study == first.patient == "A1"
    assert first.findings == (1, 0, 0, 0, 0, 0, 0, 1)
    with pytest.raises(InputError, match=r"a row names no plane\. Add a column plane"):
        read_records(table)


def test_a_column_of_planes_goes_before_the_option(tmp_path):
    table = write_table(tmp_path / "t.csv", ["filename", "acc_id", "plane"], ["1.nii.gz", "A", "axial"])
    assert read_records(table, plane="sagittal")[0].plane == "axial"


def test_a_table_of_no_known_layout_says_which_there_are(tmp_path):
    table = write_table(tmp_path / "t.csv", ["image", "label"], ["a", "b"])
    with pytest.raises(InputError, match=r"has the columns image, label\. Pre-training needs filename, ID"):
        read_records(table)


SEGMENTATION = ["replath", "study_uid", "nii_file", "slice_direction", "mask_file", "pose_id"]


def segmentation(tmp_path, direction, **options):
    rows = [["r", "u", "a.nii.gz", direction, f"{n}-m.png", 1] for n in (3, 5)]
    table = write_table(tmp_path / "seg.csv", SEGMENTATION, *rows)
    image = write_volume(tmp_path / "r" / "a.nii.gz", depth=18, side=32)
    (tmp_path / "u").mkdir(exist_ok=True)
    for n in (3, 5):
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[0, 4] = (n, 99, 99)  # upper edge, fifth column; only the first channel counts
        picture[10, 20] = (200, 0, 0)
        Image.fromarray(picture).save(tmp_path / "u" / f"{n}-m.png")
    (found,) = read_records(table, **options)
    assert found.image == image
    return found, load_labels(found, load_volume(found))


def test_published_label_pictures_lie_turned_on_their_slices(tmp_path):
    found, labels = segmentation(tmp_path, "increasing")
    assert (found.plane, found.patient) == ("sagittal", "u")
    # np.rot90(k=3) brings row 0, column 4 to i = 4 and the upper edge to the largest j.
    assert labels[4, 31, 2] == 3
    assert labels[4, 31, 4] == 5
    assert labels[20, 21, 2] == IGNORED  # 200 is no label
    assert labels[0, 0, 2] == 0
    untouched = np.delete(labels, [2, 4], axis=2)
    assert (untouched == IGNORED).all()


def test_decreasing_pictures_count_from_the_last_slice(tmp_path):
    _, labels = segmentation(tmp_path, "decreasing")
    assert labels[4, 31, 18 - 3] == 3
    assert labels[4, 31, 18 - 5] == 5


def test_mirrored_pictures_are_mirrored_before_they_are_turned(tmp_path):
    _, labels = segmentation(tmp_path, "increasing", masks_mirrored=True)
    assert labels[31 - 4, 31, 2] == 3


def test_a_picture_is_read_as_the_published_loader_reads_it(tmp_path):
    picture = np.random.default_rng(0).integers(0, 20, (8, 6, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "1-a.png")
    published = np.rot90(np.fliplr(picture[..., 0].astype(np.int64)), k=3).copy()
    published[(published < 0) | (published >= 12)] = -1
    np.testing.assert_array_equal(read_mask(tmp_path / "1-a.png", mirrored=True), published)


def test_a_picture_without_a_slice_number_is_refused(tmp_path):
    table = write_table(tmp_path / "seg.csv", SEGMENTATION, ["r", "u", "a.nii.gz", "increasing", "m.png", 1])
    with pytest.raises(InputError, match=r"'m.png' does not begin with its slice's number"):
        read_records(table)


def test_labels_of_another_shape_name_both(tmp_path):
    image = write_volume(tmp_path / "a.nii.gz", depth=16)
    labels = write_volume(tmp_path / "b.nii.gz", depth=17)
    found = Record("s", "p", "sagittal", image, labels)
    with pytest.raises(InputError, match="32 x 32 x 17, but its image has 32 x 32 x 16"):
        load_labels(found, load_volume(found))


def test_split_keeps_a_patient_together():
    records = [record(f"p{n % 10}") for n in range(40)]
    sides = split_by_patient(records, {"train": 0.6, "validate": 0.4}, seed=1)
    assert len(sides["train"]) == 24
    assert {r.patient for r in sides["train"]}.isdisjoint({r.patient for r in sides["validate"]})


def test_split_depends_on_the_seed_and_not_on_the_order():
    records = [record(f"p{n}") for n in range(30)]
    shares = {"train": 0.5, "validate": 0.5}
    first = {r.patient for r in split_by_patient(records, shares, 1)["train"]}
    assert first == {r.patient for r in split_by_patient(records[::-1], shares, 1)["train"]}
    assert first != {r.patient for r in split_by_patient(records, shares, 2)["train"]}


def test_a_split_that_is_drawn_moves_as_patients_are_added_and_a_given_one_does_not():
    shares, old = {"train": 0.5, "validate": 0.5}, [record(f"p{n}") for n in range(10)]
    added = [record(f"q{n}") for n in range(10)]

    def trained(records):
        return {r.patient for r in split_by_patient(records, shares, 0)["train"] if r.patient.startswith("p")}

    assert trained(old) != trained([*old, *added])
    given = [record(r.patient, "train" if r.patient in trained(old) else "validate") for r in old]
    assert trained([*given, *added]) == trained(old)


def test_a_patient_s_side_does_not_depend_on_the_planes_asked_for(tmp_path):
    write_studies(tmp_path, 24)  # of two studies a patient
    for study in range(0, 24, 4):  # every second patient has no axial series
        for each in (study, study + 1):
            (tmp_path / f"study_{each:03d}" / "axial.nii.gz").unlink()
            (tmp_path / f"study_{each:03d}" / "axial_labels.nii.gz").unlink()
    data = data_settings(tmp_path, validate_share=0.4)
    every = load_splits(tmp_path, data, PLANES)
    for planes in (("axial",), ("sagittal",), ("coronal", "axial")):
        own = load_splits(tmp_path, data, planes)
        assert {r.plane for records in own.values() for r in records} == set(planes)
        for side, records in own.items():
            assert {r.patient for r in records} <= {r.patient for r in every[side]}


def test_shares_of_more_than_all_patients_are_named(tmp_path):
    write_studies(tmp_path, 2)
    with pytest.raises(
        InputError, match=r"validate_share = 0\.7 and data\.test_share = 0\.6 are together more than all"
    ):
        load_splits(tmp_path, data_settings(tmp_path, validate_share=0.7, test_share=0.6), PLANES)


def test_a_given_split_is_kept():
    records = [record("a", "test"), record("b", "train"), *(record(f"p{n}") for n in range(10))]
    sides = split_by_patient(records, {"train": 0.0, "validate": 1.0}, 0)
    assert [r.patient for r in sides["train"]] == ["b"]
    assert [r.patient for r in sides["test"]] == ["a"]
    assert len(sides["validate"]) == 10


def test_a_split_file_is_honoured_by_patient(tmp_path):
    write_studies(tmp_path, 4)  # two studies a patient
    splits = write_table(tmp_path / "split.csv", ["patient", "split"], ["patient_000", "val"], ["patient_001", "train"])
    sides = split_by_patient(read_records(tmp_path, split_file=splits), {"train": 1.0})
    assert {r.patient for r in sides["train"]} == {"patient_001"}
    assert {r.patient for r in sides["validate"]} == {"patient_000"}


def test_a_split_file_that_contradicts_itself_is_refused(tmp_path):
    write_studies(tmp_path, 2)
    rows = ["patient_0", "train"], ["patient_0", "test"]
    split = write_table(tmp_path / "split.csv", ["patient", "split"], *rows)
    with pytest.raises(InputError, match="patient patient_0 is in train and in test"):
        read_records(tmp_path, split_file=split)


def test_a_split_file_of_other_patients_is_refused(tmp_path):
    write_studies(tmp_path, 2)
    split = write_table(tmp_path / "split.csv", ["patient", "split"], ["someone", "train"])
    with pytest.raises(InputError, match="names no patient of the data set"):
        read_records(tmp_path, split_file=split)


def test_a_patient_on_both_sides_of_a_given_split_is_refused():
    with pytest.raises(InputError, match="patient a is in test and train"):
        split_by_patient([record("a", "test"), record("a", "train")], {"train": 1.0})


def test_volume_and_labels_share_the_native_grid(tmp_path):
    write_studies(tmp_path, 1)
    for own in read_records(tmp_path):
        volume = load_volume(own)
        assert isinstance(volume, Volume)
        assert load_labels(own, volume).shape == volume.shape
