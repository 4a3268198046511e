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
from orthokernels.edge.states import DELIVERED
from orthokernels.edge.store import Job, Store

LOG = logging.getLogger("orthokernels.edge.retention")
_DAY = 86400.0

# Images of :job that no later job has.
_IMAGES = (
    "SELECT instance FROM job_instances AS own WHERE own.job = :job AND NOT EXISTS "
    "(SELECT 1 FROM job_instances AS later WHERE later.instance = own.instance AND later.job > own.job)"
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
        for job in self._candidates():
            days = self._retention.delivered_days if job.state in DELIVERED else self._retention.rejected_days
            if now - job.changed_at > days * _DAY or (job.state in DELIVERED and self._full()):
                self._remove(job)
                removed += 1
        self._remove_asides(now - self._retention.rejected_days * _DAY)
        return removed

    def _full(self) -> bool:
        usage = shutil.disk_usage(self._data)
        return usage.total - usage.free > self._disk.clean_above * usage.total

    def _candidates(self) -> list[Job]:
        """Finished jobs with files, oldest first, of which no destination is owed anything, or may be again."""
        finished = (*DELIVERED, "rejected", "discarded")
        with self._store.database.read() as connection:
            rows = connection.execute(
                f"SELECT * FROM jobs WHERE state IN ({','.join('?' * len(finished))}) AND id NOT IN "
                "(SELECT job FROM deliveries WHERE state IN ('waiting', 'dead') OR commit_until IS NOT NULL) "
                "ORDER BY changed_at",
                finished,
            ).fetchall()
        return [job for job in map(Job.of, rows) if self._files(job)]

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
