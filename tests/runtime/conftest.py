"""One small bundle and one study for all tests of this folder."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace

import pytest

from orthokernels.data.phantom.dataset import Recipe, write_single
from tests.once import once
from tests.runtime.bundles import POOLING, write_late_fusion, write_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    def make(out):
        out.mkdir()
        write_weights(out)
        write_late_fusion(out, 3 * POOLING["kept"], {"ACL": 0.2})

    return once(tmp_path_factory, "small-weights", make)


@pytest.fixture(scope="session")
def drafted(weights, tmp_path_factory):
    """Every graph and no manifest: exporting them takes a minute, so that tests finish copies of it."""
    from orthokernels.export.bundle import BundleFolder, draft

    def make(out):
        out.mkdir()
        with BundleFolder(out / "bundle") as folder:
            made = draft(str(weights), folder.draft)
            shutil.copytree(folder.draft, out / "draft")
        (out / "draft.pickle").write_bytes(pickle.dumps(made))

    out = once(tmp_path_factory, "small-draft", make)
    return replace(pickle.loads((out / "draft.pickle").read_bytes()), folder=out / "draft")


@pytest.fixture(scope="session")
def bundle(drafted, tmp_path_factory):
    from orthokernels.export.bundle import finish

    def make(out):
        finish(replace(drafted, folder=shutil.copytree(drafted.folder, out)))

    return once(tmp_path_factory, "small-bundle", make)


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    return once(tmp_path_factory, "small-study", lambda out: write_single(out, 3, Recipe(joint="knee", matrix=64)))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path / "cache"))
