"""Every odd file in the collection: read, or refused with one sentence that names the file and says what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from orthokernels.data import dicom
from orthokernels.data.study import read_study
from orthokernels.errors import InputError
from orthokernels.pipeline import run
from tests.conftest import REAL_DATA

FILES = sorted(
    path
    for folder in ("odd", "knee-nema", "knee-enhanced")
    for path in (REAL_DATA / folder).rglob("*")
    if path.is_file()
)

# Part of the sentence each must give. What is not listed is a lone slice of a sound MR file.
EXPECTED = {
    "MOVEKNEE.dcm": "19 images of one location over time",
    "MR_truncated.dcm": "cut short: 8130 of 8192 bytes",
    "no_meta.dcm": "not a DICOM file",
    "ExplVR_BigEndNoMeta.dcm": "not a DICOM file",
    "meta_missing_tsyntax.dcm": "names no transfer syntax",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "cut short",
    "badVR.dcm": "not an MR image but RTDOSE",
    "csa_slice_norm.dcm": "no pixel data",
    "image_dfl.dcm": "not an MR image but OT",
    "test-SR.dcm": "not an MR image but SR",
    "rtplan_truncated.dcm": "not an MR image but RTPLAN",
    "JPEG2000-embedded-sequence-delimiter.dcm": "not an MR image but NM",
    "JPEG-lossy.dcm": "not an MR image but NM",
    "SC_rgb_small_odd.dcm": "not an MR image but OT",
    "J2K_pixelrep_mismatch.dcm": "not an MR image but CT",
    "bad_sequence.dcm": "not an MR image but CT",
    "RG3_J2KR.dcm": "not an MR image but CR",
    "RG3_JPLY.dcm": "not an MR image but CR",
    "philips_mprage.dcm.gz": "every voxel is 0",
    "decimal_rescale.dcm": "not an MR image but an object without SOP class",
    "UN_sequence.dcm": "not an MR image",
    "empty_charset_LEI.dcm": "not an MR image",
    "no_meta_group_length.dcm": "not an MR image",
    **{f"emri_small{kind}.dcm": "10 frames but describes 1"
       for kind in ("", "_RLE", "_big_endian", "_jpeg_2k_lossless", "_jpeg_ls_lossless")},
}  # fmt: skip
NOT_IMAGES = {"LICENSE", "COPYING", "LICENSE-pydicom", "PYDICOM-README.txt", "LICENSE-MS-PL.txt"}


def test_the_collection_is_there(real_data):
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_odd_file_is_refused_with_its_reason(path: Path):
    with pytest.raises(InputError) as caught:
        run(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    assert message.count(". ") <= 3
    if path.name in NOT_IMAGES:
        assert "not a DICOM file" in message
    else:
        assert EXPECTED.get(path.name, "1 slice; at least 16 are needed") in message


def stored_pixels(path: Path) -> np.ndarray:
    (frame,) = dicom.read_frames(path)
    pixels, damage = dicom.decode([frame])
    assert damage == []
    return pixels[path, 0]


@pytest.mark.parametrize("syntax", ["2", "3", "4", "5", "7", "9"])
def test_lossless_transfer_syntaxes_give_identical_pixels(real_data, syntax):
    folder = real_data / "odd" / "transfer-syntax"
    found = stored_pixels(folder / f"{syntax}.dcm")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, stored_pixels(folder / "1.dcm"))


@pytest.mark.parametrize("kind", ["bigendian", "expb", "implicit", "RLE", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_encodings_of_one_small_image_agree(real_data, kind):
    folder = real_data / "odd" / "pydicom"
    np.testing.assert_array_equal(
        stored_pixels(folder / f"MR_small_{kind}.dcm"), stored_pixels(folder / "MR_small.dcm")
    )


@pytest.mark.parametrize(
    ("syntax", "largest"),
    # Largest difference to the uncompressed slice, of 1476 grey levels: those of the lossy ones were measured.
    [("J2KR", 0), ("JLSL", 0), ("JPLL", 0), ("RLE", 0), ("JLSN", 4), ("JPLY", 55), ("J2KI", 296)],
)
def test_real_knee_slice_decodes_in_eight_transfer_syntaxes(real_data, syntax, largest):
    folder = real_data / "knee-nema"
    original = stored_pixels(folder / "MR3_UNC.dcm").astype(int)
    found = stored_pixels(folder / f"MR3_{syntax}.dcm").astype(int)
    assert np.abs(found - original).max() <= largest
    assert np.corrcoef(found.ravel(), original.ravel())[0, 1] > 0.99


def test_enhanced_frames_carry_their_own_geometry(real_data):
    frames = dicom.read_frames(real_data / "knee-enhanced" / "MOVEKNEE.dcm")
    assert len(frames) == 19
    assert {frame.pixel_spacing for frame in frames} == {(0.625, 0.625)}
    assert len({frame.position for frame in frames}) == 1
    assert frames[0].source.echo_time is not None


def test_enhanced_stack_is_read_from_its_functional_groups(tmp_path, real_data):
    """A real enhanced file, its 19 frames moved to 19 places: a stack in one file."""
    dataset = pydicom.dcmread(real_data / "knee-enhanced" / "MOVEKNEE.dcm")
    first = dicom.read_frames(real_data / "knee-enhanced" / "MOVEKNEE.dcm")[0]
    order = np.random.default_rng(0).permutation(19)
    for place, group in zip(order, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        item = pydicom.Dataset()
        item.ImagePositionPatient = [float(v) for v in np.array(first.position) + 4.0 * place * first.normal]
        group.PlanePositionSequence = [item]
    pixels = dataset.pixel_array
    dataset.save_as(tmp_path / "stack.dcm")
    volume = read_study([tmp_path / "stack.dcm"]).load("sagittal")
    assert volume.shape == (256, 256, 19)
    for frame, place in enumerate(order):
        np.testing.assert_array_equal(volume.voxels[:, :, place], pixels[frame, ::-1].T)


def test_magnitude_and_phase_of_one_enhanced_file_are_two_stacks(tmp_path, real_data):
    """17 places, each with a phase frame before its magnitude: nothing but ComplexImageComponent tells them apart."""
    dataset = pydicom.dcmread(real_data / "knee-enhanced" / "MOVEKNEE.dcm")
    first = dicom.read_frames(real_data / "knee-enhanced" / "MOVEKNEE.dcm")[0]
    pixels = np.random.default_rng(0).integers(0, 1000, (34, 8, 8), dtype=np.uint16)
    groups = []
    for number in range(34):
        group, place, kind = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [float(v) for v in np.array(first.position) + 4.0 * (number // 2) * first.normal]
        kind.FrameType = ["ORIGINAL", "PRIMARY", "T1", "NONE"]
        kind.ComplexImageComponent = ("PHASE", "MAGNITUDE")[number % 2]
        group.PlanePositionSequence, group.MRImageFrameTypeSequence = [place], [kind]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = groups, len(groups)
    dataset.Rows, dataset.Columns, dataset.PixelData = 8, 8, pixels.tobytes()
    dataset.save_as(tmp_path / "both.dcm")
    study = read_study([tmp_path])
    np.testing.assert_array_equal(study.load("sagittal").voxels, pixels[1::2, ::-1].transpose(2, 1, 0))
    assert [own.reason for own in study.left_out] == ["a phase image, not a magnitude image"]
