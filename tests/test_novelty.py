"""Out-of-distribution scores on vectors whose distribution is known."""

from __future__ import annotations

import numpy as np
import pytest
from orthokernels.edge.checks import check_novelty

from orthokernels.novelty import Novelty, fit
from orthokernels.pipeline import StudyRun

WIDTH, INNER = 64, 6


@pytest.fixture(scope="module")
def directions():
    return np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0]


def draw(directions, count: int, seed: int) -> np.ndarray:
    """Vectors that vary in 6 of 64 directions, with a little noise in all."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, INNER)) @ directions[:INNER] + 0.05 * rng.normal(size=(count, WIDTH))


def test_scores_of_new_vectors_of_the_same_kind_are_percentiles(directions):
    novelty = fit(draw(directions, 400, 1))
    scores = np.array([novelty.score(vector) for vector in draw(directions, 400, 2)])
    for percent in (50, 90, 95):
        # 200 vectors calibrate and 400 try: two binomial deviations of each, in percent points.
        deviation = 100 * np.sqrt(percent / 100 * (1 - percent / 100) * (1 / 200 + 1 / 400))
        assert abs((scores < percent).mean() * 100 - percent) < 2 * deviation


def test_far_vectors_score_100_in_known_and_in_unseen_directions(directions):
    novelty = fit(draw(directions, 200, 1))
    assert novelty.score(10 * directions[0]) == 100.0
    assert novelty.score(10 * directions[WIDTH - 1]) == 100.0


def test_score_grows_with_distance(directions):
    novelty = fit(draw(directions, 200, 1))
    distances = [novelty.distance(scale * directions[1]) for scale in (0, 2, 4, 8)]
    assert distances == sorted(distances)


def test_stored_arrays_give_the_same_scores(directions, tmp_path):
    novelty = fit(draw(directions, 80, 1))
    np.savez(tmp_path / "novelty.npz", **novelty.arrays())
    with np.load(tmp_path / "novelty.npz", allow_pickle=False) as stored:
        again = Novelty.of(dict(stored))
    for vector in draw(directions, 10, 3):
        assert again.score(vector) == novelty.score(vector)


def test_plane_unlike_the_known_studies_is_doubted(directions):
    known = {plane: fit(draw(directions, 200, 1)) for plane in ("sagittal", "axial")}
    usual, far = draw(directions, 1, 2)[0], 10 * directions[0]
    vectors = {"sagittal": usual, "coronal": far, "axial": far}  # nothing is known of coronal series
    checks = check_novelty(StudyRun(None, {}, {}, vectors=vectors), known)
    assert [(check.plane, check.verdict) for check in checks] == [("sagittal", "passed"), ("axial", "doubtful")]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((39, 4)), "at least 40"),
        (np.ones((40, 4)), "alike"),
        (np.full((40, 4), np.nan), "not finite"),
    ],
)
def test_too_little_to_know_is_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        fit(vectors)


def test_arrays_that_do_not_fit_are_refused(directions):
    arrays = fit(draw(directions, 80, 1)).arrays()
    for name, wrong in (("mean", np.zeros(3)), ("known", arrays["known"][:, :1]), ("distances", np.array([np.nan]))):
        with pytest.raises(ValueError, match="do not fit together"):
            Novelty.of({**arrays, name: wrong})
    with pytest.raises(ValueError, match="no array 'known'"):
        Novelty.of({name: array for name, array in arrays.items() if name != "known"})
