"""What may go: images and results that every destination has; and once they had their time, rejections, what a person
gave up on, and images that were set aside. Nothing else."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from orthokernels.edge import audit, viewing
from orthokernels.edge.config import Disk, Retention
from orthokernels.edge.durable import name_of
from orthokernels.edge.states import DELIVERED, State
from orthokernels.edge.store import Job, Store

LOG = logging.getLogger("orthokernels.edge.retention")
_DAY = 86400.0
_FINISHED: tuple[State, ...] = (*DELIVERED, "rejected", "discarded")

# Images of :job that no later job has.
_IMAGES = (
    "SELECT instance FROM job_instances AS own WHERE own.job = :job AND NOT EXISTS "
    "(SELECT 1 FROM job_instances AS later WHERE later.instance = own.instance AND later.job > own.job)"
)

# Of the studies that have files, as the cross join's order says: finished jobs are many more in time.
_CANDIDATES = (
    "WITH here AS (SELECT study_uid FROM instances WHERE file IS NOT NULL "
    "UNION SELECT study_uid FROM objects JOIN jobs ON jobs.id = job WHERE file IS NOT NULL) "
    "SELECT jobs.* FROM here CROSS JOIN jobs ON jobs.study_uid = here.study_uid WHERE ("
    + " OR ".join(f"(state = '{state}' AND changed_at < :{state})" for state in _FINISHED)
    + ") AND NOT EXISTS (SELECT 1 FROM deliveries WHERE job = jobs.id AND "
    "(state IN ('waiting', 'dead') OR commit_until IS NOT NULL)) ORDER BY changed_at"
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
        for job in self._candidates(now, full=self._full()):
            if (job.changed_at < self._until(job.state, now) or self._full()) and self._files(job):
                self._remove(job)
                removed += 1
        self._remove_asides(now - self._retention.rejected_days * _DAY)
        return removed

    def _full(self) -> bool:
        usage = shutil.disk_usage(self._data)
        return usage.total - usage.free > self._disk.clean_above * usage.total

    def _until(self, state: State, now: float) -> float:
        """What finished in this state before this moment had its time."""
        days = self._retention.delivered_days if state in DELIVERED else self._retention.rejected_days
        return now - days * _DAY

    def _candidates(self, now: float, *, full: bool) -> list[Job]:
        """Finished jobs that had their time, oldest first, of which no destination is owed anything, or may be again;
        on a full disk delivered ones of any age. All are of studies with files: what went long ago costs nothing."""
        until = {state: now if full and state in DELIVERED else self._until(state, now) for state in _FINISHED}
        with self._store.database.read() as connection:
            rows = connection.execute(_CANDIDATES, until).fetchall()
        return [Job.of(row) for row in rows]

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
