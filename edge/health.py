"""How each destination does: when it last took a study, when and why it last did not, and what waits for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orthokernels.edge import audit
from orthokernels.edge.config import Destination
from orthokernels.edge.database import Database


@dataclass(frozen=True)
class Health:
    """One destination.

    Attributes:
        configured: False for one that old deliveries name and the configuration no longer does.
        waiting, dead: jobs owed to it, and jobs that it did not take after the last try.
        next_try_at, last_success_at, last_failure_at: seconds since 1970, where there is one.
        last_failure: why.
        state: what happened last, in one word: "unused", "failing" or "taking".
    """

    name: str
    configured: bool
    waiting: int
    dead: tuple[int, ...]
    next_try_at: float | None
    last_success_at: float | None
    last_failure_at: float | None
    last_failure: str | None
    state: str


def destinations_health(database: Database, destinations: Sequence[Destination]) -> list[Health]:
    """Every configured destination in the configuration's order, then others that deliveries still name."""
    with database.read() as connection:
        rows = connection.execute(
            "SELECT destination, state, job, next_try_at FROM deliveries WHERE state IN ('waiting', 'dead') "
            "ORDER BY job"
        ).fetchall()
    names = [destination.name for destination in destinations]
    known = set(names)
    names += sorted({row["destination"] for row in rows} - known)
    return [
        _health(database, name, name in known, [row for row in rows if row["destination"] == name]) for name in names
    ]


def _health(database: Database, name: str, configured: bool, owed: Sequence[sqlite3.Row]) -> Health:
    success, failure = (audit.latest(database, event, name) for event in ("delivered", "not delivered"))
    waiting = [row["next_try_at"] for row in owed if row["state"] == "waiting"]
    return Health(
        name=name,
        configured=configured,
        waiting=len(waiting),
        dead=tuple(row["job"] for row in owed if row["state"] == "dead"),
        next_try_at=min(waiting, default=None),
        last_success_at=_seconds(success),
        last_failure_at=_seconds(failure),
        last_failure=failure["outcome"] if failure else None,
        state=_state(success, failure),
    )


def _state(success: dict[str, Any] | None, failure: dict[str, Any] | None) -> str:
    """By the entries' numbers: the clock may have been put back between them."""
    if success is None and failure is None:
        return "unused"
    return "failing" if success is None or (failure and failure["number"] > success["number"]) else "taking"


def _seconds(entry: dict[str, Any] | None) -> float | None:
    return datetime.fromisoformat(entry["at"]).timestamp() if entry else None
