from __future__ import annotations

import numpy as np
import pytest

from orthokernels.data.geometry import plane_of, slice_axis, spacing, turn_to_view
from tests.data.series import rotation

# Directions of (i, j, k) in RAS, as columns, of the usual views.
VIEWS = {
    "sagittal": np.array([[0, -1, 0], [0, 0, 1], [1, 0, 0]]).T,
    "coronal": np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]).T,
    "axial": np.array([[-1, 0, 0], [0, 1, 0], [0, 0, 1]]).T,
}


def affine_of(plane, tilt=(0, 0, 0), sizes=(0.5, 0.6, 4.0)):
    affine = np.eye(4)
    affine[:3, :3] = rotation(*tilt) @ VIEWS[plane] * sizes
    affine[:3, 3] = (12.0, -30.0, 7.0)
    return affine


@pytest.mark.parametrize("plane", VIEWS)
@pytest.mark.parametrize("tilt", [(0, 0, 0), (20, -15, 10), (-25, 20, -20)])
def test_plane_follows_the_normal_and_obliquity_is_its_angle(plane, tilt):
    found, obliquity = plane_of(affine_of(plane, tilt))
    normal, tilted = VIEWS[plane][:, 2], (rotation(*tilt) @ VIEWS[plane])[:, 2]
    assert found == plane
    assert obliquity == pytest.approx(np.degrees(np.arccos(normal @ tilted)), abs=1e-6)


@pytest.mark.parametrize("decimals", [2, 3, 6, 8])
@pytest.mark.parametrize("turned", [(0, 0, 45), (0, 45, 0), (0.5, 45, 0.5)])
def test_a_stack_half_way_between_two_planes_has_one_however_its_header_is_rounded(decimals, turned):
    affine = affine_of("sagittal", turned, (1, 1, 1))
    affine[:3, :3] = np.round(affine[:3, :3], decimals)
    plane, obliquity = plane_of(affine)
    assert plane in ("sagittal", "coronal", "axial")
    assert obliquity == pytest.approx(45.0, abs=0.5)  # two decimals are up to half a degree


def test_a_stack_half_way_between_three_planes_has_none():
    # The normal along the cube's diagonal is 54.7 degrees from each axis.
    affine = np.eye(4)
    affine[:3, 2] = np.array([1, 1, 1]) * 3 / np.sqrt(3)
    affine[:3, 0] = np.array([1, -1, 0]) / np.sqrt(2)
    affine[:3, 1] = np.array([1, 1, -2]) / np.sqrt(6)
    plane, obliquity = plane_of(affine)
    assert plane is None
    assert obliquity == pytest.approx(54.7356, abs=1e-3)


@pytest.mark.parametrize("plane", VIEWS)
def test_the_usual_view_needs_no_turn(plane):
    assert turn_to_view(affine_of(plane, (8, -6, 5)), plane).is_identity


@pytest.mark.parametrize("seed", range(40))
def test_turn_brings_any_stored_order_to_the_usual_view_and_back(seed):
    rng = np.random.default_rng(seed)
    plane = list(VIEWS)[seed % 3]
    usual = affine_of(plane, rng.uniform(-15, 15, 3))
    shape = (5, 6, 7)
    voxels = rng.normal(size=shape)
    # Store the same volume with its axes permuted and flipped at random.
    axes, flips = rng.permutation(3), rng.random(3) < 0.5
    stored, affine = voxels.transpose(axes), usual[:, [*axes, 3]].copy()
    for axis in np.flatnonzero(flips):
        stored = np.flip(stored, axis)
        affine[:3, 3] += affine[:3, axis] * (stored.shape[axis] - 1)
        affine[:3, axis] *= -1
    assert slice_axis(affine) == list(axes).index(2)
    assert plane_of(affine)[0] == plane

    turn = turn_to_view(affine, plane)
    np.testing.assert_array_equal(turn.apply(stored), voxels)
    np.testing.assert_allclose(turn.apply_affine(affine, stored.shape), usual, atol=1e-9)
    np.testing.assert_array_equal(turn.undo(turn.apply(stored)), stored)
    np.testing.assert_allclose(spacing(affine), np.array(spacing(usual))[axes])
