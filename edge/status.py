"""What the appliance says of itself: to a person at the console, and to probes."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from orthokernels.edge.config import Config
from orthokernels.edge.database import Database
from orthokernels.edge.receive.intake import no_room, used_share
from orthokernels.edge.states import STATES, WAITING
from orthokernels.edge.store import Store


def summary(config: Config, database: Database) -> dict[str, Any]:
    """Counts, the oldest study that waits, destinations and disk; nothing that names a patient."""
    marks = ",".join("?" * len(WAITING))
    with database.read() as connection:
        counted = dict(connection.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        oldest = connection.execute(f"SELECT min(created_at) FROM jobs WHERE state IN ({marks})", WAITING).fetchone()[0]
        owed = connection.execute("SELECT destination, state, count(*) FROM deliveries GROUP BY 1, 2").fetchall()
        forms = connection.execute(
            "SELECT destination, form, count(*) FROM delivery_forms JOIN deliveries ON id = delivery GROUP BY 1, 2"
        ).fetchall()
        aside = connection.execute("SELECT count(*) FROM asides").fetchone()[0]
    destinations: dict[str, dict[str, int]] = {destination.name: {} for destination in config.destinations}
    for name, state, count in owed:
        destinations.setdefault(name, {})[state] = count
    segmentations: dict[str, dict[str, int]] = {}
    for name, form, count in forms:
        segmentations.setdefault(name, {})[form] = count
    return {
        "jobs": {state: counted.get(state, 0) for state in STATES},
        "oldest_waiting_seconds": round(time.time() - oldest) if oldest else 0,
        "destinations": destinations,
        "segmentations": segmentations,
        "set_aside": aside,
        "disk_free_bytes": shutil.disk_usage(config.appliance.data).free,
        "disk_used": round(used_share(config.appliance.data), 3),
        "refuses_because": _refuses_because(config, sum(counted.get(state, 0) for state in WAITING)),
    }


def _refuses_because(config: Config, waiting: int) -> str | None:
    """Why images of a new study are not taken in now, or None."""
    if told := no_room(config.appliance.data, config.disk):
        return told
    if waiting >= config.receive.limits.waiting_studies:
        return f"{waiting} studies are waiting, and no new one is taken in until one of them is done"
    return None


def recent(store: Store, limit: int = 100) -> list[dict[str, Any]]:
    """The latest jobs and, however old, those put aside, which wait for a person; newest first. A study appears as a
    hash."""
    latest = store.jobs(limit=limit)
    listed = {job.id for job in latest}
    latest += [job for job in store.jobs(("dead",)) if job.id not in listed]
    return [
        {
            "id": job.id,
            "study": job.name,
            "state": job.state,
            "progress": job.progress,
            "reason": job.reason,
            "images": len(store.files(job.id)),
            "priority": job.priority,
            "changed_at": job.changed_at,
        }
        for job in latest
    ]


def open_store(config: Config) -> Store:
    """The store of an appliance that may be running; the folder is not made where it is absent.

    Raises:
        InputError: there is none, or this user may not enter the folder, which is the service's user's alone.
    """
    from orthokernels.edge.database import NAME

    from orthokernels.errors import InputError

    path = Path(config.appliance.data) / NAME
    try:
        there = path.is_file()
    except PermissionError as error:
        raise InputError(f"{path}: can't be read by this user. Call this as the service's: sudo -u ...") from error
    if not there:
        raise InputError(f"{path}: is not there. Start the appliance first: orthokernels edge serve")
    return Store(Database(config.appliance.data))
