"""The knee's findings: each changes what its name says, where it belongs, and leaves the rest of the knee alone."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from orthokernels.data.phantom.anatomy import draw_knee
from orthokernels.data.phantom.knee_form import Knee, at_share
from orthokernels.data.phantom.knee_lesions import ROWS
from orthokernels.data.phantom.lattice import Grid, fill_lattice, plan_lattice, read_grid
from orthokernels.data.phantom.parts import Part, label_of_part
from orthokernels.data.phantom.sampling import KNEE, Scan
from orthokernels.data.phantom.signal import Contrast, signal_of_parts
from orthokernels.tasks import LABELS, STRUCTURES

KEYS = [label.key for label in LABELS["knee"]]
INDEX = {s.key: s.index for s in STRUCTURES}
SEEDS = range(3)

# The knee's frame on a grid of 2 mm, in mm: x to lateral, y to anterior, z to superior.
STEP = 2.0
LOW, SHAPE = np.array([-56.0, -52.0, -50.0]), (56, 64, 76)

# Boxes that hold all that a finding may change: lowest x, y, z, highest x, y, z. Marrow across the joint is bruised
# too, and the patella pulls tendons and skin along.
NEIGHBOURHOOD: dict[str, list[tuple[float, float, float, float, float, float]]] = {
    "ACL": [(-16, -30, -4, 22, 30, 46), (0, -34, -30, 46, 44, 34)],
    "PCL": [(-22, -40, -26, 18, 24, 40), (-28, 4, -36, 28, 34, 6)],
    "MM": [(-44, -34, -10, 4, 34, 24)],
    "LM": [(-4, -30, -10, 44, 30, 24)],
    "MCL": [(-58, -30, -60, -20, 40, 64), (4, -10, -4, 42, 40, 34)],
    "LCL": [(24, -40, -50, 60, 34, 60)],
    "PD": [(-60, -10, -50, 60, 100, 120)],
    "EFFU": [(-60, -44, -20, 60, 80, 120)],
}


def sampled(
    knee: Knee, low: np.ndarray, shape: tuple[int, int, int], step: float, whole: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Signal without grain or noise, and the part that most of each voxel is."""
    to_joint = np.diag([step, step, step, 1.0])
    to_joint[:3, 3] = low
    scan = Scan(
        to_joint, 1.0, signal_of_parts(Contrast(35.0, 3000.0, 0.13)), np.arange(len(Part), dtype=np.uint8),
        np.zeros((len(Part), 4)), knee.texture,
    )  # fmt: skip
    signal, parts = np.full(shape, np.nan, np.float32), np.zeros(shape, np.uint8)
    lattice = plan_lattice([Grid(to_joint, shape, 1.0)])
    fill_lattice(lattice, knee.packed(), KNEE, whole)
    read_grid(lattice, scan, signal, parts)
    return signal, parts


def drawn(seed: int, key: str | None) -> Knee:
    return draw_knee(np.random.default_rng(seed), {key: True} if key else {})


@cache
def seen(seed: int, key: str | None) -> tuple[np.ndarray, np.ndarray]:
    return sampled(drawn(seed, key), LOW, SHAPE, STEP)


def points() -> np.ndarray:
    return LOW + STEP * np.moveaxis(np.indices(SHAPE), 0, -1)


def labels(parts: np.ndarray) -> np.ndarray:
    return label_of_part()[parts]


def millilitres(parts: np.ndarray, part: Part) -> float:
    return np.count_nonzero(parts == part) * STEP**3 / 1000.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("key", KEYS)
def test_finding_changes_its_neighbourhood_and_nothing_else(key, seed):
    (healthy, _), (injured, _) = seen(seed, None), seen(seed, key)
    changed = np.abs(injured - healthy) > 1e-6
    inside = np.zeros(SHAPE, bool)
    # The knee's size and waves move a point by up to a tenth of its distance from the centre and 1.5 mm.
    for box in NEIGHBOURHOOD[key]:
        low, high = 1.1 * np.array(box[:3]) - 1.5, 1.1 * np.array(box[3:]) + 1.5
        inside |= ((points() > low) & (points() < high)).all(axis=-1)
    assert changed.any()
    assert not (changed & ~inside).any(), points()[changed & ~inside]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("key", [None, *KEYS])
def test_every_structure_is_in_healthy_and_injured_knees(key, seed):
    assert set(np.unique(labels(seen(seed, key)[1]))) == {0, *INDEX.values()}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("key", "structure"), [("ACL", "acl"), ("PCL", "pcl")])
