"""What a head is trained on: the records of a split, those that the task can use, prepared at the weights' size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthokernels.errors import InputError
from orthokernels.training.cache import PreparedCache
from orthokernels.training.config import DataConfig
from orthokernels.training.distributed import Processes
from orthokernels.training.pretrain import fill, load_splits, prepared_cache
from orthokernels.training.series import Record


@dataclass(frozen=True)
class Selection:
    """Records by side, and the cache of their prepared volumes."""

    train: tuple[Record, ...]
    validate: tuple[Record, ...]
    cache: PreparedCache

    def of_plane(self, plane: str) -> Selection:
        return Selection(
            tuple(record for record in self.train if record.plane == plane),
            tuple(record for record in self.validate if record.plane == plane),
            self.cache,
        )

    def identity(self) -> dict[str, Any]:
        """The training records and what they are labelled as, by short names, and how they are prepared: a run's
        identity as far as data go."""
        return {
            "training series": _name_of(self.train),
            "training labels": _labels_of(self.train),
            "data.preparation": self.cache.mode,
            "data.size": self.cache.size,
        }

    def held_out(self) -> str:
        """A short name for the validation records."""
        return _name_of(self.validate)


def _name_of(records: Sequence[Record]) -> str:
    told = "\n".join(f"{r.study} {r.patient} {r.plane} {r.image.name}" for r in records)
    return f"{len(records)} ({hashlib.sha256(told.encode()).hexdigest()[:12]})"


def _labels_of(records: Sequence[Record]) -> str:
    """A short name for findings and label maps by their content; where the files lie, and when they changed, may
    differ from machine to machine."""
    told = hashlib.sha256()
    for record in records:
        masks = [number for number, _ in record.masks], record.masks_decreasing, record.masks_mirrored
        told.update(repr((record.findings, masks)).encode())
        for path in record.label_files():
            told.update(hashlib.sha256(path.read_bytes()).digest())
    return told.hexdigest()[:12]


def labelled(record: Record) -> bool:
    """Whether a record can teach segmentation."""
    return record.labelled


def diagnosed(record: Record) -> bool:
    """Whether a record can teach diagnosis."""
    return record.findings is not None


def select(
    source: Path,
    data: DataConfig,
    size: int,
    planes: Sequence[str],
    usable: Callable[[Record], bool],
    processes: Processes,
    *,
    silent: bool = True,
) -> Selection:
    """The usable records of a data set, checked, split by patient, and prepared at ``size`` (the weights' own).

    Raises:
        InputError: the data set is not in order, or has nothing usable to train on in a plane.
    """
    data = data.model_copy(update={"size": size})
    splits = load_splits(source, data, planes)
    train, validate = (tuple(r for r in splits.get(side, []) if usable(r)) for side in ("train", "validate"))
    for plane in planes:
        if not any(record.plane == plane for record in train):
            what = "label maps" if usable is labelled else "findings"
            raise InputError(f"{source}: no {plane} series to train on has {what}. Leave the plane out with --planes.")
    cache = prepared_cache(data)
    fill(cache, [*train, *validate], data.workers, processes, silent)
    return Selection(train, validate, cache)
