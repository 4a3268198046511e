"""What may go: images and results that every destination has; and once they had their time, results that no destination
was to get, rejections, what a person gave up on, and images that were set aside. Nothing else."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from orthokernels.edge import audit, viewing
from orthokernels.edge.config import Disk, Retention
from orthokernels.edge.durable import name_of
from orthokernels.edge.receive.intake import no_room, used_share
from orthokernels.edge.states import DELIVERED, State
from orthokernels.edge.store import Job, Store

LOG = logging.getLogger("orthokernels.edge.retention")
_DAY = 86400.0

# For the images that come before the next look: a study or two.
_ROOM_BYTES = 2**30

_FINISHED: tuple[State, ...] = (*DELIVERED, "rejected", "discarded")

# Images of :job that no later job has.
_IMAGES = (
    "SELECT instance FROM job_instances AS own WHERE own.job = :job AND NOT EXISTS "
    "(SELECT 1 FROM job_instances AS later WHERE later.instance = own.instance AND later.job > own.job)"
)

# Of the studies that have files, as the cross join's order says: finished jobs are many more in time. With :full, what
# was delivered at any time.
_CANDIDATES = (
    "WITH here AS (SELECT study_uid FROM instances WHERE file IS NOT NULL "
    "UNION SELECT study_uid FROM objects JOIN jobs ON jobs.id = job WHERE file IS NOT NULL) "
    "SELECT jobs.*, changed_at < CASE kind WHEN 'delivered' THEN :delivered WHEN 'kept here' THEN :kept_here "
    "ELSE :rejected END AS over FROM here CROSS JOIN (SELECT *, CASE WHEN state NOT IN ({delivered}) THEN 'rejected' "
    "WHEN EXISTS (SELECT 1 FROM deliveries WHERE job = jobs.id) THEN 'delivered' ELSE 'kept here' END AS kind "
    "FROM jobs) AS jobs ON jobs.study_uid = here.study_uid "
    "WHERE state IN ({finished}) AND (over OR (:full AND kind = 'delivered')) "
    "AND NOT EXISTS (SELECT 1 FROM deliveries WHERE job = jobs.id AND "
    "(state IN ('waiting', 'dead') OR commit_until IS NOT NULL)) ORDER BY changed_at"
).format(
    delivered=", ".join(f"'{state}'" for state in DELIVERED), finished=", ".join(f"'{state}'" for state in _FINISHED)
)


class Cleaner:
    """Removes files; the rows stay, so that it is still known what came."""

    def __init__(self, store: Store, data: Path, disk: Disk, retention: Retention) -> None:
        self._store = store
        self._data = data
        self._disk = disk
        self._retention = retention

    def clean(self) -> int:
        """Remove what had its time and, on a full disk, what is delivered, oldest first. How many jobs went."""
        now = time.time()
        removed = 0
        for job, over in self._candidates(now):
            if (over or self._full()) and self._files(job):
                self._remove(job)
                removed += 1
        self._remove_asides(now - self._retention.rejected_days * _DAY)
        return removed

    def _full(self) -> bool:
        """Whether what was delivered is to make room: images would be refused for its sake."""
        wanted = no_room(self._data, self._disk, _ROOM_BYTES) is not None
        return wanted or used_share(self._data) > self._disk.clean_above

    def _candidates(self, now: float) -> list[tuple[Job, bool]]:
        """Finished jobs, oldest first, of which no destination is owed anything, or may be again, and whether each had
        its time: those that had; and on a full disk all that were delivered. What was kept here, as no destination was
        to get it, is nowhere else, and a full disk does not shorten its time.

        All are of studies with files: what went long ago costs nothing.
        """
        days = {
            "delivered": self._retention.delivered_days,
            "kept_here": self._retention.kept_here_days,
            "rejected": self._retention.rejected_days,
        }
        bounds = {kind: now - own * _DAY for kind, own in days.items()}
        with self._store.database.read() as connection:
            rows = connection.execute(_CANDIDATES, {**bounds, "full": self._full()}).fetchall()
        return [(Job.of(row), bool(row["over"])) for row in rows]

    def _files(self, job: Job) -> list[str]:
        """What goes with a job: its objects, and its images unless a later version has them too."""
        with self._store.database.read() as connection:
            rows = connection.execute(
                f"SELECT file FROM instances WHERE file IS NOT NULL AND id IN ({_IMAGES}) "
                "UNION SELECT file FROM objects WHERE file IS NOT NULL AND job = :job",
                {"job": job.id},
            ).fetchall()
        return [row["file"] for row in rows]

    def _remove_asides(self, before: float) -> None:
        """Images with a known UID and other content, which nothing is made of, that came before this."""
        with self._store.database.write() as connection:
            rows = connection.execute(
                "DELETE FROM asides WHERE received_at < ? RETURNING sop_uid, file", (before,)
            ).fetchall()
            for row in rows:
                audit.append(connection, "removed", "appliance", name_of(row["sop_uid"]), "it had been set aside")
        for row in rows:
            (self._data / row["file"]).unlink(missing_ok=True)

    def _remove(self, job: Job) -> None:
        """Rows first: a file that no row speaks of is swept up at the next start; a row without its file would lie."""
        with self._store.database.write() as connection:
            files = self._files(job)
            connection.execute(f"UPDATE instances SET file = NULL WHERE id IN ({_IMAGES})", {"job": job.id})
            connection.execute("UPDATE objects SET file = NULL WHERE job = ?", (job.id,))
            audit.append(connection, "removed", "appliance", job.name)
        for file in files:
            (self._data / file).unlink(missing_ok=True)
        for folder in {(self._data / file).parent for file in files}:
            shutil.rmtree(folder / viewing.FOLDER, ignore_errors=True)
        LOG.info("%s: %d files were removed", job.name, len(files))
