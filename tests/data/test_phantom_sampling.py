"""The digital knee's sampler and signal: skipping ahead changes nothing, and tissues rank as they do in a clinic."""

from __future__ import annotations

import numpy as np

from orthokernels.data.phantom import make_study
from orthokernels.data.phantom.anatomy import draw_knee
from orthokernels.data.phantom.parts import Part, label_of_part
from orthokernels.data.phantom.sampling import BLOCK, Scan, sample_grid
from orthokernels.data.phantom.signal import Contrast, signal_of_parts
from orthokernels.data.phantom.study import Side
from orthokernels.tasks import STRUCTURES

INDEX = {s.key: s.index for s in STRUCTURES}


def test_filling_blocks_changes_no_label() -> None:
    """Blocks are filled only where clearance says they lie in one part: the labels are those of every voxel sampled."""
    to_knee = np.diag([2.4, 2.4, 3.6, 1.0])
    to_knee[:3, 3] = -76.0, -76.0, -36.0
    knee = draw_knee(np.random.default_rng(4))
    scan = Scan(
        to_knee, 0.9, signal_of_parts(Contrast(35.0, 3000.0, 0.13)), label_of_part(), np.zeros((len(Part), 4)),
        knee.texture,
    )  # fmt: skip
    labels = {block: np.full((64, 64, 24), 255, np.uint8) for block in (0, BLOCK)}
    for block, filled in labels.items():
        sample_grid(knee.packed(), scan, block, np.full((64, 64, 24), np.nan, np.float32), filled)
    assert 255 not in labels[BLOCK]
    np.testing.assert_array_equal(labels[0], labels[BLOCK])


def test_no_voxel_is_left_unwritten_when_blocks_do_not_divide_the_grid() -> None:
    knee = draw_knee(np.random.default_rng(4))
    scan = Scan(
        np.diag([4.0, 4.0, 4.0, 1.0]), 1.0, np.ones(len(Part), np.float32), label_of_part(),
        np.zeros((len(Part), 4)), knee.texture,
    )  # fmt: skip
    voxels = np.full((13, 21, 3), np.nan, np.float32)
    sample_grid(knee.packed(), scan, BLOCK, voxels, np.zeros(voxels.shape, np.uint8))
    np.testing.assert_array_equal(voxels, 1.0)


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
