"""The feature store: the pipeline's own features, computed once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orthokernels.data.prepare import slab_starts
from orthokernels.models.orthodiffusion import GaussianDiffusion, UNet, features
from orthokernels.training.cache import PreparedCache
from orthokernels.training.features import FeatureStore, SlabMaps, mean_per_series, slab_maps, slabs_of
from orthokernels.training.series import Record
from tests.training.toy import write_volume


def network(seed=0) -> UNet:
    torch.manual_seed(seed)
    return UNet(base_channels=8, channel_mults=(1, 2), groups=4, attention_rates=(2,), patch=(1, 2, 2)).eval()


@pytest.fixture
def records(tmp_path):
    """Two series of 16 slices and one of 20, which takes two slabs."""
    made = []
    for number, depth in enumerate((16, 20, 16)):
        path = write_volume(tmp_path / f"{number}.nii.gz", depth=depth, seed=number)
        made.append(Record(f"s{number}", f"p{number}", "sagittal", path))
    return made


def store(tmp_path, unet, **options) -> FeatureStore:
    return FeatureStore(tmp_path / "features", unet, PreparedCache(tmp_path / "cache", 32), **options)


def test_maps_are_the_pipelines_features_slab_by_slab(tmp_path, records):
    unet = network()
    own = store(tmp_path, unet, seed=3, draws=2)
    for record, maps in zip(records, own.maps(records, "mid_2", 100), strict=True):
        slabs, starts = slabs_of(own.cache, record)
        assert starts == slab_starts(own.cache.depth(record))
        assert len(maps) == len(starts)
        for number, start in enumerate(starts):
            expected = features(
                unet, GaussianDiffusion(), slabs[[number]], timestep=100, seed=3, draws=2, first_sample=start
            )["mid_2"]
            # Stored in float16, with 11 significant bits.
            np.testing.assert_allclose(maps[number], expected[0].detach(), rtol=2**-10, atol=1e-4)


def test_second_call_reads_what_the_first_wrote(tmp_path, records, monkeypatch):
    first = store(tmp_path, network()).maps(records, "mid_2", 100)
    again = store(tmp_path, network())
    monkeypatch.setattr(again, "_compute", lambda *a: pytest.fail("computed again"))
    for a, b in zip(first, again.maps(records, "mid_2", 100), strict=True):
        np.testing.assert_array_equal(a, b)


def test_entry_depends_on_network_timestep_block_and_seed(tmp_path, records):
    one = store(tmp_path, network())
    base = one.maps(records[:1], "mid_2", 100)[0]
    for other in (
        store(tmp_path, network(1)).maps(records[:1], "mid_2", 100),
        store(tmp_path, network(), seed=1).maps(records[:1], "mid_2", 100),
        one.maps(records[:1], "mid_2", 50),
        one.maps(records[:1], "in_2", 100),
    ):
        assert not np.array_equal(base, other[0])


def test_broken_entry_is_made_again(tmp_path, records):
    own = store(tmp_path, network())
    before = own.maps(records[:1], "mid_2", 100)[0]
    path = own._path(records[0], "mid_2", 100, "map")
    path.write_bytes(path.read_bytes()[:40])
    np.testing.assert_array_equal(own.maps(records[:1], "mid_2", 100)[0], before)


def test_means_of_many_blocks_come_from_one_pass(tmp_path, records):
    own = store(tmp_path, network())
    means = own.means(records, ["in_1", "mid_2", "out_1"], 100)
    assert {name: tuple(m.shape) for name, m in means.items()} == {"in_1": (3, 8), "mid_2": (3, 16), "out_1": (3, 16)}
    whole = [m.astype(np.float64).mean(axis=(0, 2, 3, 4)) for m in own.maps(records, "mid_2", 100)]
    np.testing.assert_allclose(means["mid_2"], whole, rtol=2**-9, atol=1e-4)


def test_rows_of_slab_maps_bring_all_their_slabs():
    series = [np.full((slabs, 2, 1, 1, 1), n, np.float16) for n, slabs in enumerate((1, 3, 2))]
    maps, owner = SlabMaps.of(series)[torch.tensor([2, 1])]
    assert maps[:, 0].flatten().tolist() == [2, 2, 1, 1, 1]
    assert owner.tolist() == [0, 0, 1, 1, 1]
    assert mean_per_series(maps[:, :, 0, 0, 0], owner).tolist() == [[2, 2], [1, 1]]


def test_slabs_of_different_places_share_a_pass():
    unet = network()
    x0 = torch.linspace(-1, 1, 2 * 16 * 32 * 32).reshape(2, 1, 16, 32, 32)
    together = slab_maps(unet, x0, [0, 7], ["mid_2"], 50)["mid_2"]
    for n, start in enumerate((0, 7)):
        alone = features(unet, GaussianDiffusion(), x0[[n]], timestep=50, first_sample=start)["mid_2"]
        torch.testing.assert_close(together[[n]], alone, atol=1e-5, rtol=1e-5)