def test_torn_cruciate_is_brighter_along_its_course(key, structure, seed):
    """Torn fibres have twice an intact ACL's signal and three times a PCL's; a partial tear spares about half."""
    healthy, injured = seen(seed, None), seen(seed, key)
    course = labels(healthy[1]) == INDEX[structure]
    assert injured[0][course].mean() > 1.25 * healthy[0][course].mean()
    assert np.count_nonzero(injured[1] == Part[f"TORN_{key}"]) > 20


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("key", "side"), [("MM", "MEDIAL"), ("LM", "LATERAL")])
def test_meniscal_tear_is_bright_and_reaches_a_surface(key, side, seed):
    """On a grid of 0.7 mm a torn voxel has a neighbour outside the meniscus, in 6 directions."""
    low = np.array([-42.0 if key == "MM" else -2.0, -30.0, -8.0])
    healthy, injured = (sampled(drawn(seed, k), low, (62, 86, 36), 0.7) for k in (None, key))
    torn = injured[1] == Part[f"TORN_{side}_MENISCUS"]
    meniscus = labels(injured[1]) == INDEX[f"{side.lower()}_meniscus"]
    assert np.count_nonzero(torn) * 0.7**3 > 8.0  # mm3: at least 0.8 mm wide, 3 mm high and 4 mm long
    assert injured[0][torn].mean() > 3.0 * healthy[0][labels(healthy[1]) == INDEX[f"{side.lower()}_meniscus"]].mean()
    assert (torn & beside(~meniscus)).any()


@pytest.mark.parametrize("seed", range(8))
def test_signal_within_a_healthy_meniscus_reaches_no_surface(seed):
    knee = drawn(seed, None)
    for side, x in (("MEDIAL", -42.0), ("LATERAL", -2.0)):
        _, parts = sampled(knee, np.array([x, -30.0, -8.0]), (62, 86, 36), 0.7)
        signal = parts == Part[f"DEGENERATE_{side}_MENISCUS"]
        outside = labels(parts) != INDEX[f"{side.lower()}_meniscus"]
        # A rim of 0.8 mm closes it off: a voxel beside one outside is mostly signal in a rare corner only.
        assert np.count_nonzero(signal & beside(outside)) <= 0.05 * np.count_nonzero(signal)


def beside(mask: np.ndarray) -> np.ndarray:
    """Voxels that share a face with one in ``mask``."""
    found = np.zeros_like(mask)
    for axis in range(3):
        for shift in (-1, 1):
            found |= np.roll(mask, shift, axis)
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("key", "field"), [("MCL", "mcl"), ("LCL", "lcl")])
def test_torn_collateral_is_bright_in_and_around_it(key, field, seed):
    """Within 6 mm of the course of the healthy ligament the signal rises by a quarter or more."""
    healthy, injured = seen(seed, None), seen(seed, key)
    knee = drawn(seed, None)
    course = np.array(
        [at_share(getattr(knee, field), s)[:3] for s in np.linspace(0.0, 0.6 if key == "MCL" else 1.0, 30)]
    )
    course *= knee.size
    near = np.min(np.linalg.norm(points()[..., None, :] - course, axis=-1), axis=-1) < 6.0
    assert injured[0][near].mean() > 1.25 * healthy[0][near].mean()
    assert np.count_nonzero(injured[1] == Part.TORN_FIBRES) > 8


@pytest.mark.parametrize("seed", SEEDS)
def test_dislocated_patella_lies_laterally(seed):
    """It is shifted by 6 mm at least, times the least size of a knee, 0.92."""
    where = [points()[labels(seen(seed, key)[1]) == INDEX["patella"]].mean(axis=0) for key in (None, "PD")]
    assert (where[1] - where[0])[0] > 5.0
    assert np.abs(where[1] - where[0])[2] < 2.0


@pytest.mark.parametrize("seed", range(5))
def test_effusion_is_more_fluid_than_a_healthy_knee_has(seed):
    healthy = max(millilitres(seen(s, None)[1], Part.FLUID) for s in range(5))
    assert millilitres(seen(seed, "EFFU")[1], Part.FLUID) > max(healthy + 2.0, 1.6 * healthy)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("key", [k for k in KEYS if k != "EFFU"])
def test_other_findings_bring_no_effusion(key, seed):
    more = millilitres(seen(seed, key)[1], Part.FLUID) - millilitres(seen(seed, None)[1], Part.FLUID)
    assert more < 2.5


def test_same_seed_gives_the_same_injury() -> None:
    for key in KEYS:
        np.testing.assert_array_equal(drawn(5, key).packed(), drawn(5, key).packed())


def test_findings_do_not_depend_on_each_other() -> None:
    """A torn ACL is the same with a torn meniscus beside it."""
    alone, both = drawn(3, "ACL"), draw_knee(np.random.default_rng(3), {"ACL": True, "MM": True})
    np.testing.assert_array_equal(alone.acl, both.acl)
    rows = {tuple(row) for row in both.lesions}
    assert all(tuple(row) in rows for row in alone.lesions)


def test_table_of_lesions_has_room_for_all_findings_at_once() -> None:
    everything = dict.fromkeys(KEYS, True)
    counts = [draw_knee(np.random.default_rng(seed), everything).lesion_count[0] for seed in range(60)]
    assert max(counts) < 0.9 * ROWS


def test_filling_blocks_changes_no_part_of_an_injured_knee() -> None:
    knee = draw_knee(np.random.default_rng(1), dict.fromkeys(KEYS, True))
    filled, asked = (sampled(knee, LOW, SHAPE, STEP, whole)[1] for whole in (False, True))
    # A voxel's commonest part may change with a point that a sharp edge just cuts off; five of 272,384 do.
    assert np.mean(filled != asked) < 1e-4


def test_unknown_finding_is_named() -> None:
    with pytest.raises(KeyError, match="OLT"):
        drawn(0, "OLT")
