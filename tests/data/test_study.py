"""Which volumes a study's files make, which one stands for a plane, and why the others do not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from orthokernels.data.contrast import contrast_name
from orthokernels.data.geometry import plane_of
from orthokernels.data.study import read_study
from orthokernels.errors import InputError
from tests.data.series import noise, write_series


def reasons(study) -> str:
    return "\n".join(f"{item.what}: {item.reason}" for item in study.left_out)


def test_affine_places_every_corner_where_dicom_does(tmp_path):
    pixels = noise(0)
    files = write_series(tmp_path, pixels, tilt=(12, -9, 20))
    volume = read_study([tmp_path]).load("sagittal")
    for k in (0, 7, 17):
        header = pydicom.dcmread(files[k])
        row, column = np.array(header.ImageOrientationPatient[:3]), np.array(header.ImageOrientationPatient[3:])
        for r, c in ((0, 0), (19, 0), (0, 23), (19, 23)):
            # Part 3, C.7.6.2.1.1: position of the centre of pixel (row r, column c), LPS.
            lps = np.array(header.ImagePositionPatient) + row * 0.7 * c + column * 0.5 * r
            found = volume.affine @ [c, 19 - r, k, 1]
            np.testing.assert_allclose(found[:3], lps * [-1, -1, 1], atol=1e-5)  # headers carry six decimals
            assert volume.voxels[c, 19 - r, k] == pixels[k, r, c]


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
def test_plane_comes_from_geometry_not_from_the_description(tmp_path, plane):
    write_series(tmp_path, noise(1), plane=plane, tilt=(10, 10, -10), SeriesDescription="AX SAG COR")
    study = read_study([tmp_path])
    assert [p for p, stacks in study.stacks.items() if stacks] == [plane]


def test_slices_are_sorted_by_position_not_by_name_or_number(tmp_path):
    pixels = noise(2)
    write_series(tmp_path / "a", pixels, reverse_names=True)
    for n, file in enumerate(sorted((tmp_path / "a").iterdir())):
        dataset = pydicom.dcmread(file)
        dataset.InstanceNumber = (n * 7) % 18
        dataset.save_as(file)
    volume = read_study([tmp_path]).load("sagittal")
    np.testing.assert_array_equal(volume.voxels, pixels[:, ::-1].transpose(2, 1, 0))


def test_real_multi_echo_series_is_split_and_the_echo_nearest_40_ms_is_taken(real_data):
    study = read_study([real_data / "knee-mese"])
    echoes = [stack.source.echo_time for stack in study.stacks["sagittal"]]
    assert len(echoes) == 8
    assert all(stack.shape == (256, 256, 24) for stack in study.stacks["sagittal"])
    volume = study.load("sagittal")
    assert volume.source.echo_time == pytest.approx(37.872)
    assert plane_of(volume.affine)[1] == pytest.approx(8.4, abs=0.1)
    assert len(study.left_out) == 7
    assert all("ranks below" in item.reason for item in study.left_out)


def test_three_plane_localizer_is_split_by_orientation(tmp_path):
    for plane in ("sagittal", "coronal", "axial"):
        write_series(tmp_path / plane, noise(3, slices=17), plane=plane, series="1.2.3.4")
    study = read_study([tmp_path])
    assert [len(stacks) for stacks in study.stacks.values()] == [1, 1, 1]
    assert all(study.load(plane).shape == (24, 20, 17) for plane in study.stacks)


def two_knees(folder, **headers):
    """Three planes of one knee, and the same 200 mm to the side."""
    for side, shift in (("R", 0.0), ("L", 200.0)):
        for plane in ("sagittal", "coronal", "axial"):
            start = (-40.0 + shift, -60.0, 50.0)
            write_series(folder / side / plane, noise(3, slices=17), plane=plane, start=start, **headers.get(side, {}))


@pytest.mark.parametrize("headers", [{}, {"R": {"Laterality": "R"}, "L": {"Laterality": "L"}}])
def test_two_knees_in_a_study_do_not_become_one(tmp_path, headers):
    two_knees(tmp_path, **headers)
    study = read_study([tmp_path])
    chosen = list(study.stacks.values())
    assert [len(stacks) for stacks in chosen] == [1, 1, 1]
    assert np.ptp([stacks[0].affine[0, 3] for stacks in chosen]) < 150
    assert len(study.elsewhere) == 3
    assert reasons(study).count("another side or place") == 3


def test_side_decides_where_places_do_not(tmp_path):
    for plane, side in (("sagittal", "L"), ("coronal", "R"), ("axial", "R")):
        write_series(tmp_path / plane, noise(3, slices=17), plane=plane, Laterality=side)
    study = read_study([tmp_path])
    assert [plane for plane, stacks in study.stacks.items() if stacks] == ["coronal", "axial"]
    assert [stack.source.laterality for stack in study.elsewhere] == ["L"]


@pytest.mark.parametrize("told", ["U", "B", ["R", "L"]])
def test_what_names_no_single_side_contradicts_none(tmp_path, told):
    for plane, side in (("sagittal", told), ("coronal", "R"), ("axial", "R")):
        write_series(tmp_path / plane, noise(3, slices=17), plane=plane, Laterality=side)
    study = read_study([tmp_path])
    assert study.elsewhere == []
    assert [stacks[0].source.laterality for stacks in study.stacks.values()] == [None, "R", "R"]


def test_a_series_whose_slices_name_both_sides_has_none(tmp_path):
    for number, file in enumerate(write_series(tmp_path, noise(4))):
        dataset = pydicom.dcmread(file)
        dataset.Laterality = "RL"[number % 2]
        dataset.save_as(file)
    volume = read_study([tmp_path]).load("sagittal")
    assert volume.source.laterality is None
    assert "its slices name both sides (L, R), so its side is left open" in volume.warnings


def test_two_stacks_of_one_series_are_told_apart(tmp_path):
    for name, shift in (("a", 0.0), ("b", 200.0)):
        write_series(tmp_path / name, noise(3, slices=17), start=(-40.0 + shift, -60.0, 50.0), series="1.2.3.4")
    study = read_study([tmp_path])
    (stack,) = study.stacks["sagittal"]
    (other,) = study.elsewhere
    assert stack.shape == other.shape == (24, 20, 17)
    assert {stack.source.description[-7:], other.source.description[-7:]} == {"stack 1", "stack 2"}
    assert not stack.warnings


@pytest.mark.parametrize(("slices", "behind"), [(17, 0.0), (17, 1.3), (20, 0.0)])
def test_two_knees_side_by_side_in_one_series_are_told_apart(tmp_path, slices, behind):
    """Coronal stacks of both knees share their places along the normal, or lie between one another's."""
    write_series(tmp_path / "a", noise(3, slices=17), plane="coronal", series="1.2.3.4")
    start = (160.0, -60.0 + behind, 50.0)
    write_series(tmp_path / "b", noise(3, slices=slices), plane="coronal", start=start, series="1.2.3.4")
    study = read_study([tmp_path])
    found = [*study.stacks["coronal"], *study.elsewhere]
    assert sorted(stack.shape for stack in found) == [(24, 20, 17), (24, 20, slices)]
    assert all(not stack.warnings for stack in found)
    assert {stack.source.description[-15:] for stack in found} == {"field of view 1", "field of view 2"}
    assert np.ptp([stack.affine[0, 3] for stack in found]) == pytest.approx(200.0)


