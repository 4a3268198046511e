"""Who did what, when, and how it ended: a list that only grows, each entry sealed by the digest of the one before.

Patients and studies appear as hashes. A changed or removed entry breaks every digest after it; a cut end is found by
comparing with an export that was made earlier.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from orthokernels.edge.database import Database

_SEALED = ("number", "at", "event", "actor", "subject", "outcome", "previous")
_FIRST = "0" * 64


def append(connection: sqlite3.Connection, event: str, actor: str, subject: str, outcome: str = "success") -> None:
    """Add an entry within the transaction of what it tells of."""
    last = connection.execute("SELECT number, digest FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    entry = {
        "number": last["number"] + 1 if last else 1,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": event,
        "actor": actor,
        "subject": subject,
        "outcome": outcome,
        "previous": last["digest"] if last else _FIRST,
    }
    connection.execute(
        "INSERT INTO audit (number, at, event, actor, subject, outcome, previous, digest) VALUES (?,?,?,?,?,?,?,?)",
        (*entry.values(), _digest(entry)),
    )


def entries(database: Database) -> Iterator[dict[str, object]]:
    """Every entry, oldest first, with ``intact``: it and its link to the one before are as they were written."""
    previous, number = _FIRST, 0
    while True:
        with database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM audit WHERE number > ? ORDER BY number LIMIT 1000", (number,)
            ).fetchall()
        if not rows:
            return
        for row in rows:
            entry = dict(row)
            linked = entry["previous"] == previous and entry["number"] == number + 1
            entry["intact"] = linked and entry["digest"] == _digest({name: entry[name] for name in _SEALED})
            previous, number = entry["digest"], entry["number"]
            yield entry


def of_subject(database: Database, subject: str) -> list[dict[str, str]]:
    """What happened to one study's version, oldest first: ``at`` (ISO 8601, UTC), ``event``, ``actor``, ``outcome``."""
    with database.read() as connection:
        rows = connection.execute(
            "SELECT at, event, actor, outcome FROM audit WHERE subject = ? ORDER BY number", (subject,)
        ).fetchall()
    return [dict(row) for row in rows]


def latest(database: Database, event: str, actor: str) -> dict[str, Any] | None:
    """The latest entry of one kind by one actor: ``number``, ``at`` and ``outcome``."""
    with database.read() as connection:
        row = connection.execute(
            "SELECT number, at, outcome FROM audit WHERE actor = ? AND event = ? ORDER BY number DESC LIMIT 1",
            (actor, event),
        ).fetchone()
    return dict(row) if row else None


def last_recorded(connection: sqlite3.Connection) -> str | None:
    """When the latest entry was made, by its number (ISO 8601): one that a wrong clock dated to the future does not
    outlast those that follow it."""
    row = connection.execute("SELECT at FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    return str(row[0]) if row else None


def _digest(entry: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
