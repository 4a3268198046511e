"""A watched folder: DICOM files that are put there are taken in like those from the network, and leave it."""

from __future__ import annotations

import io
import logging
import os
import stat
import threading
import time
from pathlib import Path

from orthokernels.edge.config import Watch
from orthokernels.edge.receive.identity import ends_early
from orthokernels.edge.receive.intake import Arrival, Intake, Refused, Status
from orthokernels.edge.receive.part10 import check_readable, read_meta

LOG = logging.getLogger("orthokernels.edge.receive")

REJECTED = "rejected"
UNFINISHED_SECONDS = 600.0  # a file that ends early may be a copy that stalled; after this it is a broken one
_SOURCE = "watched folder"

# While there is no room, files are read, and it is told, this often.
_ROOM_SECONDS = 30.0


class FolderWatcher:
    """Empties a folder. What can't be taken in is moved to its ``rejected`` folder; what may be later, stays."""

    def __init__(self, watch: Watch, intake: Intake) -> None:
        self._watch = watch
        self._intake = intake
        self._most_bytes = intake.limits.bytes_per_instance
        self._no_room_until = 0.0
        self._told: set[Path] = set()  # files that could not be dealt with, until they are gone
        # Time of change, size, and since when both were seen as they are: by our own clock, since a share has another.
        self._seen: dict[Path, tuple[int, int, float]] = {}

    def run(self, stop: threading.Event) -> None:
        """Look once a second until told to stop."""
        while not stop.wait(1.0):
            try:
                self.look()
            except OSError:
                LOG.exception("the watched folder can't be read")

    def look(self) -> int:
        """Take in every file that has stopped changing; how many there were. One that can't be read, moved or removed
        holds up no other; it is told once, and tried again each time."""
        if time.monotonic() < self._no_room_until:
            return 0
        taken = 0
        failed: set[Path] = set()
        for path, seconds in self._settled():
            try:
                try:
                    read = self._take(path, seconds)
                    if read is not None and read == _state(path.lstat()):  # or another was put there meanwhile
                        path.unlink()
                        taken += 1
                except Refused as refusal:
                    if refusal.status == Status.OUT_OF_RESOURCES:
                        self._no_room_until = time.monotonic() + _ROOM_SECONDS  # it may come
                        return taken
                    self._reject(path)
            except OSError as error:
                failed.add(path)
                if path not in self._told:
                    LOG.error("a file in the watched folder can't be read or removed: %s", error.strerror)
                self._told.add(path)
        self._told = failed
        return taken

    def _settled(self) -> list[tuple[Path, float]]:
        """Files that were not changed for long enough, and for how many seconds they were not."""
        found = [(path, time.monotonic() - since) for path, (_, _, since) in self._look_through().items()]
        return [(path, seconds) for path, seconds in found if seconds >= self._watch.seconds_unchanged]

    def _look_through(self) -> dict[Path, tuple[int, int, float]]:
        """All files that are there, as ``_seen``."""
        now, before, self._seen = time.monotonic(), self._seen, {}
        rejected = self._watch.folder / REJECTED
        for place, folders, names in os.walk(self._watch.folder):  # links to folders are not followed
            folders[:] = sorted(name for name in folders if Path(place, name) != rejected)
            for name in sorted(names):
                path = Path(place, name)
                try:
                    found = path.lstat()
                except OSError:
                    continue  # gone since it was listed
                if not stat.S_ISREG(found.st_mode) or name.startswith(".") or path == rejected:
                    continue
                *same, since = before.get(path, (0, 0, now))
                if same != [*_state(found)]:
                    since = now
                self._seen[path] = *_state(found), since
        return self._seen

    def _take(self, path: Path, seconds: float) -> tuple[int, int] | None:
        """Take a file in that was not changed for so long, and tell which one it was, as ``_state``; None where it ends
        early and may not be whole yet."""
        if path.stat().st_size > self._most_bytes:
            raise Refused(Status.NOT_UNDERSTOOD, "it is larger than an instance may be")
        with path.open("rb") as file:
            state = _state(os.fstat(file.fileno()))
            found = read_meta(file)
            check_readable(found)
            content = io.BytesIO(file.read())
        if ends_early(content, found.syntax):
            if seconds < UNFINISHED_SECONDS:
                return None
            raise Refused(Status.NOT_UNDERSTOOD, "it ends before its data set does")
        self._intake.take(Arrival(content, found.syntax, _SOURCE, self._watch.priority, sop_class=found.sop_class))
        return state

    def _reject(self, path: Path) -> None:
        rejected = self._watch.folder / REJECTED
        rejected.mkdir(exist_ok=True)
        os.replace(path, _unused(rejected / path.name))
        LOG.warning("a file in the watched folder can't be taken in; it is in %s", rejected)


def _state(found: os.stat_result) -> tuple[int, int]:
    """By what a file is known to be the same as before: time of change and size."""
    return found.st_mtime_ns, found.st_size


def _unused(path: Path) -> Path:
    """``path``, or where something lies there already, the same with a number: folders have files of the same name."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free