def test_empty_echo_time_in_a_file_makes_a_stack_of_its_own(tmp_path):
    files = write_series(tmp_path, noise(3, slices=18))
    dataset = pydicom.dcmread(files[17])
    dataset.EchoTime = None
    dataset.save_as(files[17])
    study = read_study([tmp_path])
    assert study.load("sagittal").shape == (24, 20, 17)
    assert "no echo time" in reasons(study)


def test_plane_of_a_series_with_long_pixels_is_that_of_its_slices(tmp_path):
    write_series(tmp_path, noise(3, slices=17), spacing=(2.0, 0.5, 0.6))
    volume = read_study([tmp_path]).load("sagittal")
    assert volume.shape == (24, 20, 17)
    assert volume.turn.axes[2] == 2


def test_repeated_acquisitions_are_split_by_time(tmp_path):
    first, second = noise(4), noise(5)
    write_series(tmp_path / "b", second, series="1.2.3.4", TemporalPositionIdentifier=2)
    write_series(tmp_path / "a", first, series="1.2.3.4", TemporalPositionIdentifier=1)
    study = read_study([tmp_path])
    assert [s.source.description for s in study.stacks["sagittal"]] == [
        "sagittal test, repetition 1",
        "sagittal test, repetition 2",
    ]
    np.testing.assert_array_equal(study.load("sagittal").voxels, first[:, ::-1].transpose(2, 1, 0))


