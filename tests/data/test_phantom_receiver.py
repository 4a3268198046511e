"""The phantom's receiver: Rician noise, the blur of a finite k-space, slight motion, and coils."""

from __future__ import annotations

import numpy as np
import pytest

from orthokernels.data.phantom.receiver import (
    DRIFT_MM,
    GHOST,
    UNITS_PER_SIGNAL,
    draw_motion,
    receive,
    sensitivity,
    transfer,
)

MATRIX = 96


def disc(radius: float = 30.0, slices: int = 2) -> np.ndarray:
    """A bright disc in air, (i, j, k) float32, its border over one pixel."""
    i, j = np.indices((MATRIX, MATRIX)) - (MATRIX - 1) / 2.0
    flat = np.clip(radius - np.hypot(i, j) + 0.5, 0.0, 1.0).astype(np.float32)
    return np.repeat(flat[:, :, None], slices, axis=2)


def centroid(picture: np.ndarray) -> np.ndarray:
    i, j = np.indices(picture.shape)
    return np.array([(i * picture).sum(), (j * picture).sum()]) / picture.sum()


def test_noise_in_air_is_rician() -> None:
    noise = 0.02
    air = receive(np.zeros((MATRIX, MATRIX, 8), np.float32), noise, np.random.default_rng(0)) / UNITS_PER_SIGNAL
    # The window takes its share of white noise; what is left of each part makes a Rayleigh distribution's mean and
    # spread. Correlated over about two pixels, 74000 voxels count as some 18000: a mean to within 0.4 % of itself.
    left = noise * np.sqrt((np.abs(transfer((MATRIX, MATRIX))) ** 2).mean())
    assert air.mean() == pytest.approx(left * np.sqrt(np.pi / 2.0), rel=0.02)
    assert air.std() == pytest.approx(left * np.sqrt(2.0 - np.pi / 2.0), rel=0.03)


def test_noise_does_not_repeat_from_slice_to_slice() -> None:
    air = receive(np.zeros((MATRIX, MATRIX, 2), np.float32), 0.02, np.random.default_rng(0)).astype(float)
    first, second = (air[:, :, k].ravel() - air.mean() for k in (0, 1))
    # 9216 pixels, correlated over about two each way: chance correlation is 0.02, and three times that is allowed.
    assert abs((first @ second) / (np.linalg.norm(first) * np.linalg.norm(second))) < 0.06


def test_still_and_noiseless_object_keeps_its_level_and_place() -> None:
    picture = receive(disc(), 0.0, np.random.default_rng(0))[:, :, 0] / UNITS_PER_SIGNAL
    # Gibbs ringing of the tapered window decays to under 1 % some pixels from the border.
    np.testing.assert_allclose(picture[38:58, 38:58], 1.0, atol=0.01)
    np.testing.assert_allclose(centroid(picture), (MATRIX - 1) / 2.0, atol=0.01)


def test_receiver_does_not_change_what_it_was_given() -> None:
    signal = disc()
    kept = signal.copy()
    receive(signal, 0.02, np.random.default_rng(0))
    np.testing.assert_array_equal(signal, kept)


@pytest.mark.parametrize("seed", range(8))
def test_motion_leaves_energy_and_place_as_they_were(seed: int) -> None:
    rng = np.random.default_rng(seed)
    motion = draw_motion(MATRIX, 1.6, 8, rng)
    still = receive(disc(), 0.0, np.random.default_rng(0))[:, :, 0].astype(float)
    moved = receive(disc(), 0.0, np.random.default_rng(0), motion)[:, :, 0].astype(float)
    # Phase ramps keep every line's energy; gains of 1 +- 2 x 2 % change the sum of squares by their mean, about 4 % at
    # most where the line at the centre of k-space holds nearly all of it.
    assert (moved**2).sum() == pytest.approx((still**2).sum(), rel=2.0 * 2.0 * GHOST[1] + 0.01)
    # The shift of the central lines, which place the object, is at most some times the drift's root mean square.
    assert np.linalg.norm(centroid(moved) - centroid(still)) * 1.6 < 4.0 * DRIFT_MM[1]
    # Motion is slight: it leaves artefacts, not another picture.
    assert 0.0 < np.abs(moved - still).mean() / still.mean() < 0.08


def test_drift_is_some_tenths_of_a_millimetre() -> None:
    for seed in range(20):
        motion = draw_motion(128, 0.5, 8, np.random.default_rng(seed))
        assert np.sqrt((motion.shift**2).mean()) * 0.5 <= 1.01 * DRIFT_MM[1]
        np.testing.assert_allclose(motion.shift.mean(axis=1), 0.0, atol=1e-12)


def test_some_series_have_a_ghost_and_most_have_none() -> None:
    ghosts = [draw_motion(64, 1.0, 8, np.random.default_rng(seed)).gain.std() > 0.0 for seed in range(200)]
    assert 0.15 < np.mean(ghosts) < 0.35  # 0.25, to within three standard errors of 200 draws


@pytest.mark.parametrize("seed", range(4))
def test_coil_is_strongest_near_the_joint_and_weaker_at_the_ends_of_the_leg(seed: int) -> None:
    to_joint = np.diag([1.2, 1.2, 4.0, 1.0])
    to_joint[:3, 3] = -75.0, -75.0, -76.0
    coil = sensitivity(to_joint, (126, 126, 39), np.random.default_rng(seed))
    assert coil.dtype == np.float32
    assert (coil > 0.0).all()
    middle = coil[63, 63]
    assert middle[19] == pytest.approx(1.0, abs=0.03)
    assert 0.4 < middle[0] < 0.9
    assert 0.4 < middle[-1] < 0.9
