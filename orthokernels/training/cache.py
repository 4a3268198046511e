"""Prepared volumes on disk: decoded, resized and normalised once, then read slab by slab through a memory map.

Each entry is one .npy file whose name is a hash of what it was made from: every source file's path, size and time of
change, the preparation and this file's version. An entry is written beside its place and renamed, so whatever is there
is whole, also after a kill; one that can not be read is made again.

Slices are stored as uint16 over [-1, 1], so a stored value is off by at most 2^-16 (12-bit images need 2^-13).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from orthokernels.data.prepare import SIZE, Mode, prepare, prepare_labels
from orthokernels.errors import InputError
from orthokernels.training.series import IGNORED, Record, load_labels, load_volume

_VERSION = 1
_STEPS = 65535  # of uint16 over [-1, 1]


class PreparedCache:
    """Prepared slices and labels of records, made where they are missing.

    Args:
        folder: where entries lie; shared by any number of processes.
        size: side of the network's square slices.
        mode: "published" (the centre 16 slices) or "full" (all, turned to the plane's usual view).
    """

    def __init__(self, folder: Path, size: int = SIZE, mode: Mode = "full") -> None:
        self.folder, self.size, self.mode = Path(folder), size, mode
        # Paths are worked out once; maps are not kept, since each holds a file descriptor.
        self._paths: dict[tuple[Record, str], Path] = {}

    def slices(self, record: Record, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Network slices ``start`` to ``stop``, float32 (K, size, size) in [-1, 1].

        Raises:
            InputError: the image can not be read or prepared.
        """
        stored = self._entry(record, "slices")[start:stop]
        return stored.astype(np.float32) * np.float32(2.0 / _STEPS) - np.float32(1.0)

    def labels(self, record: Record, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Labels of the same slices, int8 (K, size, size), -1 = ignored; all -1 for a record without labels.

        Raises:
            InputError: labels can not be read, or do not fit the image.
        """
        if not record.labelled:
            return np.full(self._entry(record, "slices")[start:stop].shape, IGNORED, np.int8)
        return np.array(self._entry(record, "labels")[start:stop])

    def depth(self, record: Record) -> int:
        """How many network slices the record has."""
        return len(self._entry(record, "slices"))

    def fill(
        self, records: Sequence[Record], workers: int = 1, tell: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Make all missing entries, by ``workers`` processes; ``tell`` is given the numbers done and in all.

        Raises:
            InputError: of the first record that can not be prepared.
        """
        missing = [record for record in records if not self._complete(record)]
        if workers <= 1 or len(missing) < 2:
            for done, record in enumerate(missing):
                self._make(record)
                tell(done + 1, len(missing))
            return
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        # Forking a process that runs threads may hang, so workers start afresh.
        with ProcessPoolExecutor(min(workers, len(missing)), multiprocessing.get_context("spawn")) as pool:
            tell(0, len(missing))
            for done, _ in enumerate(pool.map(_make_entry, [(self.folder, self.size, self.mode, r) for r in missing])):
                tell(done + 1, len(missing))

    def key(self, record: Record) -> str:
        """A name for the record's prepared slices, which changes with anything they were made from."""
        return self._path(record, "slices").name

    def _complete(self, record: Record) -> bool:
        kinds = ("slices", "labels") if record.labelled else ("slices",)
        return all(self._read(self._path(record, kind), kind) is not None for kind in kinds)

    def _entry(self, record: Record, kind: str) -> np.ndarray:
        path = self._paths.get((record, kind))
        if path is None:
            path = self._paths[record, kind] = self._path(record, kind)
        found = self._read(path, kind)
        if found is None:
            self._make(record)
            found = self._read(path, kind)
        if found is None:
            raise InputError(f"{record.image}: changes while it is read, or the cache {self.folder} loses its entry.")
        return found

    def _path(self, record: Record, kind: str) -> Path:
        files = record.files() + (record.label_files() if kind == "labels" else [])
        told = [f"{_VERSION} {kind} {self.mode} {self.size} {record.plane}"]
        try:
            for path in files:
                stat = path.stat()
                told.append(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")
        except OSError as error:
            raise InputError(f"{error.filename}: can't be read ({error.strerror}).") from error
        if kind == "labels":
            told.append(f"{[number for number, _ in record.masks]} {record.masks_decreasing} {record.masks_mirrored}")
        return entry_path(self.folder, "\n".join(told), kind)

    def _read(self, path: Path, kind: str) -> np.ndarray | None:
        """A memory map of an entry; None where it is missing or broken."""
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        expected = np.uint16 if kind == "slices" else np.int8
        whole = found.dtype == expected and found.ndim == 3 and found.shape[1:] == (self.size, self.size)
        return found if whole else None

    def _make(self, record: Record) -> None:
        volume = load_volume(record)
        prepared = prepare(volume, self.mode, self.size)
        scaled = np.clip((prepared.slices + 1.0) * (_STEPS / 2), 0, _STEPS)
        if record.labelled:
            labels = prepare_labels(load_labels(record, volume), prepared.way_back)
            write_array(self._path(record, "labels"), labels)
        write_array(self._path(record, "slices"), np.rint(scaled).astype(np.uint16))


def entry_path(folder: Path, told: str, kind: str) -> Path:
    """Where an entry of a cache lies that depends on all of ``told``."""
    digest = hashlib.sha256(told.encode()).hexdigest()
    return folder / digest[:2] / f"{digest[2:34]}.{kind}.npy"


def write_array(path: Path, array: np.ndarray) -> None:
    """One .npy file, written beside its place, brought to the disk, then renamed: whatever is there is whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as file:
            try:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror}). Name another cache folder.") from error


def _make_entry(job: tuple[Path, int, Mode, Record]) -> None:
    folder, size, mode, record = job
    PreparedCache(folder, size, mode)._make(record)