def test_fat_suppressed_fluid_sensitive_comes_before_more_slices(tmp_path):
    write_series(tmp_path / "t1", noise(6, slices=30), EchoTime=12.0, RepetitionTime=600.0, SeriesDescription="T1")
    write_series(tmp_path / "pd", noise(7, slices=24), SeriesDescription="PD")
    write_series(tmp_path / "fs", noise(8, slices=17), ScanOptions="FS", SeriesDescription="PD FS")
    write_series(tmp_path / "fs2", noise(9, slices=18), ScanOptions="FS", SeriesDescription="PD FS 2")
    order = [stack.source.description for stack in read_study([tmp_path]).stacks["sagittal"]]
    assert order == ["PD FS 2", "PD FS", "PD", "T1"]


def test_short_inversion_recovery_counts_as_fluid_sensitive_and_fat_suppressed(tmp_path):
    write_series(tmp_path / "stir", noise(10, slices=17), ScanningSequence="IR", InversionTime=160.0, EchoTime=15.0)
    write_series(tmp_path / "pd", noise(11, slices=24))
    first = read_study([tmp_path]).stacks["sagittal"][0]
    assert first.source.inversion_time == 160.0


@pytest.mark.parametrize(("word", "what"), [("P", "a phase image"), ("I", "an imaginary image")])
def test_a_plane_stands_on_magnitude_images(tmp_path, word, what):
    write_series(tmp_path / "m", noise(1), ImageType=["ORIGINAL", "PRIMARY", "M", "SE"])
    write_series(tmp_path / "other", noise(2, slices=20), ImageType=["ORIGINAL", "PRIMARY", word, "SE"])
    study = read_study([tmp_path])
    assert study.load("sagittal").shape == (24, 20, 18)
    assert [own.reason for own in study.left_out] == [f"{what}, not a magnitude image"]


def test_a_backslash_in_a_name_leaves_it_text(tmp_path):
    write_series(tmp_path, noise(1), SeriesDescription="SAG PD\\T2", BodyPartExamined="KNEE\\LEG")
    source = read_study([tmp_path]).load("sagittal").source
    assert (source.description, source.body_part) == ("SAG PD T2", "KNEE LEG")


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")  # pydicom's, of the file that is made here
@pytest.mark.parametrize("spacing", [["inf", "1"], ["0", "1"], ["-1", "1"]])
def test_a_pixel_spacing_that_is_no_length_is_refused(tmp_path, spacing):
    write_series(tmp_path, noise(1), PixelSpacing=spacing)
    with pytest.raises(InputError, match="pixel spacing or position is no valid number of mm"):
        read_study([tmp_path])


