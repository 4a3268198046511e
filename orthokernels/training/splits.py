"""From a data set to what a command trains and validates on: checked, split by patient, and prepared on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orthokernels.errors import InputError
from orthokernels.folders import cache_folder
from orthokernels.training.cache import PreparedCache
from orthokernels.training.checks import check_records
from orthokernels.training.config import DataConfig
from orthokernels.training.curves import progress
from orthokernels.training.distributed import Processes
from orthokernels.training.records import read_records, split_by_patient
from orthokernels.training.series import Record


def load_splits(source: Path, data: DataConfig, planes: Sequence[str]) -> dict[str, list[Record]]:
    """Checked records of ``planes`` by split: "train", "validate" and "test".

    Raises:
        InputError: everything that is wrong with the data, in one message; or a plane without training data.
    """
    every = read_both(source, data)
    records = [record for record in every if record.plane in planes]
    check_records(records, preparation=data.preparation)
    splits = {
        side: [record for record in own if record.plane in planes] for side, own in split_as_set(every, data).items()
    }
    for plane in planes:
        if not any(record.plane == plane for record in splits["train"]):
            raise InputError(f"{source}: has no {plane} series to train on. Leave the plane out with --planes.")
    return splits


def read_both(source: Path, data: DataConfig) -> list[Record]:
    """Every record of a data set, and of the second table that is all for validation, where there is one."""
    settings: dict[str, Any] = {
        "images": data.images, "masks": data.masks, "plane": data.plane, "poses": data.poses,
        "masks_mirrored": data.masks_mirrored, "split_file": data.split_file,
    }  # fmt: skip
    if data.validation is None:
        return read_records(source, data.joint, **settings)
    records = read_records(source, data.joint, split="train", **settings)
    return records + read_records(data.validation, data.joint, split="validate", **settings)


def split_as_set(records: Sequence[Record], data: DataConfig) -> dict[str, list[Record]]:
    """Records by split: the data set's own where it names who is trained on, else drawn as the settings say.

    Args:
        records: of every plane: a patient's side must not depend on the planes that a command asks for.
    """
    if any(record.split == "train" for record in records):  # the data set has its own split; the rest stays out
        shares = {"train": 0.0, "validate": 0.0, "test": 0.0, "unused": 1.0}
    else:
        train_share = 1 - data.validate_share - data.test_share
        if train_share < -1e-6:
            raise InputError(
                f"data.validate_share = {data.validate_share:g} and data.test_share = {data.test_share:g} are together "
                "more than all patients. Lower one of them."
            )
        train_share = max(0.0, train_share)
        shares = {"train": train_share, "validate": data.validate_share, "test": data.test_share}
    return split_by_patient(records, shares, data.split_seed)


def patients_of(records: Sequence[Record]) -> str:
    """A short name for the patients of records: how many, and a hash of their list."""
    patients = sorted({record.patient for record in records})
    return f"{len(patients)} ({hashlib.sha256(chr(10).join(patients).encode()).hexdigest()[:12]})"


def prepared_cache(data: DataConfig) -> PreparedCache:
    """The cache that the settings name, by default in the user's cache folder."""
    folder = data.cache or cache_folder() / "prepared"
    return PreparedCache(folder, data.size, data.preparation)


def fill(cache: PreparedCache, records: Sequence[Record], workers: int, processes: Processes, silent: bool) -> None:
    """Prepare what the cache lacks, each process its share, with progress."""
    with progress("Preparing", 100, silent or not processes.first) as tell:
        own = records[processes.rank :: processes.world]
        cache.fill(own, workers, lambda done, total: tell(done, total, {}))
    processes.wait()
