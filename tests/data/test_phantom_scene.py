"""Scenes of solids: what is left out of a question changes no answer, and a clearance is clear."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from orthokernels.data.phantom import scene
from orthokernels.data.phantom.ankle import draw_ankle
from orthokernels.data.phantom.lesions import length_of, stretch, swollen
from orthokernels.data.phantom.parts import Part
from orthokernels.data.phantom.sampling import MARGIN
from orthokernels.data.phantom.shoulder import draw_shoulder
from orthokernels.data.phantom.solids import Blueprint, Scene, block, column, cord, ellipsoid, near, strap, turn_of

NOTHING_KNOWN = (-1, 0.0, -1, 0.0, -1, 0.0, -1, 0.0)


@njit
def parts_of(points, packed, active):
    parts, clearances = np.empty(len(points), np.int64), np.empty(len(points))
    for n in range(len(points)):
        parts[n], clearances[n] = scene.part_at(points[n, 0], points[n, 1], points[n, 2], packed, active)
    return parts, clearances


@njit
def parts_where_pruned(centre, radius, points, packed, active):
    scene.prune(centre[0], centre[1], centre[2], radius, packed, active)
    return parts_of(points, packed, active)


@njit
def distances(points, packed, group, limit, known):
    out = np.empty(len(points))
    for n in range(len(points)):
        out[n] = scene.group_at(points[n, 0], points[n, 1], points[n, 2], packed, group, limit, known)
    return out


@pytest.fixture(scope="module", params=[(draw_ankle, 3), (draw_shoulder, 5)], ids=["ankle", "shoulder"])
def joint(request) -> Scene:
    draw, seed = request.param
    return draw(np.random.default_rng(seed), {"ATFL": True, "OLT": True} if draw is draw_ankle else {"GHJ": True})


def every(joint: Scene) -> np.ndarray:
    return np.ones(joint.components, bool)


def in_ball(rng: np.random.Generator, centre: np.ndarray, radius: float, count: int) -> np.ndarray:
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return centre + radius * directions * rng.random((count, 1)) ** (1 / 3)


@pytest.mark.parametrize("radius", [2.5, 5.0, 12.0])
def test_pruning_changes_no_part(joint, radius):
    rng = np.random.default_rng(1)
    left_out = 0
    for centre in rng.uniform(-60.0, 60.0, (150, 3)):
        points = in_ball(rng, centre, radius, 60)
        active = every(joint)
        pruned, _ = parts_where_pruned(centre, radius, points, joint.packed, active)
        asked, _ = parts_of(points, joint.packed, every(joint))
        np.testing.assert_array_equal(pruned, asked)
        left_out += np.count_nonzero(~active)
    assert left_out > 0.7 * 150 * joint.components


def test_pruning_within_a_pruned_ball_changes_no_part(joint):
    rng = np.random.default_rng(2)
    for centre in rng.uniform(-50.0, 50.0, (100, 3)):
        active = every(joint)
        parts_where_pruned(centre, 12.0, centre[None], joint.packed, active)
        inner = in_ball(rng, centre, 9.0, 1)[0]
        points = in_ball(rng, inner, 3.0, 40)
        pruned, _ = parts_where_pruned(inner, 3.0, points, joint.packed, active)
        np.testing.assert_array_equal(pruned, parts_of(points, joint.packed, every(joint))[0])


def test_everything_within_a_clearance_is_one_part(joint):
    """Waves and flares bend distances, so the sampler divides clearances by its margin; so does this test."""
    rng = np.random.default_rng(3)
    points = rng.uniform(-60.0, 60.0, (400, 3))
    parts, clearances = parts_of(points, joint.packed, every(joint))
    assert (clearances >= 0.0).all()
    wrong = 0
    for point, part, clear in zip(points, parts, clearances, strict=True):
        around, _ = parts_of(in_ball(rng, point, min(clear / MARGIN, 20.0), 100), joint.packed, every(joint))
        wrong += np.count_nonzero(around != part)
    # Ellipsoids' first-order distances overstate near the tips of slim ones: one point in a thousand, no more.
    assert wrong < 0.001 * 400 * 100


def test_a_limit_moves_no_surface_and_shortens_no_distance_below_it(joint):
    """A box can tell more than the first-order distance to a slim ellipsoid: outside, the answer may be longer."""
    rng = np.random.default_rng(4)
    points = rng.uniform(-50.0, 50.0, (1000, 3))
    for n in range(len(joint.names)):
        group = scene.HEAD + scene.GROUP_NUMBERS * n
        if joint.packed[group] in (scene.BODY, scene.ENVELOPE):
            continue  # always asked in full
        exact = distances(points, joint.packed, group, 1e9, NOTHING_KNOWN)
        for limit in (0.5, 4.0):
            limited = distances(points, joint.packed, group, limit, NOTHING_KNOWN)
            inside = exact < 0.0
            np.testing.assert_allclose(limited[inside], exact[inside], atol=1e-9)
            assert (limited[~inside] >= np.minimum(exact[~inside], limit) - 1e-9).all()


def test_boxes_hold_their_groups(joint):
    rng = np.random.default_rng(5)
    points = rng.uniform(-70.0, 70.0, (4000, 3))
    for n, name in enumerate(joint.names):
        group = scene.HEAD + scene.GROUP_NUMBERS * n
        inside = distances(points, joint.packed, group, 1e9, NOTHING_KNOWN) < 0.0
        low, high = joint.packed[group + 6 : group + 9], joint.packed[group + 9 : group + 12]
        assert ((points[inside] >= low) & (points[inside] <= high)).all(), name


def plain(**groups) -> Scene:
    """A scene of 200 mm of flesh around some solids, without waves and at its own size."""
    b = Blueprint()
    b.body(ellipsoid((0, 0, 0), (100, 100, 100)))
    for name, rows in groups.items():
        b.add(name, Part.TENDON, *rows)
    packed = b.packed(np.ones(3), np.zeros((6, 5)))
    return Scene(packed, int(packed[scene.FLAGS]), np.zeros((32, 32, 32), np.float32), tuple(b.groups))


@pytest.mark.parametrize(
    ("rows", "inside", "outside"),
    [
        ((ellipsoid((5, 0, 0), (10, 2, 2), z=90.0),), (5, 9, 0), (14, 0, 0)),
        ((block((0, 0, 5), (3, 2, 1)),), (2.9, 1.9, 5.9), (0, 0, 3.9)),
        ((cord((0, 0, 0, 1), (10, 0, 0, 3)),), (10, 0, 2.9), (0, 0, 1.2)),
        ((strap((0, 0, 0, 5, 1), (0, 0, 10, 5, 1), across=(1, 0, 0)),), (3.9, 0, 5), (0, 1.1, 5)),
        ((column((-10, 0, 0, 4, 2), (10, 0, 0, 4, 2), square=0.0, turn=turn_of(x=-90.0).T),), (3.9, 9, 0), (0, 0, 2.2)),
        ((ellipsoid((0, 0, 0), (9, 9, 9)), block((5, 0, 0), (5, 9, 9)).removed(0.1)), (-4, 0, 0), (4, 0, 0)),
        ((ellipsoid((0, 0, 0), (9, 9, 9)), block((5, 0, 0), (5, 9, 9)).limiting(0.1)), (4, 0, 0), (-4, 0, 0)),
        ((ellipsoid((0, 0, 0), (4, 4, 4)).grown(2.0),), (5.9, 0, 0), (6.2, 0, 0)),
    ],
    ids=["ellipsoid", "block", "cord", "strap", "column", "removed", "limiting", "grown"],
)
def test_solids_lie_where_their_numbers_say(rows, inside, outside):
    drawn = plain(solid=rows)
    parts, _ = parts_of(np.array([inside, outside], float), drawn.packed, every(drawn))
    assert parts[0] == Part.TENDON
    assert parts[1] != Part.TENDON


def test_first_group_wins_and_a_shell_follows_its_core():
    drawn = plain(core=[ellipsoid((0, 0, 0), (10, 10, 10))])
    b = Blueprint()
    b.body(ellipsoid((0, 0, 0), (100, 100, 100)))
    b.bone("bone", ellipsoid((0, 0, 0), (10, 10, 10)), cortex=1.0)
    b.add("cartilage", Part.CARTILAGE, near("bone", 2.0), block((0, 0, 20), (40, 40, 20)).limiting(0.1))
    packed = b.packed(np.ones(3), np.zeros((6, 5)))
    points = np.array([[0, 0, 8.5], [0, 0, 9.5], [0, 0, 11.5], [0, 0, -11.5], [0, 0, 12.5]])
    parts, _ = parts_of(points, packed, np.ones(int(packed[scene.FLAGS]), bool))
    assert list(parts[:3]) == [Part.BONE_MARROW, Part.BONE_CORTEX, Part.CARTILAGE]
    assert Part.CARTILAGE not in parts[3:]
    assert drawn.names == ("body", "core")


def test_group_that_is_not_there_is_named():
    b = Blueprint()
    with pytest.raises(KeyError, match="shin"):
        b.add("oedema", Part.FLUID, ellipsoid((0, 0, 0), (1, 1, 1)), before="shin")


def test_stretches_of_a_band_keep_its_course():
    band = strap((0, 0, 0, 4, 1), (0, 0, 10, 4, 1), (0, 0, 30, 4, 3), across=(1, 0, 0))
    assert length_of(band) == pytest.approx(30.0)
    piece = stretch(band, 0.25, 0.75)
    np.testing.assert_allclose(piece.numbers[[0, -1], 2], [7.5, 22.5])
    np.testing.assert_allclose(swollen(piece, 2.0).numbers[:, 4], 2.0 * piece.numbers[:, 4])