def test_missing_slice_leaves_the_longest_even_run(tmp_path):
    files = write_series(tmp_path, pixels := noise(12, slices=24))
    files[5].unlink()
    volume = read_study([tmp_path]).load("sagittal")
    assert volume.shape == (24, 20, 18)
    assert "slices 6 to 23 of 23 are used" in volume.warnings[0]
    np.testing.assert_array_equal(volume.voxels, pixels[6:, ::-1].transpose(2, 1, 0))


def test_bad_file_in_a_good_study_is_left_out_and_the_study_goes_on(tmp_path):
    files = write_series(tmp_path / "good", noise(13, slices=20))
    files[-1].write_bytes(files[-1].read_bytes()[:-100])  # the last slice is cut short
    (tmp_path / "good" / "notes.txt").write_text("hello")
    (tmp_path / "good" / "empty.dcm").touch()
    study = read_study([tmp_path])
    assert study.load("sagittal").shape == (24, 20, 19)
    assert "is cut short: 860 of 960 bytes" in reasons(study)
    assert "not a DICOM file" in reasons(study)
    assert "is empty (0 bytes)" in reasons(study)


def test_undecodable_slice_is_left_out_when_pixels_are_read(tmp_path):
    from pydicom.uid import RLELossless

    files = write_series(tmp_path, noise(14, slices=20))
    dataset = pydicom.dcmread(files[0])
    dataset.compress(RLELossless)
    dataset.PixelData = dataset.PixelData[:60] + b"\x00" * 40
    dataset.save_as(files[0])
    volume = read_study([tmp_path]).load("sagittal")
    assert volume.shape == (24, 20, 19)
    assert any("can't be decoded" in warning and files[0].name in warning for warning in volume.warnings)


def test_copies_of_a_file_count_once(tmp_path):
    files = write_series(tmp_path / "a", noise(15))
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    study = read_study([tmp_path, files[0], tmp_path / "a"])
    assert study.load("sagittal").shape == (24, 20, 18)
    assert reasons(study).count("same image (SOP Instance UID)") == 18


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("emptied", [True, False])
def test_a_series_without_its_uids_is_one_by_its_folder(tmp_path, keyword, emptied):
    for plane in ("sagittal", "coronal"):
        for file in write_series(tmp_path / plane, noise(1), plane=plane):
            dataset = pydicom.dcmread(file)
            if emptied:
                setattr(dataset, keyword, "")
            else:
                delattr(dataset, keyword)
            dataset.save_as(file)
    study = read_study([tmp_path])
    assert [study.load(plane).shape for plane in ("sagittal", "coronal")] == [(24, 20, 18)] * 2
    assert study.load("sagittal").source.series_hash != study.load("coronal").source.series_hash
    assert study.left_out == []


def test_second_image_at_a_position_is_told(tmp_path):
    write_series(tmp_path / "a", noise(16), series="1.2.3.4")
    write_series(tmp_path / "b", noise(17)[:1], series="1.2.3.4")
    volume = read_study([tmp_path]).load("sagittal")
    assert volume.shape == (24, 20, 18)
    assert "1 further images at the same positions" in volume.warnings[0]


def test_two_studies_are_refused(tmp_path):
    write_series(tmp_path / "a", noise(18), study="1.2.3")
    write_series(tmp_path / "b", noise(19), study="1.2.4", plane="axial")
    with pytest.raises(InputError, match="holds 2 studies"):
        read_study([tmp_path])


def test_sheared_positions_are_refused(tmp_path):
    files = write_series(tmp_path, noise(20))
    dataset = pydicom.dcmread(files[9])
    position = [float(v) for v in dataset.ImagePositionPatient]
    dataset.ImagePositionPatient = [position[0], position[1] + 3.0, position[2]]
    dataset.save_as(files[9])
    with pytest.raises(InputError, match=r"shifted against each other by up to 3\.0 mm"):
        read_study([tmp_path])


