"""Slabs for training and validation, and the stream of batches each process reads.

Training samples are numbered from 0 without end. A step of the whole run takes ``processes x batch`` consecutive
numbers per pass, and each process its own part of them, so the data position of a run is one number.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from orthokernels.data.prepare import SLAB, slab_starts
from orthokernels.errors import InputError
from orthokernels.training.augment import augment
from orthokernels.training.cache import PreparedCache
from orthokernels.training.config import AugmentConfig
from orthokernels.training.randomness import Order, Stream, generator
from orthokernels.training.series import IGNORED, MIN_MASKED_SLICES, Record

Batch = dict[str, Any]

# What of a batch says where its samples come from.
PLACES = ("number", "record", "start")


class Samples(Protocol):
    """Training samples by number, from 0 without end; each a dict with at least "number" (int) and "file" (str)."""

    def __getitem__(self, number: int) -> Batch: ...


class TrainingSlabs:
    """Slabs at random slices, shuffled in passes over the records.

    Every second slab, by chance, lies where inference cuts the volume. With places drawn evenly alone, the first slice
    of a series would be in one slab of a dozen, and what lies at its end, as a fibula does, would hardly be seen.
    A share of ``placed`` of the slabs (and their crops) holds a random voxel of a structure that is drawn evenly from
    those that the series shows, as nnU-Net does for classes that random patches seldom meet. From the number
    ``whole_from`` on nothing is cropped.

    Sample: "image" float32 (1, 16, S, S), "number", "file", "record" (index), "start" (first network slice), and with
    ``labelled`` "labels" int64 (16, S, S), -1 = ignored. Where only some slices are labelled, slabs with at least two
    of them are taken.
    """

    def __init__(
        self,
        cache: PreparedCache,
        records: Sequence[Record],
        seed: int,
        changes: AugmentConfig,
        *,
        labelled: bool = False,
        placed: float = 0.0,
        whole_from: int | None = None,
    ) -> None:
        self.cache, self.records, self.seed, self.changes, self.labelled = cache, list(records), seed, changes, labelled
        self.placed, self.whole_from = placed, whole_from
        self.whole = changes.model_copy(update={"crop": None})
        self._order = Order(len(self.records), seed)

    def __getitem__(self, number: int) -> Batch:
        index = self._order[number]
        record = self.records[index]
        rng = generator(self.seed, Stream.AUGMENT, number)
        starts = self._starts(record)
        as_inference = np.intersect1d(starts, slab_starts(self.cache.depth(record)))
        if len(as_inference) and rng.random() < 0.5:
            starts = as_inference
        around = None
        if self.placed and rng.random() < self.placed and (voxel := self._voxel(record, rng)) is not None:
            near = starts[(starts <= voxel[0]) & (voxel[0] < starts + SLAB)]
            starts, around = (near, voxel[1:]) if len(near) else (starts, None)
        start = int(starts[rng.integers(len(starts))])
        image = self.cache.slices(record, start, start + SLAB)
        labels = self.cache.labels(record, start, start + SLAB) if self.labelled else None
        whole = self.whole_from is not None and number >= self.whole_from
        image, labels = augment(image, labels, self.whole if whole else self.changes, rng, around)
        return _sample(number, record, index, start, image, labels)

    def _voxel(self, record: Record, rng: np.random.Generator) -> tuple[int, int, int] | None:
        """A voxel (slice, row, column) of one of the structures that the record shows; None where it shows none."""
        labels = self.cache.labels(record)
        classes = np.flatnonzero(np.bincount(labels[labels > 0]))
        if not len(classes):
            return None
        voxels = np.flatnonzero(labels == classes[rng.integers(len(classes))])
        place = np.unravel_index(voxels[rng.integers(len(voxels))], labels.shape)
        return int(place[0]), int(place[1]), int(place[2])

    def _starts(self, record: Record) -> np.ndarray:
        starts = np.arange(self.cache.depth(record) - SLAB + 1)
        if not (self.labelled and record.masks):
            return starts
        has_labels = (self.cache.labels(record) != IGNORED).any(axis=(1, 2))
        counts = np.array([has_labels[s : s + SLAB].sum() for s in starts])
        return starts[counts >= min(MIN_MASKED_SLICES, counts.max())]


class FixedSlabs:
    """Given slabs of given records, unchanged, for validation; samples as ``TrainingSlabs`` gives them."""

    def __init__(self, cache: PreparedCache, slabs: Sequence[tuple[Record, int]], *, labelled: bool = False) -> None:
        self.cache, self.slabs, self.labelled = cache, list(slabs), labelled

    def __len__(self) -> int:
        return len(self.slabs)

    def __getitem__(self, number: int) -> Batch:
        record, start = self.slabs[number]
        image = self.cache.slices(record, start, start + SLAB)
        labels = self.cache.labels(record, start, start + SLAB) if self.labelled else None
        return _sample(number, record, number, start, image, labels)


def covering_slabs(cache: PreparedCache, records: Sequence[Record]) -> list[tuple[Record, int]]:
    """Every record's slabs as inference cuts them: as few as cover all its slices."""
    return [(record, start) for record in records for start in slab_starts(cache.depth(record))]


def _sample(number: int, record: Record, index: int, start: int, image: np.ndarray, labels: np.ndarray | None) -> Batch:
    sample = {
        "image": torch.from_numpy(np.ascontiguousarray(image)[None]),
        "number": number,
        "file": str(record.image),
        "record": index,
        "start": start,
    }
    if labels is not None:
        sample["labels"] = torch.from_numpy(labels.astype(np.int64))
    return sample


class Numbers:
    """The sample numbers of one process's passes, from a given pass on, without end."""

    def __init__(self, batch: int, first_pass: int, rank: int, world: int) -> None:
        self.batch, self.first_pass, self.rank, self.world = batch, first_pass, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        place = self.first_pass
        while True:
            first = (place * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))
            place += 1


def batches(samples: Samples, numbers: Numbers, *, workers: int, prefetch: int, pin: bool) -> Iterator[Batch]:
    """Batches without end: tensors stacked, file names as a list.

    Raises:
        InputError: a sample could not be read (in whichever process).
    """
    settings: dict[str, Any] = {"prefetch_factor": prefetch, "persistent_workers": True} if workers else {}
    loader: Any = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=numbers,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # its own: a loader draws a seed when it starts, also when a run is taken up
        **settings,
    )
    try:
        yield from loader
    except InputError as error:  # from a worker its text is a traceback, our sentence last
        raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from error


def _leave_signals(worker: int) -> None:
    """Ctrl-C and schedulers signal every process of a group, but stopping is the training process's business.

    A worker that died of SIGTERM would raise an error in the middle of a step. It ends when its parent asks, as PyTorch
    does with SIGTERM when it closes a loader.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_parent_asks, daemon=True).start()


def _end_when_parent_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def fixed_batches(samples: FixedSlabs, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """Every ``world``-th sample from ``rank`` on, once, in batches read in this process."""
    own = range(rank, len(samples), world)
    for first in range(0, len(own), batch):
        yield torch.utils.data.default_collate([samples[n] for n in own[first : first + batch]])
