"""Labels come back to the scanner's grid: where they were, on the side they were."""

from __future__ import annotations

import numpy as np
import pytest

from orthokernels.data.geometry import plane_of
from orthokernels.data.prepare import SLAB, prepare, prepare_labels
from orthokernels.data.restore import Restorer, restore_labels
from orthokernels.data.study import read_study
from orthokernels.data.volume import Volume
from tests.data.series import noise, write_series
from tests.data.test_prepare import SOURCE, volume_of

CLASSES = 4


def blobs(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Three ellipsoids at fixed places of the patient, drawn on a volume's grid: left, right, and high in front."""
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    mm = indices @ affine[:3, :3].T + affine[:3, 3]
    centre = affine[:3, :3] @ (np.array(shape) - 1) / 2 + affine[:3, 3]
    labels = np.zeros(shape, np.uint8)
    for label, offset in ((1, (-16, -6, -4)), (2, (16, -6, -4)), (3, (0, 12, 14))):
        inside = (((mm - centre - offset) / (9.0, 7.0, 8.0)) ** 2).sum(axis=-1) < 1
        labels[inside] = label
    return labels


def one_hot(slices: np.ndarray) -> np.ndarray:
    """(D, H, W) labels to logits (C, D, H, W)."""
    return (slices[None] == np.arange(CLASSES)[:, None, None, None]).astype(np.float32)


def there_and_back(volume: Volume, mode: str) -> tuple[np.ndarray, np.ndarray]:
    labels = blobs(volume.affine, volume.shape)
    way_back = prepare(volume, mode).way_back
    sent = prepare_labels(labels, way_back)
    restorer = Restorer(way_back)
    for start in way_back.starts:
        restorer.add(one_hot(sent[start : start + SLAB]))
    return labels, restorer.labels()


def check_centroids(labels: np.ndarray, found: np.ndarray) -> None:
    for label in range(1, CLASSES):
        assert (labels == label).sum() > 50
        before = np.argwhere(labels == label).mean(axis=0)
        after = np.argwhere(found == label).mean(axis=0)
        assert np.abs(before - after).max() < 0.5, label


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
@pytest.mark.parametrize("tilt", [(0, 0, 0), (20, -14, 17), (-18, 22, -12)])
@pytest.mark.parametrize("spacing", [(0.6, 0.6, 3.0), (0.9, 0.5, 2.5)])
def test_oblique_series_keeps_left_and_right_and_every_centroid(tmp_path, plane, tilt, spacing):
    write_series(tmp_path, noise(0, slices=26, rows=110, columns=130), plane=plane, tilt=tilt, spacing=spacing)
    volume = read_study([tmp_path]).load(plane)
    labels, found = there_and_back(volume, "full")
    check_centroids(labels, found)
    # In the patient: label 1 was drawn to the left of label 2, label 3 above both.
    mm = [volume.affine @ [*np.argwhere(found == n).mean(axis=0), 1] for n in (1, 2, 3)]
    assert mm[0][0] + 25 < mm[1][0]
    assert mm[2][2] > mm[0][2] + 12


@pytest.mark.parametrize("seed", range(12))
def test_reversed_and_permuted_nifti_come_back_in_their_own_order(seed):
    rng = np.random.default_rng(seed)
    usual = np.array([[-0.6, 0.02, 0.2, 40], [0.05, 0.6, -0.3, -35], [0.03, 0.05, 3.0, -30], [0, 0, 0, 1.0]])
    shape = np.array([120, 110, 24])
    axes = rng.permutation(3)
    affine, shape = usual[:, [*axes, 3]], shape[axes]
    for axis in np.flatnonzero(rng.random(3) < 0.5):
        affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
        affine[:3, axis] *= -1
    volume = Volume(rng.normal(size=tuple(shape)).astype(np.float32), affine, SOURCE)
    assert plane_of(affine)[0] == "axial"
    labels, found = there_and_back(volume, "full")
    check_centroids(labels, found)
    way_back = prepare(volume, "full").way_back
    check_centroids(labels, restore_labels(prepare_labels(labels, way_back), way_back))


def test_published_mode_labels_the_centre_slices_only():
    volume = volume_of((90, 80, 29), sizes=(0.6, 0.6, 2.0))
    labels, found = there_and_back(volume, "published")
    assert not found[:, :, :6].any()
    assert not found[:, :, 22:].any()
    inside = labels[:, :, 6:22]
    np.testing.assert_array_equal(np.bincount(found[:, :, 6:22].ravel()) > 0, np.bincount(inside.ravel()) > 0)
    assert (found[:, :, 6:22] == inside).mean() > 0.99


def test_labels_of_the_networks_own_size_come_back_exactly():
    volume = volume_of((256, 256, 40))
    labels = np.random.default_rng(1).integers(0, CLASSES, volume.shape).astype(np.uint8)
    way_back = prepare(volume, "full").way_back
    sent = prepare_labels(labels, way_back)
    restorer = Restorer(way_back)
    for start in way_back.starts:
        restorer.add(one_hot(sent[start : start + SLAB]))
    np.testing.assert_array_equal(restorer.labels(), labels)
    np.testing.assert_array_equal(restore_labels(sent, way_back), labels)


def test_overlapping_slabs_are_blended_towards_the_one_a_slice_lies_deeper_in():
    way_back = prepare(volume_of((32, 32, 28)), "full").way_back
    assert way_back.starts == (0, 12)
    restorer = Restorer(way_back)
    for label in (1, 2):
        logits = np.zeros((CLASSES, SLAB, 256, 256), np.float32)
        logits[label] = 1.0
        restorer.add(logits)
    along = way_back.turn.apply(restorer.labels())[0, 0]
    # Slices 12 to 15 are in both; in slice 13 the first slab counts 3 and the second 2, in slice 14 the reverse.
    assert along.tolist() == [1] * 14 + [2] * 14


@pytest.mark.parametrize("slices", [17, 28, 29, 100])  # at 29 three slabs cover slices 13 to 15
def test_restorer_holds_fewer_slices_of_logits_than_one_slab_has(slices):
    way_back = prepare(volume_of((32, 32, slices)), "full").way_back
    restorer = Restorer(way_back)
    following = [*way_back.starts[1:], way_back.slices]
    for start, covered in zip(way_back.starts, following, strict=True):
        restorer.add(np.zeros((2, SLAB, 256, 256), np.float32))
        held = [logits for parts in restorer._open.values() for logits, _ in parts]
        assert len(held) == sum(max(0, own + SLAB - covered) for own in way_back.starts if own <= start) < SLAB
        assert all(logits.base is None for logits in held)  # none keeps a whole slab


def test_slices_that_are_not_complete_do_not_lie_in_the_slab_s_memory():
    way_back = prepare(volume_of((32, 32, 28)), "full").way_back
    memory = np.zeros((CLASSES, SLAB, 256, 256), np.float32)
    restorer = Restorer(way_back)
    for label in (1, 2):  # as a session that writes its output where the last one was
        memory[:] = 0
        memory[label] = 1.0
        restorer.add(memory)
    along = way_back.turn.apply(restorer.labels())[0, 0]
    assert along.tolist() == [1] * 14 + [2] * 14


def test_restorer_refuses_wrong_shapes_and_missing_slabs():
    way_back = prepare(volume_of((32, 32, 28)), "full").way_back
    restorer = Restorer(way_back)
    with pytest.raises(ValueError, match="logits have shape"):
        restorer.add(np.zeros((2, 8, 256, 256), np.float32))
    restorer.add(np.zeros((2, SLAB, 256, 256), np.float32))
    with pytest.raises(ValueError, match="1 of 2 slabs"):
        restorer.labels()
