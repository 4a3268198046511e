"""Slabs by number: the same in every process, order and run."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from orthokernels.errors import InputError
from orthokernels.training.augment import augment
from orthokernels.training.cache import PreparedCache
from orthokernels.training.config import AugmentConfig
from orthokernels.training.loader import (
    FixedSlabs,
    Numbers,
    TrainingSlabs,
    batches,
    covering_slabs,
    fixed_batches,
)
from orthokernels.training.randomness import Order, uniform_timesteps, unit_noise
from orthokernels.training.records import read_records
from orthokernels.training.series import IGNORED, Record
from tests.training.toy import write_studies, write_volume

CHANGES = AugmentConfig(crop=24, shift=0.1, gain=0.2, gamma=0.3)


@pytest.fixture
def cache(tmp_path):
    return PreparedCache(tmp_path / "cache", 32)


@pytest.fixture
def records(tmp_path):
    write_studies(tmp_path / "data", 3)
    return [record for record in read_records(tmp_path / "data") if record.plane == "sagittal"]


def taken(stream, count):
    return [(b["number"].tolist(), b["image"].clone()) for b in itertools.islice(stream, count)]


def test_a_pass_visits_every_record_once_in_an_order_of_its_own():
    order = Order(10, seed=3)
    passes = [[order[n] for n in range(10 * p, 10 * p + 10)] for p in range(3)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert passes[0] != passes[1]
    assert Order(10, seed=3)[17] == passes[1][7]
    assert [Order(10, seed=4)[n] for n in range(10)] != passes[0]


def test_a_batch_is_the_same_from_any_number_of_workers(cache, records):
    slabs = TrainingSlabs(cache, records, 7, CHANGES)
    streams = [batches(slabs, Numbers(2, 0, 0, 1), workers=w, prefetch=2, pin=False) for w in (0, 1, 2)]
    for own in zip(*(taken(stream, 5) for stream in streams), strict=True):
        assert all(numbers == own[0][0] and torch.equal(image, own[0][1]) for numbers, image in own)


def test_a_stream_taken_up_later_goes_on_as_the_first(cache, records):
    slabs = TrainingSlabs(cache, records, 7, CHANGES)
    whole = taken(batches(slabs, Numbers(2, 0, 0, 1), workers=0, prefetch=2, pin=False), 6)
    rest = taken(batches(slabs, Numbers(2, 4, 0, 1), workers=0, prefetch=2, pin=False), 2)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(whole[4:], rest, strict=True))


def test_processes_share_what_one_of_double_batch_reads():
    one = list(itertools.islice(Numbers(4, 3, 0, 1), 3))
    two = [list(itertools.islice(Numbers(2, 3, rank, 2), 3)) for rank in (0, 1)]
    assert one == [a + b for a, b in zip(*two, strict=True)]


def test_a_batch_names_its_files(cache, records):
    slabs = TrainingSlabs(cache, records, 7, AugmentConfig())
    batch = next(batches(slabs, Numbers(3, 0, 0, 1), workers=0, prefetch=2, pin=False))
    assert sorted(batch["file"]) == sorted(str(record.image) for record in records)
    assert batch["image"].shape == (3, 1, 16, 32, 32)
    assert batch["image"].dtype == torch.float32


def test_an_unreadable_image_is_one_sentence_also_from_a_worker(cache, records):
    records[1].image.write_bytes(b"no image")
    slabs = TrainingSlabs(cache, records, 7, AugmentConfig())
    with pytest.raises(InputError) as caught:
        next(batches(slabs, Numbers(3, 0, 0, 1), workers=1, prefetch=2, pin=False))
    assert str(caught.value).startswith(f"{records[1].image}: not a readable NIfTI file")
    assert "Traceback" not in str(caught.value)


def test_a_loader_left_open_keeps_no_process_from_ending():
    code = (
        "from orthokernels.training.loader import Numbers, batches\n"
        "class Samples:\n"
        "    def __getitem__(self, number): return {'file': str(number)}\n"
        "stream = batches(Samples(), Numbers(1, 0, 0, 1), workers=1, prefetch=2, pin=False)\n"
        "print(next(stream)['file'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "['0']\n", done.stderr


def test_training_slabs_start_anywhere_and_validation_slabs_cover_all(cache, tmp_path):
    image = write_volume(tmp_path / "deep.nii.gz", depth=30)
    record = Record("s", "p", "sagittal", image)
    slabs = TrainingSlabs(cache, [record], 0, AugmentConfig())
    starts = {slabs[n]["start"] for n in range(200)}
    assert starts == set(range(15))
    drawn = [slabs[n]["start"] for n in range(400)]
    # Both ends are slabs of inference too, of which there are three: half of a third, half of a 15th; five deviations.
    for end in (0, 14):
        assert abs(drawn.count(end) / 400 - (0.5 / 3 + 0.5 / 15)) < 5 * (0.2 * 0.8 / 400) ** 0.5
    fixed = covering_slabs(cache, [record])
    assert {k for _, start in fixed for k in range(start, start + 16)} == set(range(30))
    sample = FixedSlabs(cache, fixed)[1]
    np.testing.assert_array_equal(sample["image"][0], cache.slices(record)[fixed[1][1] :][:16])


def test_placed_slabs_hold_a_voxel_of_each_structure_equally_often(cache, tmp_path):
    labels = np.zeros((32, 32, 30), np.uint8)
    labels[:20, :20, 5:25] = 1
    labels[30, 3, 29] = 4  # one voxel, at the end of the series and the edge of its slices
    image = write_volume(tmp_path / "deep.nii.gz", depth=30)
    record = Record("s", "p", "sagittal", image, labels=write_volume(tmp_path / "labels.nii.gz", voxels=labels))

    def seen(placed: float) -> int:
        slabs = TrainingSlabs(cache, [record], 0, AugmentConfig(crop=16), labelled=True, placed=placed)
        shown = [set(slabs[n]["labels"].unique().tolist()) for n in range(200)]
        assert all(4 in one or 1 in one for one in shown) or placed < 1
        return sum(4 in one for one in shown)

    # Half of the slabs are placed on it; five deviations of a fair coin. Slabs at random meet it in one of fifty.
    assert abs(seen(1.0) - 100) < 5 * 50**0.5
    assert seen(0.0) < 20


def test_nothing_is_cropped_from_a_given_sample_on(cache, records):
    slabs = TrainingSlabs(cache, records, 0, AugmentConfig(crop=16), whole_from=5)
    assert [slabs[n]["image"].shape[-1] for n in (4, 5, 6)] == [16, 32, 32]


def test_sparsely_labelled_series_give_slabs_with_labels_in_them(cache, tmp_path):
    image = write_volume(tmp_path / "deep.nii.gz", depth=40)
    masks = []
    for number in (5, 7, 9):
        Image.fromarray(np.ones((32, 32), np.uint8)).save(tmp_path / f"{number}-a.png")
        masks.append((number, tmp_path / f"{number}-a.png"))
    record = Record("s", "p", "sagittal", image, masks=tuple(masks))
    slabs = TrainingSlabs(cache, [record], 0, AugmentConfig(), labelled=True)
    for number in range(30):
        labels = slabs[number]["labels"]
        assert labels.dtype == torch.int64
        assert int((labels != IGNORED).any(dim=2).any(dim=1).sum()) >= 2


def test_image_and_labels_move_together():
    image = np.arange(16 * 16, dtype=np.float32).reshape(1, 16, 16).repeat(2, axis=0) / 255 * 2 - 1
    labels = (np.arange(16 * 16) % 12).astype(np.int8).reshape(1, 16, 16).repeat(2, axis=0)
    changes = AugmentConfig(shift=0.2, flip=True)
    for seed in range(20):
        moved, own = augment(image, labels, changes, np.random.default_rng(seed))
        source = np.rint((moved + 1) / 2 * 255).astype(int)
        inside = own != IGNORED
        np.testing.assert_array_equal(own[inside], source[inside] % 12)
        assert inside.mean() >= (1 - 0.2) ** 2 - 0.05  # 0.2 of 16 rounds to 3 rows, and as many columns
    assert image[0, 0, 0] == -1.0
    assert (labels != IGNORED).all()  # what was given is not written to


def test_a_crop_keeps_values_and_contrast_keeps_the_range():
    image = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32)).astype(np.float32)
    cropped, _ = augment(image, None, AugmentConfig(crop=20), np.random.default_rng(1))
    assert cropped.shape == (4, 20, 20)
    assert np.isin(cropped, image).all()
    changed, _ = augment(image, None, AugmentConfig(gain=0.3, gamma=0.5), np.random.default_rng(1))
    assert changed.dtype == np.float32
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert not np.array_equal(changed, image)


def test_nothing_asked_for_changes_nothing():
    image = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32)).astype(np.float32)
    same, _ = augment(image, None, AugmentConfig(), np.random.default_rng(1))
    np.testing.assert_array_equal(same, image)


def test_noise_and_timesteps_follow_the_sample_not_the_batch():
    cpu = torch.device("cpu")
    together = unit_noise((1, 4, 4, 4), 0, [5, 6, 7], cpu)
    assert torch.equal(together[1:2], unit_noise((1, 4, 4, 4), 0, [6], cpu))
    assert not torch.equal(together[0], together[1])
    assert uniform_timesteps(0, [5, 6], 1000)[1] == uniform_timesteps(0, [6], 1000)[0]
    drawn = uniform_timesteps(0, list(range(4000)), 10)
    # A tenth each; 5 standard deviations of a binomial of 4000 draws are 95.
    assert (torch.bincount(drawn) - 400).abs().max() < 95


def test_validation_batches_are_shared_out(cache, records):
    slabs = FixedSlabs(cache, covering_slabs(cache, records))
    seen = [b["number"].tolist() for rank in (0, 1) for b in fixed_batches(slabs, 1, rank, 2)]
    assert sorted(itertools.chain(*seen)) == list(range(len(slabs)))
