"""The drawn ankle and shoulder: what lies where, and what each finding changes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from numba import njit

from orthokernels.data.phantom import scene
from orthokernels.data.phantom.ankle import draw_ankle
from orthokernels.data.phantom.parts import Part, label_of_part
from orthokernels.data.phantom.shoulder import draw_shoulder
from orthokernels.data.phantom.signal import Contrast, signal_of_parts
from orthokernels.data.phantom.solids import Scene
from orthokernels.tasks import LABELS

DRAW = {"ankle": draw_ankle, "shoulder": draw_shoulder}
SIGNAL = signal_of_parts(Contrast(35.0, 3000.0, fat_left=0.13))
STEP = 2.0  # mm between the points that parts are counted at
SEEDS = (1, 2, 3)

# Where a finding may change the joint: lowest and highest x, y and z in mm, with room for size, pose and waves.
REGIONS = {
    "ATFL": ((-2, -22, -42), (48, 40, 22)),
    "CFL": ((-2, -45, -68), (44, 22, 14)),
    "ATR": ((-24, -78, -56), (28, -18, 70)),
    "OLT": ((-26, -26, -44), (26, 26, 12)),
    "SSP": ((-32, -28, -6), (40, 30, 46)),
    "ISP": ((-34, -48, -22), (42, 22, 40)),
    "SSC": ((-40, -6, -28), (36, 48, 30)),
    "LHBT injury": ((-34, -4, -130), (32, 42, 40)),
    "AC": ((-36, -20, 18), (24, 28, 66)),
    "GHJ": ((-60, -42, -54), (30, 44, 40)),
    "LHBT effusion": ((-2, 4, -68), (32, 42, 22)),
    "SASD": ((-32, -38, -30), (50, 42, 52)),
}
KEYS = [(joint, label.key) for joint in DRAW for label in LABELS[joint]]


@njit
def fill(low, step, packed, active, parts):
    ni, nj, nk = parts.shape
    for i in range(ni):
        for j in range(nj):
            for k in range(nk):
                parts[i, j, k], _ = scene.part_at(
                    low[0] + step * i, low[1] + step * j, low[2] + step * k, packed, active
                )


def drawn(joint: str, seed: int, *findings: str) -> Scene:
    return DRAW[joint](np.random.default_rng(seed), dict.fromkeys(findings, True))


@lru_cache(maxsize=64)
def parts(joint: str, seed: int, *findings: str) -> np.ndarray:
    """Parts at points 2 mm apart from -66 to 66 mm along each axis."""
    made = drawn(joint, seed, *findings)
    out = np.empty((67, 67, 67), np.int64)
    fill(np.full(3, -66.0), STEP, made.packed, np.ones(made.components, bool), out)
    return out


def volume_ml(found: np.ndarray, *which: Part) -> float:
    return float(np.isin(found, which).sum()) * STEP**3 / 1000.0


@pytest.mark.parametrize(("joint", "key"), KEYS)
def test_finding_changes_the_joint_where_it_belongs_and_nowhere_else(joint, key):
    low, high = (np.array(corner, float) for corner in REGIONS[key])
    for seed in SEEDS:
        changed = np.argwhere(parts(joint, seed) != parts(joint, seed, key)) * STEP - 66.0
        assert len(changed) >= 8, f"seed {seed}: {len(changed)} points of 8 cubic millimetres"
        outside = ((changed < low) | (changed > high)).any(axis=1)
        assert not outside.any(), changed[outside][:3]


@pytest.mark.parametrize(("joint", "key"), KEYS)
def test_finding_brightens_more_than_it_darkens(joint, key):
    """All twelve are swelling, fluid or oedema on fluid-sensitive series, though bone and tendon may move too."""
    brighter = darker = 0.0
    for seed in SEEDS:
        change = SIGNAL[parts(joint, seed, key)] - SIGNAL[parts(joint, seed)]
        brighter += float(change[change > 0.0].sum())
        darker -= float(change[change < 0.0].sum())
    assert brighter > 1.5 * darker


@pytest.mark.parametrize(("joint", "key"), KEYS)
def test_finding_differs_from_case_to_case(joint, key):
    counts = [np.count_nonzero(parts(joint, seed) != parts(joint, seed, key)) for seed in SEEDS]
    assert len(set(counts)) == len(SEEDS)


@pytest.mark.parametrize("joint", DRAW)
def test_findings_do_not_depend_on_each_other(joint):
    """Where only one of two findings reaches, it looks as it does alone."""
    first, second = [label.key for label in LABELS[joint]][:2]
    both, alone, none = parts(joint, 1, first, second), parts(joint, 1, first), parts(joint, 1)
    other = parts(joint, 1, second)
    untouched = other == none
    assert np.mean(both[untouched] == alone[untouched]) > 0.9999


@pytest.mark.parametrize("joint", DRAW)
def test_same_seed_gives_the_same_joint_and_another_seed_another(joint):
    key = LABELS[joint][0].key
    first, again, other = drawn(joint, 7, key), drawn(joint, 7, key), drawn(joint, 8, key)
    np.testing.assert_array_equal(first.packed, again.packed)
    np.testing.assert_array_equal(first.texture, again.texture)
    assert first.names == again.names
    assert first.packed.shape != other.packed.shape or not np.array_equal(first.packed, other.packed)


@pytest.mark.parametrize("joint", DRAW)
def test_every_combination_of_findings_can_be_drawn(joint):
    keys = [label.key for label in LABELS[joint]]
    rng = np.random.default_rng(0)
    for seed in range(25):
        chosen = [key for key in keys if rng.random() < 0.5]
        made = drawn(joint, seed, *chosen)
        assert np.isfinite(made.packed).all()
    assert drawn(joint, 0, *keys).components > drawn(joint, 0).components


@pytest.mark.parametrize("joint", DRAW)
def test_unknown_finding_is_named(joint):
    with pytest.raises(KeyError, match="ACL"):
        DRAW[joint](np.random.default_rng(0), {"ACL": True})


@pytest.mark.parametrize("joint", DRAW)
def test_no_part_of_these_joints_is_labelled(joint):
    assert not label_of_part()[parts(joint, 1)].any()


# Volumes in ml within the cube of 132 mm, wide enough for sizes that vary by a fifth.
@pytest.mark.parametrize(
    ("joint", "which", "low", "high"),
    [
        ("ankle", (Part.BONE_MARROW, Part.BONE_CORTEX), 130.0, 330.0),
        ("ankle", (Part.CARTILAGE,), 4.0, 16.0),
        ("ankle", (Part.TENDON,), 8.0, 40.0),
        ("ankle", (Part.LIGAMENT,), 1.5, 10.0),
        ("ankle", (Part.FLUID,), 0.2, 6.0),
        ("ankle", (Part.MUSCLE,), 40.0, 260.0),
        ("shoulder", (Part.BONE_MARROW, Part.BONE_CORTEX), 110.0, 280.0),
        ("shoulder", (Part.CARTILAGE,), 2.0, 9.0),
        ("shoulder", (Part.LABRUM,), 0.6, 4.0),
        ("shoulder", (Part.TENDON,), 8.0, 40.0),
        ("shoulder", (Part.FLUID,), 0.2, 6.0),
        ("shoulder", (Part.MUSCLE,), 400.0, 1300.0),
    ],
)  # fmt: skip
def test_volumes_are_those_of_an_adult_joint(joint, which, low, high):
    for seed in SEEDS:
        assert low < volume_ml(parts(joint, seed), *which) < high


def test_bones_of_the_ankle_stand_on_each_other():
    for seed in SEEDS:
        found = parts("ankle", seed)
        through = found[33, 33]  # up the middle of the joint
        bone = np.isin(through, (Part.BONE_MARROW, Part.BONE_CORTEX, Part.FAINT_MARROW_OEDEMA))
        bones = np.count_nonzero(np.diff(bone.astype(int)) == 1)
        assert bones >= 3  # calcaneus, talus, tibia
        joint_line = through[27:38]
        assert Part.CARTILAGE in joint_line
        assert found[33, 33, 0] != Part.AIR


def test_shoulder_is_in_order_from_the_joint_outwards():
    """Up from the middle of the head: marrow, cortex, the cuff, the deltoid's or acromion's side, and out to air."""
    for seed in SEEDS:
        through = list(parts("shoulder", seed)[33, 33, 33:])
        assert through[0] == Part.BONE_MARROW
        assert Part.TENDON in through
        assert through.index(Part.TENDON) < through.index(Part.SUBCUTANEOUS_FAT) < through.index(Part.AIR)
