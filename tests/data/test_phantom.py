"""The digital knee: the same anatomy in three planes, where it belongs, and readable as files."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from orthokernels.data.phantom import PhantomSeries, PhantomStudy, make_study, write_dicom, write_nifti
from orthokernels.data.phantom.parts import Part
from orthokernels.data.phantom.signal import TISSUES, Contrast, spin_echo
from orthokernels.data.study import read_study
from orthokernels.errors import InputError
from orthokernels.tasks import PLANES, STRUCTURES

INDEX = {s.key: s.index for s in STRUCTURES}

# Structures that lie wholly inside the field of view of all three series, and how far apart their centroids may be, in
# mm. A label is where most of a voxel is that part, so a solid's centroid errs by less than half a slice. A meniscus
# thins to less than half an axial slice, where a whole horn of its C is lost and the centroid moves by some mm; so
# does the tibial cartilage, of which the slope of the plateau shows a part in one slice and a part in the next.
WHOLE = {"acl": 1.9, "pcl": 1.9, "tibial_cartilage": 5.5, "medial_meniscus": 5.5, "lateral_meniscus": 5.5}

# The coronal stack begins behind the front of the patella, as it does in a clinic.
CUT_OFF = {("coronal", "patella"), ("coronal", "patellar_cartilage")}

# Millilitres. Adults' published means are about 20 for the patella, 10 to 14, 4 to 6 and 3 to 4 for the cartilages, 2
# to 3 for a meniscus and 1 to 2 for a cruciate; the ranges leave half to twice that for size and coarse voxels.
VOLUMES = {
    "patella": (8.0, 40.0), "femoral_cartilage": (6.0, 26.0), "tibial_cartilage": (2.0, 10.0),
    "patellar_cartilage": (1.0, 7.0), "medial_meniscus": (0.9, 5.5), "lateral_meniscus": (0.9, 5.5), "acl": (0.6, 4.5),
    "pcl": (0.6, 5.0),
}  # fmt: skip

# Where i, j and k point in RAS on a usual display of each plane.
VIEWS = {
    "sagittal": ((0, -1, 0), (0, 0, 1), (1, 0, 0)),
    "coronal": ((-1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "axial": ((-1, 0, 0), (0, 1, 0), (0, 0, 1)),
}


@pytest.fixture(scope="module")
def studies() -> dict[str, PhantomStudy]:
    return {"right": make_study(0, side="right", matrix=96), "left": make_study(3, side="left", matrix=96)}


@pytest.fixture(scope="module")
def small() -> PhantomStudy:
    return make_study(7, side="left", matrix=40)


@pytest.fixture(scope="module")
def dicom_folder(small: PhantomStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "deep" / "study"
    write_dicom(small, folder)
    return folder


def centre_mm(series: PhantomSeries, key: str) -> np.ndarray:
    """Centroid of a structure in RAS mm."""
    indices = np.argwhere(series.labels == INDEX[key]).mean(axis=0)
    return series.affine[:3, :3] @ indices + series.affine[:3, 3]


def volume_ml(series: PhantomSeries, key: str) -> float:
    return np.count_nonzero(series.labels == INDEX[key]) * abs(np.linalg.det(series.affine[:3, :3])) / 1000.0


def labels_at(series: PhantomSeries, points: np.ndarray) -> np.ndarray:
    """Label of the nearest voxel to points (n, 3) in mm, -1 outside the field of view."""
    inverse = np.linalg.inv(series.affine)
    indices = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    inside = ((indices >= 0) & (indices < series.labels.shape)).all(axis=1)
    found = np.full(len(points), -1)
    found[inside] = series.labels[tuple(indices[inside].T)]
    return found


def image_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.dcm"))


def digest(study: PhantomStudy) -> str:
    parts = (a.tobytes() for s in study.series for a in (s.voxels, s.labels, s.affine))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_same_seed_gives_same_study_and_another_seed_another():
    assert digest(make_study(4, side="right", matrix=32)) == digest(make_study(4, side="right", matrix=32))
    assert digest(make_study(4, side="right", matrix=32)) != digest(make_study(5, side="right", matrix=32))


def test_seed_draws_the_side_where_none_is_asked_for():
    assert {make_study(seed, side=None, matrix=32).side for seed in range(4)} == {"right", "left"}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("plane", PLANES)
def test_every_structure_is_in_every_series(studies, side, plane):
    series = studies[side].plane(plane)
    assert set(np.unique(series.labels)) == {0, *INDEX.values()}
    assert series.voxels.dtype == np.uint16
    assert series.labels.dtype == np.uint8
    assert series.voxels.shape == series.labels.shape


@pytest.mark.parametrize("plane", PLANES)
def test_series_lie_a_little_obliquely_to_their_planes_usual_view(studies, plane):
    affine = studies["right"].plane(plane).affine[:3, :3]
    directions = affine / np.linalg.norm(affine, axis=0)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    normal = directions[:, 2]
    obliquity = np.degrees(np.arccos(normal @ VIEWS[plane][2]))
    # A turn of at most 15 degrees about each of two axes tilts the third by at most acos(cos(15) ** 2) = 21.1.
    assert 3.0 < obliquity < 21.1
    # Along the row x down the picture is DICOM's slice normal. RAS and LPS differ by a rotation, which keeps it.
    np.testing.assert_allclose(np.cross(directions[:, 0], -directions[:, 1]), normal, atol=1e-12)
    for axis in range(3):
        assert np.argmax(np.abs(directions[:, axis])) == np.argmax(np.abs(VIEWS[plane][axis]))
        assert directions[:, axis] @ VIEWS[plane][axis] > 0


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("plane", PLANES)
def test_anatomy_is_in_order_in_the_patient(studies, side, plane):
    series = studies[side].plane(plane)
    centre = {key: centre_mm(series, key) for key in INDEX}
    lateral = 1.0 if side == "right" else -1.0

    assert lateral * (centre["lateral_meniscus"] - centre["medial_meniscus"])[0] > 25.0
    assert lateral * (centre["fibula"] - centre["tibia"])[0] > 20.0
    assert centre["patella"][1] - centre["femur"][1] > 25.0
    assert centre["patella"][1] > centre["patellar_cartilage"][1] > centre["femur"][1]
    assert centre["tibia"][1] > centre["fibula"][1]
    assert centre["acl"][1] > centre["pcl"][1]
    heights = [centre[key][2] for key in ("femur", "femoral_cartilage", "tibial_cartilage", "tibia")]
    assert heights == sorted(heights, reverse=True)
    assert centre["femoral_cartilage"][2] > centre["medial_meniscus"][2] > centre["tibia"][2]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("plane", ["coronal", "axial"])
def test_planes_show_the_same_point_of_the_same_knee(studies, side, plane):
    first, second = studies[side].plane("sagittal"), studies[side].plane(plane)
    for key, bound in WHOLE.items():
        assert np.linalg.norm(centre_mm(first, key) - centre_mm(second, key)) < bound, key


@pytest.mark.parametrize("plane", ["coronal", "axial"])
@pytest.mark.parametrize("key", ["femur", "tibia", "fibula", "patella"])
def test_bones_agree_where_fields_of_view_overlap(studies, plane, key):
    first, second = studies["right"].plane("sagittal"), studies["right"].plane(plane)
    indices = np.indices(second.labels.shape).reshape(3, -1).T
    points = indices @ second.affine[:3, :3].T + second.affine[:3, 3]
    there = labels_at(first, points)
    here = np.where(there >= 0, second.labels.reshape(-1).astype(int), -1)
    a, b = points[there == INDEX[key]], points[here == INDEX[key]]
    assert np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)) < 1.9  # half a slice
    overlap = np.count_nonzero((there == INDEX[key]) & (here == INDEX[key]))
    # Nearest-voxel borders are off by a quarter of a slice, 0.9 mm, on average: of the slimmest, a fibula of 6 mm
    # radius, that is about 15 % of the area on either side.
    assert 2.0 * overlap / (len(a) + len(b)) > 0.8


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("key", VOLUMES)
def test_volumes_are_those_of_an_adult_knee(studies, side, key):
    low, high = VOLUMES[key]
    for series in studies[side].series:
        if (series.plane, key) not in CUT_OFF:
            assert low < volume_ml(series, key) < high, series.plane


@pytest.mark.parametrize("plane", PLANES)
def test_contrast_is_that_of_proton_density_with_fat_suppression(studies, plane):
    series = studies["right"].plane(plane)
    median = {key: np.median(series.voxels[series.labels == index]) for key, index in INDEX.items()}
    for cartilage in ("femoral_cartilage", "patellar_cartilage"):
        assert median[cartilage] > 1.4 * median["femur"]
    for dark in ("medial_meniscus", "lateral_meniscus", "pcl"):
        assert median[dark] < 0.6 * median["femoral_cartilage"]
    contrast = Contrast(series.echo_time_ms, series.repetition_time_ms, fat_left=0.1)
    assert spin_echo(TISSUES[Part.FLUID], contrast) > 1.2 * spin_echo(TISSUES[Part.PATELLAR_CARTILAGE], contrast)
    brightest = np.percentile(series.voxels, 99.95)  # fluid, of which a dry knee has little
    assert brightest > 1.2 * median["patellar_cartilage"]
    assert series.voxels.max() < 4096


def test_air_holds_rician_noise(studies):
    air = studies["right"].plane("axial").voxels[:8, -8:].astype(float)  # a corner of the picture
    # A Rayleigh distribution has a mean of sqrt(pi / (4 - pi)) = 1.913 standard deviations; rounding moves it a little.
    assert air.mean() / air.std() == pytest.approx(1.913, rel=0.1)


@pytest.mark.parametrize("plane", PLANES)
def test_dicom_read_back_gives_voxels_and_affine(small, dicom_folder, plane):
    series = small.plane(plane)
    images = [pydicom.dcmread(path) for path in image_files(dicom_folder)]
    images = sorted((d for d in images if series.description == d.SeriesDescription), key=lambda d: d.InstanceNumber)
    pixels = np.stack([d.pixel_array for d in images], axis=-1)  # [row, column, slice]
    np.testing.assert_array_equal(pixels[::-1].transpose(1, 0, 2), series.voxels)

    # PS3.3 C.7.6.2.1.1: position + column index x row direction x column spacing + row index x column direction x ...
    first, second = images[0], images[1]
    row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    start = np.array(first.ImagePositionPatient, float)
    step = np.array(second.ImagePositionPatient, float) - start
    between_rows, between_columns = map(float, first.PixelSpacing)
    last_row = first.Rows - 1
    lps = np.eye(4)
    lps[:3] = np.column_stack(
        [row * between_columns, -column * between_rows, step, start + last_row * between_rows * column]
    )
    # Ten decimals, times at most 40 pixels.
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ lps, series.affine, atol=1e-7)
    assert float(first.SpacingBetweenSlices) == pytest.approx(np.linalg.norm(step))
    assert np.cross(row, column) @ step > 0


def test_dicom_headers_name_one_study_of_one_knee(small, dicom_folder):
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in image_files(dicom_folder)]
    assert len(images) == sum(s.voxels.shape[2] for s in small.series)
    for shared in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert len({d[shared].value for d in images}) == 1
    assert len({d.SeriesInstanceUID for d in images}) == 3
    assert len({d.SOPInstanceUID for d in images}) == len(images)
    for d in images:
        assert (d.Laterality, d.BodyPartExamined, d.ScanOptions, d.ScanningSequence) == ("L", "KNEE", "FS", "SE")
        assert d.PatientName == "Phantom^Knee"
        assert d.SOPInstanceUID.startswith("2.25.")
        assert d.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        series = next(s for s in small.series if s.description == d.SeriesDescription)
        assert (d.EchoTime, d.RepetitionTime) == (series.echo_time_ms, series.repetition_time_ms)
        assert d.SliceThickness == series.slice_thickness_mm


def test_dicom_is_the_same_bytes_every_time(small, dicom_folder, tmp_path):
    write_dicom(small, tmp_path / "again")
    first, again = image_files(dicom_folder), image_files(tmp_path / "again")
    assert [p.relative_to(dicom_folder) for p in first] == [p.relative_to(tmp_path / "again") for p in again]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, again, strict=True))


def test_reader_finds_the_three_planes(small, dicom_folder):
    study = read_study([dicom_folder])
    for plane in PLANES:
        stack = study.stacks[plane][0]
        np.testing.assert_allclose(stack.affine, small.plane(plane).affine, atol=1e-7)
        np.testing.assert_array_equal(stack.load().voxels, small.plane(plane).voxels)


def test_dciodvfy_finds_no_error(dicom_folder):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    for folder in sorted(dicom_folder.iterdir()):
        ran = subprocess.run(["dciodvfy", str(image_files(folder)[2])], capture_output=True, text=True, check=False)
        said = ran.stdout + ran.stderr
        assert "MRImage" in said
        assert "Error" not in said


def test_nifti_read_back_gives_voxels_labels_and_affine(small, tmp_path):
    write_nifti(small, tmp_path / "nifti")
    for series in small.series:
        image = nibabel.load(tmp_path / "nifti" / f"{series.plane}.nii.gz")
        labels = nibabel.load(tmp_path / "nifti" / f"{series.plane}_labels.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), series.voxels)
        np.testing.assert_array_equal(np.asanyarray(labels.dataobj), series.labels)
        assert labels.header.get_intent("code")[0] == 1002
        for read in (image, labels):
            # The header holds the affine in float32: 2 ** -24 of positions up to 200 mm.
            np.testing.assert_allclose(read.affine, series.affine, atol=2e-5)
            assert read.header.get_xyzt_units()[0] == "mm"
    names = json.loads((tmp_path / "nifti" / "labels.json").read_text())
    assert {int(index): name for index, name in names.items() if index != "0"} == {i: k for k, i in INDEX.items()}


@pytest.mark.parametrize("write", [write_dicom, write_nifti])
def test_nothing_is_overwritten(small, tmp_path, write):
    kept = tmp_path / "study" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write(small, kept.parent)
    with pytest.raises(InputError, match="not a folder"):
        write(small, kept)
    assert kept.read_text() == "mine"
    assert [p.name for p in tmp_path.rglob("*")] == ["study", "mine.txt"]


def test_write_that_fails_half_way_leaves_nothing(small, tmp_path):
    unwritable = replace(small.series[-1], labels=small.series[-1].labels.astype(np.int64))  # nibabel takes no int64
    with pytest.raises(ValueError, match="int64"):
        write_nifti(replace(small, series=(*small.series[:-1], unwritable)), tmp_path / "study")
    assert not list(tmp_path.iterdir())


def test_empty_folder_is_filled_and_no_other_is_left_behind(small, tmp_path):
    (tmp_path / "study").mkdir()
    write_nifti(small, tmp_path / "study")
    assert [p.name for p in tmp_path.iterdir()] == ["study"]
    assert len(list((tmp_path / "study").iterdir())) == 7
