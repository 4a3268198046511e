"""Images and jobs: what was received, and how far each version of each study has come.

A job's state changes in ``Store.move`` and nowhere else; every change is one synced transaction with its audit entry.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple, Self

from orthokernels.edge import audit
from orthokernels.edge.bell import Bell
from orthokernels.edge.config import Settle
from orthokernels.edge.database import Database
from orthokernels.edge.durable import name_of
from orthokernels.edge.states import DELIVERED, FOLLOWS, LEASED, OPEN, WAITING, State

from orthokernels.errors import InputError

# What the headers said of a study's completeness: "partial" that a plane is lacking, "unfit" that no volume can be made
# of it.
Verdict = Literal["whole", "unknown", "partial", "missing", "unfit"]


@dataclass(frozen=True)
class Image:
    """One received instance, as its row holds it. ``file`` is below the data folder."""

    sop_uid: str
    sop_class: str
    study_uid: str
    series_uid: str
    digest: str
    bytes: int
    file: str
    source: str


@dataclass(frozen=True)
class Job:
    """One version of one study. Times are seconds since 1970."""

    id: int
    study_uid: str
    version: int
    state: State
    reason: str | None
    priority: int
    created_at: float
    changed_at: float
    last_image_at: float
    examined: Verdict | None
    because: str | None
    inputs_digest: str | None
    attempts: int
    progress: str | None

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        return cls(**{field.name: row[field.name] for field in fields(cls)})

    @property
    def name(self) -> str:
        """What logs and folders call it: a hash of the study, and the version."""
        return f"{name_of(self.study_uid)}-{self.version}"


class Known(NamedTuple):
    """What is known of an instance: its digest, and whether its file is still here."""

    digest: str
    here: bool


class LostLeaseError(Exception):
    """Someone else holds the job now, or an image came meanwhile: what was made is dropped."""


class Store:
    """The queue."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ready = Bell()  # rings when there may be something for a worker

    def known(self, sop_uid: str) -> Known | None:
        """The instance with this UID, if it was ever received."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT digest, file IS NOT NULL AS here FROM instances WHERE sop_uid = ?", (sop_uid,)
            ).fetchone()
        return Known(row["digest"], bool(row["here"])) if row else None

    def add(self, image: Image, priority: int) -> None:
        """Record an instance; it joins its study's job, or begins a new version if that one's work has begun.

        Raises:
            sqlite3.IntegrityError: an instance with this UID is there already.
        """
        now = time.time()
        with self.database.write() as connection:
            values = (*vars(image).values(), now)
            instance = connection.execute(
                "INSERT INTO instances (sop_uid, sop_class, study_uid, series_uid, digest, bytes, file, source, "
                "received_at) VALUES (?,?,?,?,?,?,?,?,?)",
                values,
            ).lastrowid
            assert instance is not None
            job = self._latest(connection, image.study_uid)
            if job is None or job.state not in OPEN:
                self._begin(connection, image.study_uid, job.version + 1 if job else 1, priority, image.source)
            else:
                self._join(connection, job, instance, min(priority, job.priority), image.source)

    def add_again(self, image: Image, priority: int) -> bool:
        """Record an instance whose file was removed, and which has come again; whatever it holds now is what counts.

        It joins its study's job, or begins a new version where its content is new, where it had been given up, or where
        the latest version came to nothing or its results are nowhere any more. Where that has its results, the image
        only waits with it, in case that a late one makes a new version.

        Returns:
            False where its file was here by now: the same image came on two connections at once.
        """
        now = time.time()
        with self.database.write() as connection:
            gone = connection.execute(
                "SELECT id, digest, received_at FROM instances WHERE sop_uid = ? AND file IS NULL", (image.sop_uid,)
            ).fetchone()
            if gone is None:
                return False
            given_up = connection.execute("DELETE FROM given_up WHERE instance = ?", (gone["id"],)).rowcount
            new = gone["digest"] != image.digest or given_up
            connection.execute(
                "UPDATE instances SET sop_class = ?, study_uid = ?, series_uid = ?, digest = ?, bytes = ?, file = ?, "
                "source = ?, received_at = ? WHERE id = ?",
                (*list(vars(image).values())[1:], now if new else gone["received_at"], gone["id"]),
            )
            # If it had been set aside, its file there is swept up at the next start.
            connection.execute("DELETE FROM asides WHERE sop_uid = ? AND digest = ?", (image.sop_uid, image.digest))
            job = self._latest(connection, image.study_uid)
            new = new or (job is not None and self._is_nowhere(connection, job))
            if job is not None and job.state in OPEN:
                self._join(connection, job, gone["id"], min(priority, job.priority), image.source)
            elif job is None or new or job.state in ("rejected", "dead", "discarded"):
                self._begin(connection, image.study_uid, job.version + 1 if job else 1, priority, image.source)
            else:  # or it would be removed again at once
                connection.execute("UPDATE jobs SET changed_at = ? WHERE id = ?", (now, job.id))
        return True

    def _is_nowhere(self, connection: sqlite3.Connection, job: Job) -> bool:
        """Whether a job's results were kept here alone, and were removed in their time."""
        return job.state in DELIVERED and not any(
            connection.execute(f"SELECT 1 FROM {table} WHERE job = ?{more} LIMIT 1", (job.id,)).fetchone()
            for table, more in (("deliveries", ""), ("objects", " AND file IS NOT NULL"))
        )

    def removed(self, study_uid: str) -> int:
        """How many images of a study came once and are no longer here, but for those that a person gave up on."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT count(*) FROM instances WHERE study_uid = ? AND file IS NULL "
                "AND id NOT IN (SELECT instance FROM given_up)",
                (study_uid,),
            ).fetchone()
        return int(row[0])

    def _begin(self, connection: sqlite3.Connection, study_uid: str, version: int, priority: int, actor: str) -> Job:
        """A new version, of every image of the study that is still here."""
        now = time.time()
        new = connection.execute(
            "INSERT INTO jobs (study_uid, version, state, priority, created_at, changed_at, last_image_at) "
            "VALUES (?, ?, 'received', ?, ?, ?, ?)",
            (study_uid, version, priority, now, now, now),
        ).lastrowid
        connection.execute(
            "INSERT INTO job_instances SELECT ?, id FROM instances WHERE study_uid = ? AND file IS NOT NULL",
            (new, study_uid),
        )
        assert new is not None
        job = self.job(new)
        audit.append(connection, "received", actor, job.name)
        return job

    def _join(self, connection: sqlite3.Connection, job: Job, instance: int, priority: int, actor: str) -> None:
        connection.execute("INSERT OR IGNORE INTO job_instances VALUES (?, ?)", (job.id, instance))
        connection.execute(
            "UPDATE jobs SET last_image_at = ?, priority = ?, examined = NULL, because = NULL, inputs_digest = NULL "
            "WHERE id = ?",
            (time.time(), priority, job.id),
        )
        if job.state != "received":
            self.move(job.id, "received", actor)

    def set_aside(self, image: Image) -> None:
        """Record an instance whose UID is known with other content."""
        with self.database.write() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO asides (sop_uid, study_uid, digest, file, source, received_at) "
                "VALUES (?,?,?,?,?,?)",
                (image.sop_uid, image.study_uid, image.digest, image.file, image.source, time.time()),
            )
            audit.append(connection, "set aside", image.source, name_of(image.sop_uid), "known UID, other content")

    def set_aside_of(self, study_uid: str) -> int:
        """How many instances of a study are set aside."""
        with self.database.read() as connection:
            row = connection.execute("SELECT count(*) FROM asides WHERE study_uid = ?", (study_uid,)).fetchone()
        return int(row[0])

    def move(self, job_id: int, to: State, actor: str, reason: str | None = None) -> None:
        """Take a job to another state: the only place where a state changes.

        Raises:
            ValueError: that state may not follow the job's own.
        """
        with self.database.write() as connection:
            job = self.job(job_id)
            if to not in FOLLOWS[job.state]:
                raise ValueError(f"a job that is {job.state} can't become {to}")
            connection.execute(
                "UPDATE jobs SET state = ?, reason = ?, changed_at = ?, progress = NULL WHERE id = ?",
                (to, reason, time.time(), job_id),
            )
            if to in ("settling", "checked"):
                self.database.afterwards(self.ready.ring)
            if to not in LEASED:
                connection.execute("UPDATE jobs SET lease_owner = NULL, lease_until = NULL WHERE id = ?", (job_id,))
            audit.append(connection, to, actor, job.name, reason or "success")

    def job(self, job_id: int) -> Job:
        with self.database.read() as connection:
            return Job.of(connection.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone())

    def find(self, job_id: int) -> Job | None:
        """The job of this number, if there is one."""
        with self.database.read() as connection:
            row = connection.execute("SELECT * FROM jobs WHERE id = ?", (min(job_id, 2**63 - 1),)).fetchone()
        return Job.of(row) if row else None

    def versions(self, study_uid: str) -> list[Job]:
        """Every version of a study, oldest first."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM jobs WHERE study_uid = ? ORDER BY version", (study_uid,)
            ).fetchall()
        return [Job.of(row) for row in rows]

    def sources(self, job_id: int) -> list[str]:
        """Who sent a job's images."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT DISTINCT source FROM instances JOIN job_instances ON instance = id WHERE job = ? ORDER BY 1",
                (job_id,),
            ).fetchall()
        return [row["source"] for row in rows]

    def jobs(self, states: Iterable[State] | None = None, limit: int = 1000) -> list[Job]:
        """Jobs, newest first."""
        wanted = tuple(states) if states is not None else tuple(FOLLOWS)
        marks = ",".join("?" * len(wanted))
        with self.database.read() as connection:
            rows = connection.execute(
                f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY id DESC LIMIT ?", (*wanted, limit)
            ).fetchall()
        return [Job.of(row) for row in rows]

    def files(self, job_id: int) -> list[str]:
        """A job's images, below the data folder, in a fixed order."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT file FROM instances JOIN job_instances ON instance = id WHERE job = ? AND file IS NOT NULL "
                "ORDER BY series_uid, sop_uid",
                (job_id,),
            ).fetchall()
        return [row["file"] for row in rows]

    def waiting(self) -> int:
        """Studies that were not evaluated yet."""
        marks = ",".join("?" * len(WAITING))
        with self.database.read() as connection:
            return int(connection.execute(f"SELECT count(*) FROM jobs WHERE state IN ({marks})", WAITING).fetchone()[0])

    def is_open(self, study_uid: str) -> bool:
        """Whether a further image of this study would join a job that is there."""
        with self.database.read() as connection:
            job = self._latest(connection, study_uid)
        return job is not None and job.state in OPEN

    def association_closed(self, study_uids: Iterable[str], actor: str) -> None:
        """The association that brought these studies' images has ended."""
        with self.database.write() as connection:
            for study_uid in study_uids:
                job = self._latest(connection, study_uid)
                if job is not None and job.state == "received":
                    self.move(job.id, "settling", actor)

    def _latest(self, connection: sqlite3.Connection, study_uid: str) -> Job | None:
        row = connection.execute(
            "SELECT * FROM jobs WHERE study_uid = ? ORDER BY version DESC LIMIT 1", (study_uid,)
        ).fetchone()
        return Job.of(row) if row else None

    def lease_to_settle(self, owner: str, seconds: float, settle: Settle) -> Job | None:
        """The most urgent job for which it is time to examine headers, or to decide by what they said.

        That is: when they were not examined since the last image, after quiet or (early) after the association; when
        they did not tell, after quiet, a longer one where a plane is lacking; when images are missing, once it is given
        up.
        """
        now = time.time()
        quiet, capped = now - settle.quiet_seconds, now - settle.give_up_seconds
        planes = now - _quiet_for(settle, "partial")
        with self.database.write() as connection:
            row = connection.execute(
                "SELECT * FROM jobs WHERE state IN ('received', 'settling') AND coalesce(lease_until, 0) < :now AND ("
                " created_at <= :capped"
                " OR (last_image_at <= :quiet AND coalesce(examined, '') NOT IN ('missing', 'partial'))"
                " OR (last_image_at <= :planes AND examined = 'partial')"
                " OR (:early AND state = 'settling' AND examined IS NULL)) ORDER BY priority, created_at LIMIT 1",
                {"now": now, "quiet": quiet, "planes": planes, "capped": capped, "early": settle.early},
            ).fetchone()
            if row is None:
                return None
            if row["state"] == "received":
                self.move(row["id"], "settling", owner)
            connection.execute(
                "UPDATE jobs SET lease_owner = ?, lease_until = ? WHERE id = ?", (owner, now + seconds, row["id"])
            )
            return self.job(row["id"])

    def settled(self, job: Job, owner: str, verdict: Verdict, because: str, settle: Settle) -> State:
        """Note what the headers said; that and the time since the last image decide what comes next.

        Returns:
            "checked" or "settling", which the job is now; or "rejected", which it is to become: its lease is kept, so
            that the objects that tell of it can be made first.

        Raises:
            LostLeaseError: an image came meanwhile, or the lease had run out.
        """
        now = time.time()
        quiet = now - job.last_image_at >= _quiet_for(settle, verdict)
        capped = now - job.created_at >= settle.give_up_seconds
        with self.database.write() as connection:
            self.check_lease(job, owner)  # an image that came meanwhile has ended it
            connection.execute("UPDATE jobs SET examined = ?, because = ? WHERE id = ?", (verdict, because, job.id))
            if verdict == "whole" or (verdict in ("unknown", "partial") and (quiet or capped)):
                connection.execute(
                    "UPDATE jobs SET inputs_digest = ? WHERE id = ?", (self._inputs_digest(connection, job), job.id)
                )
                self.move(job.id, "checked", owner)
                return "checked"
            if capped or (verdict == "unfit" and quiet):
                return "rejected"
            connection.execute("UPDATE jobs SET lease_owner = NULL, lease_until = NULL WHERE id = ?", (job.id,))
            return "settling"

    def _inputs_digest(self, connection: sqlite3.Connection, job: Job) -> str:
        rows = connection.execute(
            "SELECT sop_uid, digest FROM instances JOIN job_instances ON instance = id WHERE job = ? ORDER BY sop_uid",
            (job.id,),
        )
        return hashlib.sha256("".join(f"{row['sop_uid']} {row['digest']}\n" for row in rows).encode()).hexdigest()

    def lease_to_infer(self, owner: str, seconds: float) -> Job | None:
        """The most urgent checked job, now inferring."""
        with self.database.write() as connection:
            row = connection.execute(
                "SELECT id FROM jobs WHERE state = 'checked' ORDER BY priority, created_at LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET lease_owner = ?, lease_until = ? WHERE id = ?",
                (owner, time.time() + seconds, row["id"]),
            )
            self.move(row["id"], "inferring", owner)
            return self.job(row["id"])

    def heartbeat(self, job: Job, owner: str, seconds: float, progress: str | None = None) -> None:
        """Keep a lease, and say how far the work is.

        Raises:
            LostLeaseError: the lease had run out and the job was given back.
        """
        with self.database.write() as connection:
            self.check_lease(job, owner)
            connection.execute(
                "UPDATE jobs SET lease_until = ?, progress = coalesce(?, progress) WHERE id = ?",
                (time.time() + seconds, progress, job.id),
            )

    def check_lease(self, job: Job, owner: str) -> None:
        with self.database.read() as connection:
            row = connection.execute("SELECT lease_owner FROM jobs WHERE id = ?", (job.id,)).fetchone()
        if row["lease_owner"] != owner:
            raise LostLeaseError(job.name)

    def failed(self, job: Job, owner: str, reason: str, attempts: int) -> None:
        """The job ended its process. It goes back to the queue, or is put aside after so many ``attempts``."""
        with self.database.write() as connection:
            self.check_lease(job, owner)
            tried = self.job(job.id).attempts + 1
            connection.execute("UPDATE jobs SET attempts = ? WHERE id = ?", (tried, job.id))
            if tried >= attempts:
                self.move(job.id, "dead", owner, f"put aside after {tried} attempts: {reason}")
            else:
                self.release(job, owner)

    def release(self, job: Job, owner: str) -> None:
        """Give a job back as it was taken; nothing was wrong with it."""
        with self.database.write() as connection:
            self.check_lease(job, owner)
            if self.job(job.id).state in LEASED:
                self.move(job.id, "checked", owner)
            else:
                connection.execute("UPDATE jobs SET lease_owner = NULL, lease_until = NULL WHERE id = ?", (job.id,))

    def give_back_expired(self, *, all_owners: bool = False) -> int:
        """Jobs whose worker fell silent go back to the queue; at start, when no worker runs, those of all owners."""
        marks = ",".join("?" * len(LEASED))
        with self.database.write() as connection:
            until = time.time() if not all_owners else float("inf")
            connection.execute(
                "UPDATE jobs SET lease_owner = NULL, lease_until = NULL WHERE state = 'settling' AND lease_until < ?",
                (until,),
            )
            rows = connection.execute(
                f"SELECT id FROM jobs WHERE state IN ({marks}) AND coalesce(lease_until, 0) < ?", (*LEASED, until)
            ).fetchall()
            for row in rows:
                self.move(row["id"], "checked", "appliance", "its worker fell silent")
        return len(rows)

    def received_at(self, job_id: int) -> float:
        """When the last of a job's images came first; when the job began, where it has none."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT coalesce(max(received_at), created_at) AS at FROM jobs "
                "LEFT JOIN job_instances ON job = jobs.id "
                "LEFT JOIN instances ON instance = instances.id WHERE jobs.id = ?",
                (job_id,),
            ).fetchone()
        return float(row["at"])

    def reports_before(self, job: Job, sop_classes: Iterable[str]) -> list[str]:
        """The files of the reports that earlier versions of this study got, newest first."""
        wanted = tuple(sop_classes)
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT file FROM objects JOIN jobs ON jobs.id = job WHERE study_uid = ? AND version < ? "
                f"AND file IS NOT NULL AND sop_class IN ({','.join('?' * len(wanted))}) "
                "ORDER BY version DESC, objects.id",
                (job.study_uid, job.version, *wanted),
            ).fetchall()
        return [row["file"] for row in rows]

    def again(self, job: Job, actor: str) -> Job:
        """A new version of a study that was rejected or put aside, with the images that are here; where a later one
        waits or has its results, that one.

        A job whose own images are all here was rejected for lack of earlier ones, if any of its study are gone: to take
        it up again is to do without them.
        """
        with self.database.write() as connection:
            latest = self._latest(connection, job.study_uid)
            assert latest is not None
            if latest.state in WAITING or _supersedes(latest, job):
                return latest
            own = connection.execute(
                "SELECT count(*), count(file) FROM instances JOIN job_instances ON instance = id WHERE job = ?",
                (job.id,),
            ).fetchone()
            if own[0] == own[1] > 0:
                connection.execute(
                    "INSERT OR IGNORE INTO given_up SELECT id FROM instances WHERE study_uid = ? AND file IS NULL",
                    (job.study_uid,),
                )
            new = self._begin(connection, job.study_uid, latest.version + 1, job.priority, actor)
            self.move(new.id, "settling", actor)
            return self.job(new.id)

    def superseded(self, job: Job) -> bool:
        """Whether a later version of a job's study has its results, delivered or on their way."""
        return _supersedes(self.versions(job.study_uid)[-1], job)

    def known_files(self) -> set[str]:
        """Every file that a row speaks of, below the data folder."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT file FROM instances WHERE file IS NOT NULL UNION SELECT file FROM asides "
                "UNION SELECT file FROM objects WHERE file IS NOT NULL"
            ).fetchall()
        return {row["file"] for row in rows}


def _quiet_for(settle: Settle, verdict: Verdict) -> float:
    """Seconds without an image after which a study is taken as it is."""
    return max(settle.quiet_seconds, settle.plane_seconds) if verdict == "partial" else settle.quiet_seconds


def _supersedes(latest: Job, job: Job) -> bool:
    return latest.id != job.id and latest.state in ("sending", *DELIVERED)


def remove_unknown(store: Store, data: Path, folders: Iterable[str], at_once: int) -> int:
    """Remove DICOM files below these folders that no row speaks of; run while nothing is received or made.

    Such a file was written just before a crash, and neither acknowledged nor delivered; or its job's time was over.
    Before the first study is known, a crash leaves no more of them than can be received ``at_once``.

    Raises:
        InputError: there are more, so this is not the database of these files; they are left as they are.
    """
    known = store.known_files()
    unknown = [
        path
        for folder in folders
        for path in (data / folder).rglob("*.dcm")
        if str(path.relative_to(data)) not in known
    ]
    if len(unknown) > at_once and not store.jobs(limit=1):
        raise InputError(
            f"{store.database.path}: knows of no study, and {len(unknown)} DICOM files lie beside it, so it is not "
            f"theirs. Restore it from a copy; or move {' and '.join(folders)} away and send the studies again."
        )
    for path in unknown:
        path.unlink()
    return len(unknown)
