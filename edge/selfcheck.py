"""What must hold before studies are sent here, and what of it does not: looked at when the appliance starts, and again
every minute. The model's own part, digests and golden case, is checked by the process that runs it."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from orthokernels.edge import audit
from orthokernels.edge.clock import Clock
from orthokernels.edge.database import Database
from orthokernels.edge.durable import write_durably

LOG = logging.getLogger("orthokernels.edge")
_NAME = "self-check"

# A clock before this has lost its battery; results would bear wrong dates.
_EARLIEST_CLOCK = 1735689600.0  # 2025-01-01

# A clock that was put right may step back by as much without anyone being misled.
_STEP_BACK_SECONDS = 3600.0

# How long a clock that was moved is told of; times on the page and in the audit log are to be read with that in mind.
_TOLD_SECONDS = 86400.0


class SelfCheck:
    """The latest look at disk and clock. ``reasons`` is what was wrong; before the first look, that there was none.

    Attributes:
        notes: what is not wrong any more, and explains what else is seen: that the clock was moved, for a day.
    """

    def __init__(self, data: Path, database: Database) -> None:
        self._data = data
        with database.read() as connection:  # before anything of this start is recorded with today's clock
            self._recorded = audit.last_recorded(connection)
        self._clock = Clock()
        self._moved_at = 0.0
        self.notes: tuple[str, ...] = ()
        self.reasons: tuple[str, ...] = ("disk and clock were not checked yet",)

    def look(self) -> float:
        """Check now. By how many seconds the clock was moved since the last look; negative where it was put back."""
        moved = self._look_at_clock()
        self.reasons = (*disk_faults(self._data), *clock_faults(self._recorded))
        return moved

    def _look_at_clock(self) -> float:
        if moved := self._clock.moved():
            how = "forward" if moved > 0 else "back"
            told = f"the clock was put {how} by {abs(moved):.0f} seconds, to {datetime.now():%Y-%m-%d %H:%M:%S}"
            LOG.warning("%s; check what sets it", told)
            self._moved_at = time.monotonic()
            self.notes = (told,)
        elif self.notes and time.monotonic() - self._moved_at > _TOLD_SECONDS:
            self.notes = ()
        return moved


def disk_faults(data: Path) -> Iterator[str]:
    """Write a file as images are written, read it back, and remove it."""
    path, content = data / _NAME, secrets.token_bytes(4096)
    try:
        write_durably(path, (content,))
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from memory
            same = file.read() == content
        path.unlink()
    except OSError as error:
        yield f"the data folder can't be written ({error.strerror})"
        return
    if not same:
        yield "the disk gave back something else than was written to it"


def clock_faults(recorded: str | None) -> Iterator[str]:
    """Whether the time can be true: past this software's making, and not before what was ``recorded`` (ISO 8601)."""
    now = time.time()
    if now < _EARLIEST_CLOCK:
        yield f"the clock says {datetime.fromtimestamp(now):%Y-%m-%d}, which is wrong; set it"
    elif recorded is not None and datetime.fromisoformat(recorded).timestamp() > now + _STEP_BACK_SECONDS:
        yield f"the clock is behind what the audit log has recorded ({recorded}); set it"
