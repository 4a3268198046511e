"""The pooling over found structures against the plain statistics of each structure's voxels, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter

from orthokernels.models.orthodiffusion.regional_pooling import PERCENTILES, StructurePool, grid_numbers

CLASSES, CHANNELS, CELLS = 4, 3, (2, 2)
BIN = 2 / 256


@pytest.fixture
def slabs():
    """Maps, logits and volumes of two slabs of random blobs; class 3 is nowhere."""
    draw = np.random.default_rng(0)
    labels = np.zeros((2, 4, 12, 16), int)
    labels[0, :3, 2:7, 3:9], labels[1, 1:, 6:11, 1:5], labels[1, 2, 1:3, 8:13] = 1, 2, 1
    logits = draw.normal(0, 1, (2, CLASSES, 4, 12, 16))
    np.put_along_axis(logits, labels[:, None], 9.0, axis=1)
    volume = draw.uniform(-1, 1, (2, 1, 4, 12, 16))
    maps = draw.normal(0, 1, (2, CHANNELS, 4, 6, 8))
    return labels, *(torch.from_numpy(each) for each in (maps, logits, volume))


def pool_of(**changes):
    return StructurePool(CHANNELS, cells=CELLS, classes=CLASSES, bins=256, **changes)


def numbers_of(slabs):
    """(grid, structures and rims x 7, structures x looks) of the series that the slabs make up."""
    _, maps, logits, volume = slabs
    pool = pool_of(kept=1)
    sums = pool(maps, logits, volume).mean(dim=0, keepdim=True)
    every = pool.every(sums)[0]
    grid, regions = 2 * CHANNELS * 4, 2 * (CLASSES - 1)
    assert len(every) == grid + 7 * regions + (CLASSES - 1) * (1 + 2 * CHANNELS)
    return every[:grid], every[grid : grid + 7 * regions].view(regions, 7), every[grid + 7 * regions :].view(3, -1)


@pytest.mark.parametrize("structure", [1, 2])
@pytest.mark.parametrize("rim", [False, True])
def test_intensities_are_told_as_numpy_tells_them(slabs, structure, rim):
    labels, volume = slabs[0], slabs[3][:, 0].numpy()
    where = labels == structure
    if rim:
        where = maximum_filter(where, size=(1, 1, 5, 5)) & ~where
    inside = volume[where]
    found = numbers_of(slabs)[1][structure - 1 + rim * (CLASSES - 1)].numpy()
    # A voxel is known to its bin alone: half a bin off at most, and its percentiles by one more (their definitions
    # differ by a voxel, and at least 60 voxels are spread evenly over 256 bins).
    assert found[0] == pytest.approx(inside.mean(), abs=BIN / 2)
    assert found[1] == pytest.approx(inside.std(), abs=BIN)
    for value, percentile in zip(found[2:], PERCENTILES, strict=True):
        below, above = ((inside < value + side * BIN).mean() for side in (-1, 1))
        assert below <= percentile <= above


def test_features_are_those_under_the_structure(slabs):
    labels, maps = slabs[0], slabs[1].numpy()
    share = (labels == 1).reshape(2, 4, 6, 2, 8, 2).mean(axis=(3, 5))
    total = share.sum()
    mean = np.einsum("ndhw,ncdhw->c", share, maps) / total
    deviation = np.sqrt(np.einsum("ndhw,ncdhw->c", share, maps**2) / total - mean**2)
    looks = numbers_of(slabs)[2][0].numpy()
    # Float64 sums of some hundred terms of size 1.
    np.testing.assert_allclose(looks, [np.log(1 + (labels == 1).sum() / 2), *mean, *deviation], rtol=1e-12)


def test_the_grid_is_the_mean_over_slabs(slabs):
    expected = grid_numbers(slabs[1], CELLS, mirror=False).mean(dim=0)
    torch.testing.assert_close(numbers_of(slabs)[0], expected, rtol=1e-12, atol=0)


def test_a_structure_that_was_not_found_gets_its_usual_number(slabs):
    _, maps, logits, volume = slabs
    _, intensities, looks = numbers_of(slabs)
    assert intensities[2].isnan().all()
    assert looks[2, 0] == 0
    pool = pool_of(kept=2)
    missing = 2 * CHANNELS * 4 + 7 * 2  # the mean intensity of class 3
    pool.places.copy_(torch.tensor([missing, 0]))
    pool.usual.copy_(torch.tensor([0.25, 7.0]))
    vector = pool.of_series(pool(maps, logits, volume).mean(dim=0, keepdim=True))
    assert vector[0, 0] == 0.25
    assert vector[0, 1] == pytest.approx(grid_numbers(maps, CELLS, mirror=False)[:, 0].mean().item(), rel=1e-12)


def test_another_pooling_is_built_from_its_arguments():
    pool = pool_of(kept=5, mirror=True)
    assert StructurePool(**pool.arguments()).arguments() == pool.arguments()
