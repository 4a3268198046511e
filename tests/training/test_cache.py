"""Prepared volumes on disk: what is there is whole, and stands for its sources as they are now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from orthokernels.data.prepare import prepare, prepare_labels
from orthokernels.errors import InputError
from orthokernels.training.cache import PreparedCache
from orthokernels.training.records import read_records
from orthokernels.training.series import IGNORED, Record, load_labels, load_volume
from tests.training.toy import write_studies, write_volume


@pytest.fixture
def record(tmp_path):
    image = write_volume(tmp_path / "a.nii.gz", depth=20)
    labels = np.random.default_rng(1).integers(0, 12, (32, 32, 20)).astype(np.uint8)
    labels[:, :, 0] = 255
    write_volume(tmp_path / "a_labels.nii.gz", voxels=labels)
    return Record("s", "p", "sagittal", image, tmp_path / "a_labels.nii.gz")


@pytest.mark.parametrize(("mode", "depth"), [("full", 20), ("published", 16)])
def test_what_is_read_is_what_preparation_gives(tmp_path, record, mode, depth):
    cache = PreparedCache(tmp_path / "cache", 48, mode)
    volume = load_volume(record)
    prepared = prepare(volume, mode, 48)
    assert cache.depth(record) == depth
    # uint16 over a range of 2 has steps of 2 / 65535; half a step, and float32's rounding on the way back.
    np.testing.assert_allclose(cache.slices(record), prepared.slices, rtol=0, atol=1 / 65535 + 2e-7)
    expected = prepare_labels(load_labels(record, volume), prepared.way_back)
    np.testing.assert_array_equal(cache.labels(record), expected)
    assert (mode == "published") != (cache.labels(record) == IGNORED).any()  # slice 0 is cut off by "published"
    np.testing.assert_array_equal(cache.slices(record, 2, 9), cache.slices(record)[2:9])
    np.testing.assert_array_equal(cache.labels(record, 2, 9), expected[2:9])


def test_a_record_without_labels_is_ignored_throughout(tmp_path, record):
    cache = PreparedCache(tmp_path / "cache", 32)
    plain = Record("s", "p", "sagittal", record.image)
    assert (cache.labels(plain) == IGNORED).all()
    assert cache.labels(plain, 4, 9).shape == (5, 32, 32)


def test_an_entry_is_made_once(tmp_path, record):
    PreparedCache(tmp_path / "cache", 32).fill([record])
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert len(times) == 2
    told = []
    PreparedCache(tmp_path / "cache", 32).fill([record], tell=lambda done, total: told.append(done))
    assert told == []
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}


def test_a_changed_source_makes_a_new_entry(tmp_path, record):
    before = PreparedCache(tmp_path / "cache", 32).slices(record)
    write_volume(record.image, depth=20, seed=5)
    assert not np.array_equal(before, PreparedCache(tmp_path / "cache", 32).slices(record))


def test_changed_labels_make_new_labels_of_the_same_slices(tmp_path, record):
    before = PreparedCache(tmp_path / "cache", 32).labels(record)
    write_volume(record.labels, voxels=np.zeros((32, 32, 20), np.uint8))
    after = PreparedCache(tmp_path / "cache", 32)
    assert before.any()
    assert not after.labels(record).any()


@pytest.mark.parametrize("damage", ["half", "empty", "header", "another array"])
def test_a_broken_entry_is_made_again(tmp_path, record, damage):
    cache = PreparedCache(tmp_path / "cache", 32)
    whole = cache.slices(record)
    (path,) = (tmp_path / "cache").rglob("*.slices.npy")
    content = path.read_bytes()
    broken = {"half": content[: len(content) // 2], "empty": b"", "header": b"x" * len(content)}
    if damage == "another array":
        np.save(path, np.zeros((16, 8, 8), np.uint16))
    else:
        path.write_bytes(broken[damage])
    np.testing.assert_array_equal(PreparedCache(tmp_path / "cache", 32).slices(record), whole)
    assert path.read_bytes() == content


def test_workers_make_the_same_entries(tmp_path):
    write_studies(tmp_path, 2)
    records = read_records(tmp_path)
    told = []
    PreparedCache(tmp_path / "two", 32).fill(records, workers=2, tell=lambda done, total: told.append((done, total)))
    PreparedCache(tmp_path / "one", 32).fill(records)
    assert told[-1] == (6, 6)
    one = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.npy"))
    assert len(one) == 12
    for path in one:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_a_cache_that_was_killed_while_filling_is_whole(tmp_path):
    """Killed with the first entries on disk; what is there is read, what is missing is made."""
    write_studies(tmp_path, 4)
    code = (
        "import sys, pathlib\n"
        "from orthokernels.training.cache import PreparedCache\n"
        "from orthokernels.training.records import read_records\n"
        "cache = PreparedCache(pathlib.Path(sys.argv[1], 'cache'), 256)\n"
        "while True:\n"
        "    cache.fill(read_records(pathlib.Path(sys.argv[1])))\n"
        "    [path.unlink() for path in sorted(cache.folder.rglob('*.npy'))[4:]]\n"
    )
    filling = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "cache").rglob("*.npy"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.kill(filling.pid, signal.SIGKILL)
        filling.wait()
    records = read_records(tmp_path)
    left = PreparedCache(tmp_path / "cache", 256)
    fresh = PreparedCache(tmp_path / "fresh", 256)
    assert all(np.load(path).shape[1:] == (256, 256) for path in (tmp_path / "cache").rglob("*.npy"))
    for record in records[:4]:
        np.testing.assert_array_equal(left.slices(record), fresh.slices(record))
        np.testing.assert_array_equal(left.labels(record), fresh.labels(record))


def test_a_folder_that_can_not_be_written_is_said(tmp_path, record):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        PreparedCache(tmp_path / "file", 32).slices(record)
