"""Everything that can be wrong with a data set is told in one message, before training starts."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image

from orthokernels.errors import InputError
from orthokernels.training.checks import check_records
from orthokernels.training.records import read_records
from orthokernels.training.series import Record
from tests.training.toy import affine_of, write_studies, write_volume


@pytest.fixture
def good(tmp_path):
    write_studies(tmp_path, 2)
    return read_records(tmp_path)


def problems(records, **options):
    with pytest.raises(InputError) as caught:
        check_records(records, **options)
    return str(caught.value)


def test_a_good_data_set_passes(good):
    check_records(good)
    check_records(good, preparation="published")


def test_a_missing_file_is_named(good):
    good[0].image.unlink()
    assert f"{good[0].image}: no such file" in problems(good)


def test_a_study_without_a_folder_is_named(good):
    lost = replace(good[0], image=good[0].image.parent.with_name("elsewhere"), labels=None)
    assert f"{lost.image}: no such file or folder" in problems([lost])


def test_a_file_that_is_no_image_is_named(good):
    good[0].image.write_bytes(b"not an image")
    assert f"{good[0].image}: not a readable NIfTI file" in problems(good)


def test_an_image_that_is_not_three_dimensional_is_named(tmp_path):
    for name, shape in (("flat", (32, 32)), ("moving", (32, 32, 16, 3))):
        voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, affine_of("axial")), tmp_path / f"{name}.nii.gz")
    records = [Record("a", "1", "axial", tmp_path / f"{name}.nii.gz") for name in ("flat", "moving")]
    told = problems(records)
    assert "has 2 axes" in told
    assert "holds 3 volumes along a fourth axis" in told


def test_too_few_slices_are_named(tmp_path):
    image = write_volume(tmp_path / "a.nii.gz", plane="axial", depth=15)
    assert f"{image}: 15 slices; at least 16 are needed" in problems([Record("a", "1", "axial", image)])


def test_a_series_of_another_plane_is_named(good):
    assert "is sagittal by its header, coronal by its record" in problems([replace(good[0], plane="coronal")])


def test_slices_along_another_axis_are_named_for_the_published_preparation_alone(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(18, 32, 32)).astype(np.float32)
    affine = np.array([[3.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    turned = [Record("a", "1", "sagittal", tmp_path / "a.nii.gz")]
    check_records(turned, preparation="full")
    assert "its slices lie along axis 1" in problems(turned, preparation="published")


def test_a_label_map_of_another_shape_is_named(good):
    write_volume(good[0].labels, depth=17)
    assert f"{good[0].labels}: 32 x 32 x 17 voxels, its image has 32 x 32 x 16" in problems(good)


def test_a_label_map_that_lies_elsewhere_is_named(good):
    image = nibabel.load(good[0].labels)
    affine = image.affine.copy()
    affine[0, 3] += 5
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), good[0].labels)
    assert f"{good[0].labels}: does not lie where its image does" in problems(good)


@pytest.mark.parametrize(("value", "shown"), [(12, "12"), (0.5, "0.5"), (-3, "-3")])
def test_labels_out_of_range_are_named(good, value, shown):
    voxels = np.zeros((32, 32, 16), np.float32)
    voxels[0, 0, 0], voxels[1, 1, 1] = value, 255
    write_volume(good[0].labels, voxels=voxels)
    assert f"{good[0].labels}: holds {shown}; labels are 0 to 11" in problems(good)


def test_labels_need_not_be_looked_at(good):
    good[0].labels.write_bytes(b"not a label map")
    assert "not a readable label map" in problems(good)
    check_records(good, labels=False)


def test_a_patient_on_both_sides_is_named(good):
    torn = [replace(r, split="train" if r.study == "study_000" else "test") for r in good]
    assert "patient patient_000: is in test and in train" in problems(torn)


def test_a_file_of_two_patients_is_named(good):
    again = replace(good[0], study="another", patient="someone else")
    assert "and of patient someone else" in problems([*good, again])


def test_a_file_on_both_sides_is_named(good):
    torn = [replace(good[0], split="train"), replace(good[0], patient="another", split="test")]
    assert f"file {good[0].image} (sagittal): is in test and in train" in problems(torn)


@pytest.mark.parametrize(("value", "shown"), [(2.0, "2"), (0.5, "0.5"), (-99.0, "text")])
def test_findings_other_than_0_1_or_empty_are_named(good, value, shown):
    wrong = replace(good[0], findings=(value, *good[0].findings[1:]))
    assert f"study study_000: findings must be 0, 1 or empty, not {shown}" in problems([wrong])
    check_records([replace(good[0], findings=(float("nan"), *good[0].findings[1:]))])


def test_label_pictures_are_counted_and_measured(tmp_path):
    image = write_volume(tmp_path / "a.nii.gz", side=32, depth=16)
    Image.fromarray(np.zeros((32, 30), np.uint8)).save(tmp_path / "1-a.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "17-a.png")
    Image.fromarray(np.full((32, 32), 99, np.uint8)).save(tmp_path / "3-a.png")
    paths = {n: tmp_path / f"{n}-a.png" for n in (1, 2, 3, 17)}
    told = problems([Record("s", "p", "sagittal", image, masks=tuple(paths.items()))])
    assert f"{paths[1]}: 30 x 32 pixels, its image has 32 x 32" in told
    assert f"{paths[2]}: no such file" in told
    assert f"{paths[3]}: no value is a label" in told
    assert f"{paths[17]}: is slice 17 of an image with 16 slices" in told
    assert "1 labelled slice; at least 2" in problems([Record("s", "p", "sagittal", image, masks=((3, paths[3]),))])


def test_all_problems_are_told_at_once_the_first_twenty_in_full(good, tmp_path):
    lost = [replace(good[0], image=tmp_path / f"{n}.nii.gz", labels=None) for n in range(25)]
    told = problems([*lost, replace(good[1], findings=(3.0,))])
    assert told.startswith("the data set has 26 problems; correct or leave out what is listed:\n")
    assert told.count("no such file") == 20
    assert told.endswith("and 6 more")


def test_no_series_at_all_is_said():
    assert problems([]) == "the data set lists no series."
