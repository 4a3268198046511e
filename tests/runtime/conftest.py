"""One small bundle and one study for all tests of this folder."""

from __future__ import annotations

import pytest

from orthokernels.data.phantom.dataset import Recipe, write_single
from tests.runtime.bundles import make_bundle, write_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("small") / "weights")


@pytest.fixture(scope="session")
def bundle(weights, tmp_path_factory):
    return make_bundle(weights, tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "study"
    write_single(folder, 3, Recipe(joint="knee", matrix=64))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path / "cache"))
