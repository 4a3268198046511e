from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from orthokernels.data.prepare import SLAB, prepare, slab_starts
from orthokernels.data.study import read_study
from orthokernels.data.volume import Source, Volume
from orthokernels.errors import InputError
from tests.data.series import noise, write_series

SOURCE = Source("test", "0", "0", "NIfTI", (Path("test.nii"),))


def published(voxels: np.ndarray, size: int = 256) -> np.ndarray:
    """The published preparation, with OpenCV: centre slices, bilinear resize, min-max after the crop, to [-1, 1]."""
    depth = voxels.shape[2]
    crop = voxels[:, :, depth // 2 - 8 : depth // 2 + 8].astype(np.float64)
    resized = np.stack([cv2.resize(crop[:, :, k], (size, size), interpolation=cv2.INTER_LINEAR) for k in range(16)])
    scaled = (resized - resized.min()) / (resized.max() - resized.min() + 1e-8)
    return (scaled * 2 - 1).astype(np.float32)


def volume_of(shape, seed=0, sizes=(0.5, 0.5, 4.0), dtype=np.float32):
    voxels = (np.random.default_rng(seed).normal(size=shape) * 500 + 1000).astype(dtype)
    return Volume(voxels, np.diag([*sizes, 1.0]), SOURCE)


@pytest.mark.parametrize("shape", [(256, 256, 16), (320, 320, 17), (512, 512, 24), (200, 311, 23), (100, 640, 40)])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32])
def test_published_mode_is_the_published_array(shape, dtype):
    volume = volume_of(shape, dtype=dtype)
    # 1e-5 of a range of 2 is ten times float32's rounding of values near 1 after three operations.
    np.testing.assert_allclose(prepare(volume, "published").slices, published(volume.voxels), rtol=0, atol=1e-5)


def test_published_mode_on_a_real_series(real_data):
    volume = read_study([real_data / "knee-mese"]).load("sagittal")
    np.testing.assert_allclose(prepare(volume, "published").slices, published(volume.voxels), rtol=0, atol=1e-5)


def test_published_mode_refuses_what_it_would_cut_across():
    with pytest.raises(InputError, match="slices lie along axis 1"):
        prepare(volume_of((20, 64, 64), sizes=(4.0, 0.5, 0.5)), "published")


@pytest.mark.parametrize("mode", ["published", "full"])
def test_too_few_slices_are_refused(mode):
    with pytest.raises(InputError, match="15 slices; at least 16"):
        prepare(volume_of((32, 32, 15)), mode)


@pytest.mark.parametrize("slices", [*range(16, 60), 199, 200])
def test_slabs_cover_every_slice_and_overlap(slices):
    starts = slab_starts(slices)
    covered = {k for start in starts for k in range(start, start + SLAB)}
    assert covered == set(range(slices))
    assert all(a + SLAB - b >= 4 for a, b in itertools.pairwise(starts))
    # One slab fewer could not do it.
    assert len(starts) == 1 or SLAB + (len(starts) - 2) * (SLAB - 4) < slices


def test_full_mode_uses_one_intensity_range_for_all_slabs():
    volume = volume_of((64, 64, 30))
    prepared = prepare(volume, "full")
    assert prepared.slices.shape == (30, 256, 256)
    assert prepared.slices.min() == -1.0
    assert prepared.slices.max() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_array_equal(prepared.slab(1)[0], prepared.slices[prepared.way_back.starts[1] :][:SLAB])
    assert np.shares_memory(prepared.slab(1), prepared.slices)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_full_mode_does_not_depend_on_how_a_file_stores_its_axes(order, flips):
    usual = Volume(volume_of((40, 44, 20)).voxels, np.diag([-0.5, 0.5, 4.0, 1.0]), SOURCE)  # axial, as displayed
    voxels, affine = usual.voxels.transpose(order), usual.affine[:, [*order, 3]].copy()
    for axis in flips:
        voxels = np.flip(voxels, axis)
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
        affine[:3, axis] *= -1
    stored = Volume(np.ascontiguousarray(voxels), affine, SOURCE)
    np.testing.assert_array_equal(prepare(stored, "full").slices, prepare(usual, "full").slices)


def test_dicom_and_the_nifti_made_of_it_prepare_alike(tmp_path):
    write_series(tmp_path, noise(0), tilt=(5, 8, -6))
    volume = read_study([tmp_path]).load("sagittal")
    as_nifti = Volume(np.ascontiguousarray(volume.voxels.astype(np.float32)), volume.affine, SOURCE)
    for mode in ("published", "full"):
        np.testing.assert_array_equal(prepare(volume, mode).slices, prepare(as_nifti, mode).slices)