def test_header_claiming_a_monstrous_size_is_refused_before_allocation(tmp_path):
    files = write_series(tmp_path, noise(21)[:1], Rows=65535, Columns=65535, NumberOfFrames=10000)
    with pytest.raises(InputError, match="the header claims 65535 x 65535 x 10000 voxels"):
        read_study(files)


def test_no_identifier_leaves_the_reader(tmp_path):
    write_series(tmp_path, noise(22), PatientName="Doe^Jane", PatientID="4711", study="1.2.3.99")
    source = read_study([tmp_path]).load("sagittal").source
    text = repr([v for name, v in vars(source).items() if name != "paths"])
    assert "Doe" not in text
    assert "4711" not in text
    assert "1.2.3.99" not in text


def nifti(path, voxels, affine=None, code=1):
    image = nibabel.Nifti1Image(voxels, np.diag([-0.5, 0.5, 4.0, 1.0]) if affine is None else affine)
    image.set_sform(image.affine, code)
    image.set_qform(image.affine, code)
    nibabel.save(image, path)
    return path


def test_nifti_keeps_its_affine_and_order(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(20, 22, 17)).astype(np.float32)
    path = nifti(tmp_path / "knee.nii.gz", voxels)
    study = read_study([path])
    volume = study.load("axial")
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, np.diag([-0.5, 0.5, 4.0, 1.0]))


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("mm", 1.0), ("micron", 0.001), ("unknown", 1.0)])
def test_nifti_lies_in_mm_whatever_unit_it_is_written_in(tmp_path, unit, mm):
    affine = np.array([[0, 0, 4.0, -30], [-0.5, 0, 0, 60], [0, 0.7, 0, -50], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(noise(1).T.astype(np.int16), np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "knee.nii.gz")
    # float32 headers hold seven digits.
    np.testing.assert_allclose(read_study([tmp_path]).load("sagittal").affine, affine, rtol=1e-6, atol=1e-6)


def test_nifti_with_slices_along_its_first_axis_finds_its_plane(tmp_path):
    affine = np.diag([4.0, 0.5, 0.5, 1.0])
    path = nifti(tmp_path / "ras.nii", np.random.default_rng(0).normal(size=(18, 30, 31)).astype(np.float32), affine)
    assert read_study([path]).load("sagittal").shape == (18, 30, 31)


def test_side_file_of_dcm2niix_decides_the_contrast(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(20, 22, 17)).astype(np.float32)
    nifti(tmp_path / "a.nii.gz", voxels)
    nifti(tmp_path / "b.nii.gz", voxels)
    (tmp_path / "b.json").write_text(
        '{"EchoTime": 0.035, "RepetitionTime": 3.0, "ScanningSequence": "SE", "ScanOptions": "FS"}'
    )
    (tmp_path / "studies.csv").write_text("study,patient\n")
    (tmp_path / "other.json").write_text("{}")
    study = read_study([tmp_path])
    assert study.load("axial").source.paths[0].name == "b.nii.gz"
    assert [Path(own.what).name for own in study.left_out] == ["other.json", "a.nii.gz (20 x 22 x 17)"]


@pytest.mark.parametrize(
    "told",
    ['{"EchoTime": NaN}', '{"EchoTime": Infinity}', f'{{"EchoTime": 1{"0" * 400}}}', '{"EchoTime": -1}', "[" * 100_000],
    ids=["nan", "infinite", "huge", "negative", "deep"],
)
def test_a_side_file_that_tells_no_time_tells_nothing(tmp_path, told):
    voxels = np.random.default_rng(0).normal(size=(20, 22, 17)).astype(np.float32)
    nifti(tmp_path / "axial.nii.gz", voxels)
    (tmp_path / "axial.json").write_text(told)
    volume = read_study([tmp_path]).load("axial")
    assert volume.source.echo_time is None
    assert volume.source.description == "axial"


def test_text_of_a_side_file_can_be_written_whatever_it_is(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(20, 22, 17)).astype(np.float32)
    nifti(tmp_path / "axial.nii.gz", voxels)
    (tmp_path / "axial.json").write_text('{"SeriesDescription": "\\ud800 PD", "BodyPartExamined": "\\udfff"}')
    source = read_study([tmp_path]).load("axial").source
    assert (source.description, source.body_part) == ("? PD", "?")


def test_nifti_of_several_folders_that_compete_for_a_plane_may_be_several_patients(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(20, 22, 17)).astype(np.float32)
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        nifti(tmp_path / name / "axial.nii.gz", voxels)
    with pytest.raises(
        InputError, match=r"3 folders hold axial NIfTI volumes \(.*one, .*three, \.\.\.\), and NIfTI does"
    ):
        read_study([tmp_path])
    assert read_study([tmp_path / "two"]).load("axial").source.paths[0].parent.name == "two"


def test_a_nifti_file_that_was_left_out_is_named(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(20, 22, 17)).astype(np.float32)
    for name in ("a", "b"):
        nifti(tmp_path / f"{name}.nii.gz", voxels)
    study = read_study([tmp_path])
    chosen = study.load("axial")
    (other,) = study.left_out
    rest = "b" if chosen.source.description == "a" else "a"
    assert other.what == f"{tmp_path / rest}.nii.gz (20 x 22 x 17)"
    assert contrast_name(chosen.source) == "unknown"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: np.where(v > 3, np.nan, v), "voxels are NaN or infinite"),
        (lambda v: np.full_like(v, 7), "every voxel is 7, so there is no image"),
    ],
)
def test_volumes_without_an_image_are_refused_when_read(tmp_path, make, message):
    voxels = np.random.default_rng(0).normal(size=(20, 22, 17)).astype(np.float32)
    voxels[0, 0, 0] = 4
    study = read_study([nifti(tmp_path / "x.nii.gz", make(voxels).astype(np.float32))])
    assert study.load("axial") is None
    assert message in reasons(study)


