"""What training tests share: a small data set and the settings of a network that trains on it in seconds."""

from __future__ import annotations

import pytest
import torch

from tests.training.toy import write_studies


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Networks this small are slower on several threads, and far slower where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """Eight studies of four patients, 32 x 32 x 16 voxels."""
    return write_studies(tmp_path_factory.mktemp("toy"), 8)


@pytest.fixture(scope="session")
def toy_settings(tmp_path_factory):
    """Overrides for ``PretrainConfig``: 8 x 16 x 16 places of 8 voxels each, and a cache that tests share."""
    cache = tmp_path_factory.mktemp("cache")
    return [
        "planes=[axial]", "network.base_channels=8", "network.channel_mults=[1,2]", "network.groups=4",
        "network.attention_rates=[2]", "network.patch=[2,2,2]", "data.size=32", "data.validate_share=0.25",
        f"data.cache={cache}", "data.workers=0", "loop.batch=2", "loop.validate_every=0", "optimiser.rate=2e-3",
    ]  # fmt: skip
