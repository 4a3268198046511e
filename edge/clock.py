"""The wall clock, by which all that is stored is timed: whether it was moved, and what is made of stored times then.

A time that was stored while the clock was ahead would not be due before the clock gets there again, which may be years.
And one that was stored while it was behind, as after a start without battery or network, would be years ago at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from orthokernels.edge.config import Destination, DimseDestination
from orthokernels.edge.database import Database

# Clocks that are kept in time are moved by fractions of a second at once.
_TOLERATED_SECONDS = 5.0


class Clock:
    """Tells by how much the wall clock was moved. What it is held against runs on while the machine sleeps."""

    def __init__(self) -> None:
        self._ahead = _ahead()

    def moved(self) -> float:
        """By how many seconds since this was last asked; negative where it was put back, 0 where it just ran on."""
        before, self._ahead = self._ahead, _ahead()
        moved = self._ahead - before
        return moved if abs(moved) > _TOLERATED_SECONDS else 0.0


def _ahead() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def pull_back(database: Database, lease_seconds: float, destinations: Iterable[Destination]) -> int:
    """Take stored times that lie further ahead than they ever should to the latest that they may be; what waits for a
    next try is due at once. How many there were."""
    now = time.time()
    latest = {
        ("jobs", "created_at"): now,
        ("jobs", "changed_at"): now,
        ("jobs", "last_image_at"): now,
        ("jobs", "lease_until"): now + lease_seconds,
        ("deliveries", "changed_at"): now,
        ("asides", "received_at"): now,
    }
    with database.write() as connection:
        pulled = 0
        for (table, column), at in latest.items():
            pulled += connection.execute(
                f"UPDATE {table} SET {column} = ? WHERE {column} > ?", (at, at + _TOLERATED_SECONDS)
            ).rowcount
        for one in destinations:
            longest = 1.2 * one.longest_wait_seconds  # with what chance adds to it
            pulled += connection.execute(
                "UPDATE deliveries SET next_try_at = ? WHERE destination = ? AND state = 'waiting' AND next_try_at > ?",
                (now, one.name, now + longest + _TOLERATED_SECONDS),
            ).rowcount
            at = now + (one.commitment_seconds if isinstance(one, DimseDestination) else 0.0)
            pulled += connection.execute(
                "UPDATE deliveries SET commit_until = ? WHERE destination = ? AND commit_until > ?",
                (at, one.name, at + _TOLERATED_SECONDS),
            ).rowcount
    return pulled


def push_on(database: Database, seconds: float) -> int:
    """Let the ages of studies stay what they were where the clock was put forward by so many seconds, so that no file's
    time is over because of that alone. How many times there were."""
    aged = {"jobs": ("created_at", "changed_at", "last_image_at"), "asides": ("received_at",)}
    now = time.time()
    with database.write() as connection:
        return sum(
            connection.execute(f"UPDATE {table} SET {column} = min({column} + ?, ?)", (seconds, now)).rowcount
            for table, columns in aged.items()
            for column in columns
        )