@pytest.mark.parametrize("place", [12, 60])
def test_a_flipped_byte_in_a_zipped_file_is_one_sentence(tmp_path, place):
    voxels = np.random.default_rng(0).integers(0, 30, (20, 22, 17)).astype(np.int16)
    path = nifti(tmp_path / "x.nii.gz", voxels)
    content = path.read_bytes()
    path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
    with pytest.raises(InputError, match="not a readable NIfTI file") as error:
        read_study([path])
    assert "\n" not in str(error.value)


def test_an_error_without_a_message_is_told_by_its_kind(tmp_path, monkeypatch):
    path = nifti(tmp_path / "x.nii.gz", np.zeros((20, 20, 20), np.float32))

    def refuse(*_):
        raise EOFError

    monkeypatch.setattr(nibabel, "load", refuse)
    with pytest.raises(InputError, match=r"not a readable NIfTI file \(EOFError\)"):
        read_study([path])


def test_of_two_volumes_the_one_with_more_slices_is_taken_along_whatever_axis_they_lie(tmp_path):
    rng = np.random.default_rng(0)
    sides = {"few": (40, 44, 17), "many": (20, 16, 16)}  # the second's slices lie along its first axis
    turned = np.array([[0, 0, 0.5, 0], [0, 0.5, 0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
    for (name, shape), affine in zip(sides.items(), (None, turned), strict=True):
        nifti(tmp_path / f"{name}.nii.gz", rng.normal(size=shape).astype(np.float32), affine)
    assert read_study([tmp_path]).load("axial").source.paths[0].name == "many.nii.gz"


@pytest.mark.parametrize("signed", [False, True])
def test_slices_that_are_stored_bright_for_dark_keep_one_scale(tmp_path, signed):
    pixels = noise(1) // 4
    if signed:
        pixels = (pixels.astype(np.int16) - 500).astype(np.int16)
    header = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(signed)}
    as_is, inverted = (
        write_series(tmp_path / kind, pixels, PhotometricInterpretation=kind, **header)[0].parent
        for kind in ("MONOCHROME2", "MONOCHROME1")
    )
    dark, bright = (read_study([own]).load("sagittal").voxels.astype(np.int64) for own in (as_is, inverted))
    assert np.unique(dark + bright).tolist() == [-1 if signed else 4095]


def test_what_float32_can_not_hold_is_no_voxel(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(20, 22, 17))
    voxels[0, 0, 0] = 1e39
    study = read_study([nifti(tmp_path / "x.nii.gz", voxels)])
    assert study.load("axial") is None
    assert "1 voxels are NaN or infinite" in reasons(study)


def test_half_of_a_nifti_pair_says_what_to_do_with_it(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 99, (18, 20, 24)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Pair(voxels, np.diag([4, 0.5, 0.5, 1.0])), tmp_path / "knee.img")
    with pytest.raises(InputError, match=r"2 x is half of a NIfTI pair.*\. Save it as one \.nii file"):
        read_study([tmp_path])
    for file in write_series(tmp_path / "dicom", noise(1)):
        file.rename(file.with_suffix(".img"))
    assert read_study([tmp_path]).load("sagittal") is not None


def test_nifti_that_does_not_say_how_it_lies_is_refused(tmp_path):
    path = nifti(tmp_path / "x.nii", np.zeros((20, 20, 20), np.float32), code=0)
    with pytest.raises(InputError, match="does not say how it lies"):
        read_study([path])


def test_label_map_is_not_taken_for_an_image(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((20, 20, 20), np.uint8), np.eye(4))
    image.header.set_intent("label")
    nibabel.save(image, tmp_path / "labels.nii.gz")
    with pytest.raises(InputError, match="is a label map"):
        read_study([tmp_path / "labels.nii.gz"])


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08not gzip", b"garbage" * 100])
def test_damaged_nifti_is_refused(tmp_path, content):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.nii\.gz"):
        read_study([path])


def test_truncated_nifti_is_told_when_read(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(40, 40, 20)).astype(np.float32)
    path = nifti(tmp_path / "x.nii.gz", voxels)
    path.write_bytes(path.read_bytes()[:-5000])
    study = read_study([path])
    assert study.load("axial") is None
    assert "can't be read" in reasons(study)


def test_links_that_lead_nowhere_or_to_a_folder_are_told(tmp_path):
    write_series(tmp_path / "elsewhere", noise(1))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "sagittal").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"sagittal: is a link to a folder, which is not followed\. Pass what"):
        read_study([tmp_path / "study"])
    write_series(tmp_path / "study" / "coronal", noise(2), plane="coronal")
    (tmp_path / "study" / "lost.dcm").symlink_to(tmp_path / "nowhere")
    study = read_study([tmp_path / "study"])
    assert study.load("coronal") is not None
    assert [Path(own.what).name for own in study.left_out] == ["lost.dcm", "sagittal"]
    assert "lost.dcm: is a link to a file that is not there" in reasons(study)


def test_a_folder_that_can_not_be_read_is_told(tmp_path, monkeypatch):
    for plane in ("sagittal", "coronal"):
        write_series(tmp_path / plane, noise(1), plane=plane)
    scandir = os.scandir

    def forbidding(path):
        if Path(path).name == "coronal":  # no permission would keep root out
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    study = read_study([tmp_path])
    assert [plane for plane, stacks in study.stacks.items() if stacks] == ["sagittal"]
    assert "coronal: can't be read (Permission denied). Check its permissions." in reasons(study)


def test_a_path_that_can_not_be_looked_at_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"can't be read \(File name too long\)\. Check the path"):
        read_study([tmp_path / ("a" * 300)])


def test_empty_folder_and_missing_path_are_refused(tmp_path):
    with pytest.raises(InputError, match="the folder is empty"):
        read_study([tmp_path])
    with pytest.raises(InputError, match="no such file or folder"):
        read_study([tmp_path / "nowhere"])
