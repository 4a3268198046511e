"""The digital knee's sampler and signal: skipping ahead changes nothing, and tissues rank as they do in a clinic."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from orthokernels.data.phantom import make_study
from orthokernels.data.phantom.anatomy import draw_knee
from orthokernels.data.phantom.lattice import INNER, Grid, ask_grid, fill_lattice, plan_lattice, read_grid
from orthokernels.data.phantom.parts import Part, label_of_part
from orthokernels.data.phantom.sampling import KNEE, SCENE, Scan
from orthokernels.data.phantom.signal import Contrast, signal_of_parts
from orthokernels.data.phantom.study import JOINTS, Side, lattice_of, plan_series, sample
from orthokernels.tasks import STRUCTURES

INDEX = {s.key: s.index for s in STRUCTURES}


@pytest.mark.parametrize("joint", ["knee", "ankle", "shoulder"])
def test_halving_a_lattices_blocks_finds_what_asking_at_every_point_finds(joint: str) -> None:
    anatomy = JOINTS[joint].draw(np.random.default_rng(4), {})
    assert anatomy.kind == (KNEE if joint == "knee" else SCENE)
    to_joint = np.diag([2.4, 2.4, 3.6, 1.0])
    to_joint[:3, 3] = -36.0, -36.0, -18.0
    planned = plan_lattice([Grid(to_joint, (32, 32, 12), 0.9)])
    found = {}
    for whole in (True, False):
        lattice = planned._replace(parts=np.full(planned.parts.shape, 255, np.uint8))
        fill_lattice(lattice, anatomy.packed, anatomy.kind, whole)
        found[whole] = np.where(lattice.parts == 255, 255, lattice.parts & (INNER - 1))
    asked = found[True] < 255
    assert asked.any()
    assert (found[False][asked] < 255).all()  # it fills whole blocks, and with them points that nobody asks about
    # Where the last blocks are filled on the narrower margin, a point that a sharp edge just cuts off may be missed.
    assert np.mean(found[True][asked] != found[False][asked]) < 2e-4


@pytest.mark.parametrize("joint", ["knee", "shoulder"])
def test_who_else_is_asked_about_together_with_a_point_changes_nothing(joint: str) -> None:
    """The same points in blocks that begin elsewhere; numbers are such that their places are the same to the bit."""
    anatomy = JOINTS[joint].draw(np.random.default_rng(7), {"ACL": True} if joint == "knee" else {})
    to_joint = np.diag([2.5, 2.5, 2.5, 1.0])
    to_joint[:3, 3] = -60.0, -60.0, -40.0
    moved = to_joint.copy()
    moved[:3, 3] += 2.5 * np.array([1, 3, 5])
    here = ask_grid(to_joint, (48, 48, 32), anatomy.packed, anatomy.kind)
    there = ask_grid(moved, (47, 45, 27), anatomy.packed, anatomy.kind)
    assert len(np.unique(here)) > 10
    np.testing.assert_array_equal(here[1:, 3:, 5:], there)


def test_reading_a_lattice_agrees_with_asking_in_each_voxel() -> None:
    anatomy = JOINTS["knee"].draw(np.random.default_rng(4), {})
    planned = plan_series(4, JOINTS["knee"].examination, "right", "pd_fs", 96)
    lattice = lattice_of(anatomy, planned)
    places = np.array([*np.ndindex(2, 2, 8)]) / (2, 2, 8) + (0.25, 0.25, 0.0625) - 0.5
    for series in planned:
        scan = Scan(
            series.to_joint, series.protocol.thickness / series.protocol.spacing,
            signal_of_parts(series.protocol.contrast), label_of_part(), np.zeros((len(Part), 4)), anatomy.texture,
        )  # fmt: skip
        voxels, labels = np.full(series.shape, np.nan, np.float32), np.full(series.shape, 255, np.uint8)
        read_grid(lattice, scan, voxels, labels)
        mean, votes = np.zeros(series.shape), np.zeros((len(STRUCTURES) + 1, *series.shape), np.uint8)
        for place in places * (1.0, 1.0, scan.thickness):
            moved = np.eye(4)
            moved[:3, 3] = place
            parts = ask_grid(series.to_joint @ moved, series.shape, anatomy.packed, anatomy.kind)
            mean += scan.signal[parts] / len(places)
            np.put_along_axis(
                votes, scan.label[parts][None], np.take_along_axis(votes, scan.label[parts][None], 0) + 1, 0
            )
        asked = votes.argmax(axis=0)
        # Sixteen and thirty-two places disagree where a voxel is shared: a vote of 16 errs by an eighth of one there.
        assert np.mean(labels == asked) > 0.99
        assert np.sqrt(np.mean((voxels - mean) ** 2)) < 0.02  # muscle's signal is 0.2, fluid's 0.5
        for index in INDEX.values():
            volumes = np.count_nonzero(labels == index), np.count_nonzero(asked == index)
            assert abs(volumes[0] - volumes[1]) < 0.06 * volumes[1] + 3.0 * np.sqrt(volumes[1])


def test_no_voxel_of_a_lattice_is_read_before_it_is_written() -> None:
    for seed in range(3):
        anatomy = JOINTS["knee"].draw(np.random.default_rng(seed), {})
        planned = plan_series(seed, JOINTS["knee"].examination, "left", "pd_fs", 48)
        lattice = plan_lattice([Grid(s.to_joint, s.shape, s.protocol.thickness / s.protocol.spacing) for s in planned])
        lattice.parts[:] = 255
        fill_lattice(lattice, anatomy.packed, anatomy.kind)
        signal, label = np.ones(256, np.float32), np.zeros(256, np.uint8)
        signal[255 & (INNER - 1)], label[255 & (INNER - 1)] = np.nan, 1  # as it is read, whatever else is said of it
        for series in planned:
            scan = Scan(series.to_joint, 1.0, signal, label, np.zeros((256, 4)), anatomy.texture)
            voxels, labels = np.full(series.shape, np.nan, np.float32), np.full(series.shape, 255, np.uint8)
            read_grid(lattice, scan, voxels, labels)
            np.testing.assert_array_equal(voxels, 1.0)
            np.testing.assert_array_equal(labels, 0)


def test_threads_that_share_bricks_find_the_same_parts() -> None:
    anatomy = JOINTS["knee"].draw(np.random.default_rng(2), {})
    planned = plan_series(2, JOINTS["knee"].examination, "right", "pd_fs", 48)
    alone = lattice_of(anatomy, planned[:1])
    series = sample(anatomy, planned[0], lattice=alone)
    with ThreadPoolExecutor(max_workers=3) as pool:
        shared = lattice_of(anatomy, planned[:1] * 3, pool.map)
    np.testing.assert_array_equal(alone.bricks, shared.bricks)
    for one, other in zip(series, sample(anatomy, planned[0], lattice=shared), strict=True):
        np.testing.assert_array_equal(one, other)


def test_code_loaded_from_disk_makes_the_same_study_in_another_process() -> None:
    here = make_study(6, matrix=32).series[0].voxels.tobytes()
    program = (
        "import hashlib; from orthokernels.data.phantom import make_study; "
        "print(hashlib.sha256(make_study(6, matrix=32).series[0].voxels.tobytes()).hexdigest())"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split()[-1] == hashlib.sha256(here).hexdigest()


def test_packed_knees_have_one_layout() -> None:
    assert len({draw_knee(np.random.default_rng(seed)).packed().shape for seed in range(4)}) == 1


def test_fat_suppressed_contrast_is_in_the_usual_order() -> None:
    signal = dict(zip(Part, signal_of_parts(Contrast(35.0, 3000.0, fat_left=0.13)), strict=True))
    assert signal[Part.FLUID] > 1.5 * signal[Part.FEMORAL_CARTILAGE]
    assert signal[Part.FEMORAL_CARTILAGE] > 1.2 * signal[Part.MUSCLE]
    assert signal[Part.MUSCLE] > 1.2 * signal[Part.FEMUR_MARROW]
    assert signal[Part.FEMUR_MARROW] > 1.5 * signal[Part.MEDIAL_MENISCUS]
    assert signal[Part.MEDIAL_MENISCUS] > signal[Part.TENDON] > signal[Part.FEMUR_CORTEX]


def test_without_suppression_fat_is_bright() -> None:
    signal = dict(zip(Part, signal_of_parts(Contrast(35.0, 3000.0, fat_left=1.0)), strict=True))
    assert signal[Part.SUBCUTANEOUS_FAT] > signal[Part.FLUID]


def test_cruciate_ligaments_cross() -> None:
    sides: tuple[Side, ...] = ("right", "left")
    for seed, side in enumerate(sides):
        study = make_study(seed, side=side, matrix=96)
        series, directions = study.plane("sagittal"), study.plane("axial").affine[:3, :3]
        left, anterior, superior = (directions / np.linalg.norm(directions, axis=0)).T
        axes = np.stack([left if side == "left" else -left, anterior, superior])  # lateral, anterior, superior
        acl, pcl = (
            (np.argwhere(series.labels == INDEX[key]) @ series.affine[:3, :3].T + series.affine[:3, 3]) @ axes.T
            for key in ("acl", "pcl")
        )
        joint = min(acl[:, 2].max(), pcl[:, 2].max())
        floor = max(acl[:, 2].min(), pcl[:, 2].min())
        top_acl, top_pcl = (p[p[:, 2] > joint - 4.0].mean(axis=0) for p in (acl, pcl))
        low_acl, low_pcl = (p[np.abs(p[:, 2] - floor) < 4.0].mean(axis=0) for p in (acl, pcl))
        assert top_acl[0] > top_pcl[0]  # from the lateral and the medial wall of the notch
        assert low_acl[1] > low_pcl[1]  # to the front and the back of the tibia
        assert top_acl[1] < low_acl[1]  # the ACL runs forward on its way down
