"""Results on their way out: which destination has accepted which object of which job."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orthokernels.edge import audit
from orthokernels.edge.bell import Bell
from orthokernels.edge.config import Destination, DimseDestination
from orthokernels.edge.forms import Form
from orthokernels.edge.store import Job, Store

NO_DESTINATION = "no destination is configured; the results stay here"
KEPT_HERE = "its sender's results are not to be delivered; they stay here"
_UNCONFIRMED = "sent, but the archive did not confirm that it keeps them"


class NotDeliveredError(Exception):
    """A try failed; the message says at what."""


@dataclass(frozen=True)
class Made:
    """An object that a job's work has made. ``file`` is below the data folder.

    ``form`` is that of the segmentations that it is or names; None for what goes to every destination.
    """

    sop_class: str
    sop_uid: str
    digest: str
    file: str
    form: Form | None = None
    id: int = 0


@dataclass(frozen=True)
class Delivery:
    """One job's objects for one destination, and those that it has not accepted yet.

    ``undecided`` are the forms of segmentation that it may still get, and ``open`` then the objects of each of them.
    """

    id: int
    job: int
    destination: str
    tries: int
    open: tuple[Made, ...]
    undecided: tuple[Form, ...] = ()


class Deliveries:
    """What is owed to the destinations. Its changes may take the job itself from sending to sent, committed or dead.

    Nothing is owed of a study whose images all came from ``undelivered`` senders.
    """

    def __init__(
        self, store: Store, destinations: Sequence[Destination], undelivered: Collection[str] = frozenset()
    ) -> None:
        self.store = store
        self.database = store.database
        self.destinations = {destination.name: destination for destination in destinations}
        self.owed = Bell()  # rings when there may be something for a sender
        self._undelivered = frozenset(undelivered)

    def owe(self, job: Job, owner: str, made: Iterable[Made], rejected: str | None = None) -> None:
        """Take a job to sending: its objects now go to every destination. With ``rejected``, they are the rejection's.

        Raises:
            LostLeaseError: the lease had run out and the job was given back.
        """
        now, made = time.time(), list(made)
        with self.database.write() as connection:
            self.store.check_lease(job, owner)
            connection.executemany(
                "INSERT INTO objects (job, sop_class, sop_uid, digest, file) VALUES (?,?,?,?,?)",
                [(job.id, one.sop_class, one.sop_uid, one.digest, one.file) for one in made],
            )
            connection.executemany(
                "INSERT INTO object_forms SELECT id, ? FROM objects WHERE job = ? AND sop_uid = ?",
                [(one.form, job.id, one.sop_uid) for one in made if one.form is not None],
            )
            connection.executemany(
                "INSERT INTO deliveries (job, destination, state, next_try_at, changed_at) VALUES (?,?,'waiting',?,?)",
                # without an object there is nothing to deliver, and it would count as a success
                [(job.id, name, now, now) for name in self._receivers(connection, job) if made],
            )
            self.database.afterwards(self.owed.ring)
            if rejected is not None:
                self.store.move(job.id, "rejected", owner, rejected)
            else:
                self.store.move(job.id, "sending", owner)
                self._follow(job.id, owner)

    def _receivers(self, connection: sqlite3.Connection, job: Job) -> Collection[str]:
        rows = connection.execute(
            "SELECT DISTINCT source FROM instances JOIN job_instances ON instance = id WHERE job = ?", (job.id,)
        )
        sources = {row["source"] for row in rows}
        return () if sources and sources <= self._undelivered else self.destinations

    def claim(self, sop_uid: str, source: str) -> None:
        """An image that is here has come again, from ``source``. If only undelivered senders had sent it, it is this
        one's from now on; and if its study's results are here, they are owed now."""
        if source in self._undelivered or not self._undelivered:
            return
        marks = ",".join("?" * len(self._undelivered))
        with self.database.read() as connection:
            row = connection.execute(
                f"SELECT study_uid FROM instances WHERE sop_uid = ? AND source IN ({marks})",
                (sop_uid, *self._undelivered),
            ).fetchone()
        if row is None:
            return
        now = time.time()
        with self.database.write() as connection:
            connection.execute("UPDATE instances SET source = ? WHERE sop_uid = ?", (source, sop_uid))
            job = self.store.versions(row["study_uid"])[-1]
            made = self.objects(job.id)
            if (
                job.state not in ("sent", "rejected")
                or self.of(job.id)
                or not made
                or not all(one.file for one in made)
            ):
                return
            connection.executemany(
                "INSERT INTO deliveries (job, destination, state, next_try_at, changed_at) VALUES (?,?,'waiting',?,?)",
                [(job.id, name, now, now) for name in self.destinations],
            )
            self.database.afterwards(self.owed.ring)
            if job.state == "sent" and self.destinations:
                self.store.move(job.id, "sending", source, "its images came from a sender whose results are delivered")

    def due(self, destination: str) -> Delivery | None:
        """The most urgent delivery to this destination whose time has come; never one of a study of which an older
        version waits there, as a report names the one that it replaces.

        Only one thread asks for a destination, and not while it delivers there.
        """
        while (row := self._most_urgent(destination)) is not None:
            if not self._superseded(row["study_uid"], destination, row["id"]):
                taken = self._taken(row["id"])
                open_ = tuple(one for one in self.objects(row["job"], row["id"]) if one.id not in taken)
                forms = {one.form: None for one in open_ if one.form is not None}
                undecided = () if self._form(row["id"]) else tuple(forms)
                return Delivery(row["id"], row["job"], destination, row["tries"], open_, undecided)
        return None

    def _most_urgent(self, destination: str) -> sqlite3.Row | None:
        """Of what is due; but not of a study of which an older version waits there and was taken in part. That one is
        to be whole first: its report may name what the destination still lacks."""
        with self.database.read() as connection:
            row: sqlite3.Row | None = connection.execute(
                "SELECT deliveries.id, job, tries, study_uid FROM deliveries JOIN jobs ON jobs.id = job "
                "WHERE destination = :destination AND deliveries.state = 'waiting' AND next_try_at <= :now "
                "AND NOT EXISTS (SELECT 1 FROM jobs AS older JOIN deliveries AS its ON its.job = older.id "
                "WHERE older.study_uid = jobs.study_uid AND older.version < jobs.version "
                "AND its.destination = :destination AND its.state = 'waiting' "
                "AND EXISTS (SELECT 1 FROM accepted WHERE delivery = its.id)) "
                "ORDER BY jobs.priority, next_try_at LIMIT 1",
                {"destination": destination, "now": time.time()},
            ).fetchone()
        return row

    def _superseded(self, study_uid: str, destination: str, delivery: int) -> bool:
        """End what waits of a study's older versions where a newer one is owed or was sent, and nothing was taken of
        them: their results are replaced before they arrive. Whether this ``delivery`` is among them."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT deliveries.id, job, version, deliveries.state FROM deliveries JOIN jobs ON jobs.id = job "
                "WHERE study_uid = ? AND destination = ? AND deliveries.state IN ('waiting', 'sent', 'committed') "
                "ORDER BY version DESC",
                (study_uid, destination),
            ).fetchall()
        newest, ended = rows[0]["version"], []
        for row in rows[1:]:
            if row["state"] == "waiting" and not self._taken(row["id"]):
                told = f"version {newest} of the study goes there instead"
                with self.database.write() as connection:
                    connection.execute(
                        "UPDATE deliveries SET state = 'superseded', reason = ?, changed_at = ? WHERE id = ?",
                        (told, time.time(), row["id"]),
                    )
                    self._noted(row["job"], "superseded", destination, told)
                    self._follow(row["job"], destination)
                ended.append(row["id"])
        return delivery in ended

    def _taken(self, delivery: int) -> set[int]:
        with self.database.read() as connection:
            rows = connection.execute("SELECT object FROM accepted WHERE delivery = ?", (delivery,)).fetchall()
        return {row["object"] for row in rows}

    def _form(self, delivery: int) -> Form | None:
        with self.database.read() as connection:
            row = connection.execute("SELECT form FROM delivery_forms WHERE delivery = ?", (delivery,)).fetchone()
        return row["form"] if row else None

    def objects(self, job_id: int, delivery: int | None = None) -> tuple[Made, ...]:
        """Everything that was made of a job; with ``delivery``, what of it that destination gets, or may get yet."""
        form = self._form(delivery) if delivery is not None else None
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT sop_class, sop_uid, digest, file, form, id FROM objects LEFT JOIN object_forms ON object = id "
                "WHERE job = ? ORDER BY id",
                (job_id,),
            ).fetchall()
        return tuple(Made(**dict(row)) for row in rows if None in (form, row["form"]) or row["form"] == form)

    def form_before(self, delivery: Delivery) -> Form | None:
        """The form of segmentation that this destination got of the latest earlier version of the study, if any."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT form FROM delivery_forms JOIN deliveries ON deliveries.id = delivery "
                "JOIN jobs ON jobs.id = job JOIN jobs AS own ON own.id = ? "
                "WHERE destination = ? AND jobs.study_uid = own.study_uid AND jobs.version < own.version "
                "ORDER BY jobs.version DESC LIMIT 1",
                (delivery.job, delivery.destination),
            ).fetchone()
        return row["form"] if row else None

    def keep_to(self, delivery: Delivery, form: Form) -> Delivery:
        """The destination gets this form. It is on record before the first object leaves, so that none gets both."""
        with self.database.write() as connection:
            connection.execute("INSERT INTO delivery_forms VALUES (?, ?)", (delivery.id, form))
        return replace(delivery, open=tuple(one for one in delivery.open if one.form in (None, form)), undecided=())

    def of(self, job_id: int) -> list[dict[str, Any]]:
        """How far each destination is with a job, by name: ``destination``, ``state``, ``tries``, ``next_try_at``,
        ``reason``, ``changed_at``, and ``form`` of segmentation where it is decided."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT destination, state, tries, next_try_at, reason, changed_at, form FROM deliveries "
                "LEFT JOIN delivery_forms ON delivery = id WHERE job = ? ORDER BY destination",
                (job_id,),
            ).fetchall()
        return [dict(row) for row in rows]

    def accepted(self, delivery: Delivery, made: Made) -> None:
        """The destination has taken one object."""
        with self.database.write() as connection:
            connection.execute("INSERT OR IGNORE INTO accepted VALUES (?, ?)", (delivery.id, made.id))

    def delivered(self, delivery: Delivery, transaction_uid: str | None = None) -> None:
        """It has taken all of them. With ``transaction_uid``, its word that it keeps them is awaited for a while."""
        now = time.time()
        destination = self.destinations[delivery.destination]
        asked = transaction_uid is not None and isinstance(destination, DimseDestination)
        until = now + destination.commitment_seconds if asked else None
        with self.database.write() as connection:
            connection.execute(
                "UPDATE deliveries SET state = 'sent', reason = NULL, transaction_uid = ?, commit_until = ?, "
                "changed_at = ? WHERE id = ?",
                (transaction_uid, until, now, delivery.id),
            )
            self._noted(delivery.job, "delivered", delivery.destination)
            self._follow(delivery.job, delivery.destination)

    def refused(self, delivery: Delivery, reason: str) -> None:
        """A try failed. The next waits three times as long, give or take a fifth; after the last it is put aside."""
        with self.database.write():
            self._put_off(delivery.id, delivery.destination, delivery.tries + 1, reason)
            self._noted(delivery.job, "not delivered", delivery.destination, reason)
            self._follow(delivery.job, delivery.destination)

    def _put_off(self, delivery: int, name: str, tries: int, reason: str) -> None:
        destination = self.destinations[name]
        wait = min(destination.first_wait_seconds * 3.0 ** (tries - 1), destination.longest_wait_seconds)
        now = time.time()
        with self.database.write() as connection:
            connection.execute(
                "UPDATE deliveries SET state = ?, tries = ?, next_try_at = ?, reason = ?, transaction_uid = NULL, "
                "commit_until = NULL, changed_at = ? WHERE id = ?",
                (
                    "dead" if tries >= destination.tries else "waiting",
                    tries,
                    now + wait * random.uniform(0.8, 1.2),
                    reason,
                    now,
                    delivery,
                ),
            )

    def awaits(self, transaction_uid: str) -> bool:
        """Whether an archive's report on this transaction has yet to come."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT 1 FROM deliveries WHERE transaction_uid = ?", (transaction_uid,)
            ).fetchone()
        return row is not None

    def commitment_answered(self, transaction_uid: str, kept: Collection[str]) -> bool:
        """An archive keeps these objects; others are sent again. False: nobody asked by this transaction."""
        with self.database.write() as connection:
            row = connection.execute(
                "SELECT id, job, destination, tries FROM deliveries WHERE transaction_uid = ? AND state = 'sent'",
                (transaction_uid,),
            ).fetchone()
            if row is None or row["destination"] not in self.destinations:
                return False
            lost = [made.sop_uid for made in self.objects(row["job"], row["id"]) if made.sop_uid not in kept]
            if lost:
                connection.executemany(
                    "DELETE FROM accepted WHERE delivery = ? AND object IN "
                    "(SELECT id FROM objects WHERE job = ? AND sop_uid = ?)",
                    [(row["id"], row["job"], sop_uid) for sop_uid in lost],
                )
                told = f"{len(lost)} objects were accepted, but are not kept"
                self._put_off(row["id"], row["destination"], row["tries"] + 1, told)
            else:
                connection.execute(
                    "UPDATE deliveries SET state = 'committed', transaction_uid = NULL, commit_until = NULL, "
                    "changed_at = ? WHERE id = ?",
                    (time.time(), row["id"]),
                )
            self._noted(row["job"], "commitment", row["destination"], told if lost else "success")
            self._follow(row["job"], row["destination"])
        return True

    def commitment_overdue(self) -> int:
        """Ask again where no report came in time; after the last try the objects stay sent, unconfirmed."""
        with self.database.write() as connection:
            rows = connection.execute(
                "SELECT id, job, destination, tries FROM deliveries WHERE commit_until < ?", (time.time(),)
            ).fetchall()
            for row in rows:
                destination = self.destinations.get(row["destination"])
                if destination is not None and row["tries"] + 1 < destination.tries:
                    self._put_off(row["id"], row["destination"], row["tries"] + 1, _UNCONFIRMED)
                else:
                    connection.execute(
                        "UPDATE deliveries SET transaction_uid = NULL, commit_until = NULL, changed_at = ?, "
                        "reason = ? WHERE id = ?",
                        (time.time(), _UNCONFIRMED, row["id"]),
                    )
                self._noted(row["job"], "commitment", row["destination"], "no report")
                self._follow(row["job"], row["destination"])
        return len(rows)

    def retry(self, job: Job, actor: str) -> Job:
        """Take up a rejected or dead job, or one with a dead delivery, again. Others are left as they are.

        A delivery to a destination that is no longer configured stays dead: nobody would send it, and what others took
        is not made again for its sake. One of which no segmentation and no report was taken may choose their form
        anew, as its setting may have been changed.
        """
        marks = ",".join("?" * len(self.destinations))
        with self.database.write() as connection:
            job = self.store.job(job.id)  # as it is now: someone else may have decided meanwhile
            connection.execute(
                "DELETE FROM delivery_forms WHERE delivery IN (SELECT id FROM deliveries WHERE job = ? AND "
                "state = 'dead') AND delivery NOT IN (SELECT delivery FROM accepted JOIN object_forms USING (object))",
                (job.id,),
            )
            dead = connection.execute(
                "UPDATE deliveries SET state = 'waiting', tries = 0, next_try_at = ?, changed_at = ? "
                f"WHERE job = ? AND state = 'dead' AND destination IN ({marks})",
                (time.time(), time.time(), job.id, *self.destinations),
            ).rowcount
            self.database.afterwards(self.owed.ring)
            if dead and job.state == "dead":
                self.store.move(job.id, "sending", actor)
            elif not dead and (job.state == "rejected" or (job.state == "dead" and not self.of(job.id))):
                return self.store.again(job, actor)
        return self.store.job(job.id)

    def gone(self, job_id: int) -> list[str]:
        """Destinations that did not take a job and are no longer configured: no retry will bring it there."""
        return [
            own["destination"]
            for own in self.of(job_id)
            if own["state"] == "dead" and own["destination"] not in self.destinations
        ]

    def retriable(self, job_id: int, state: str) -> bool:
        """Whether a person's retry of a job changes anything."""
        states = [(own["state"], own["destination"]) for own in self.of(job_id)]
        revived = any(own == "dead" and name in self.destinations for own, name in states)
        anew = state == "rejected" or (state == "dead" and not states)
        return revived or (anew and not self.store.superseded(self.store.job(job_id)))

    def discard(self, job: Job, actor: str) -> Job:
        """Give up on a dead job, or on a job's dead deliveries, by a person's decision; retention removes it in its
        time. Others are left as they are."""
        with self.database.write() as connection:
            job = self.store.job(job.id)
            given_up = connection.execute(
                "UPDATE deliveries SET state = 'discarded', changed_at = ? WHERE job = ? AND state = 'dead'",
                (time.time(), job.id),
            ).rowcount
            if job.state == "dead":
                self.store.move(job.id, "discarded", actor, job.reason)
            elif given_up:
                self._noted(job.id, "discarded", actor, f"{given_up} deliveries")
        return self.store.job(job.id)

    def end_unknown_destinations(self) -> int:
        """Deliveries to a destination that is no longer configured are put aside, where they can be seen."""
        marks = ",".join("?" * len(self.destinations))
        with self.database.write() as connection:
            rows = connection.execute(
                f"SELECT id, job, destination FROM deliveries WHERE state = 'waiting' AND destination NOT IN ({marks})",
                tuple(self.destinations),
            ).fetchall()
            for row in rows:
                connection.execute(
                    "UPDATE deliveries SET state = 'dead', reason = 'it is no longer configured', changed_at = ? "
                    "WHERE id = ?",
                    (time.time(), row["id"]),
                )
                self._follow(row["job"], "appliance")
        return len(rows)

    def _why_nobody(self) -> str:
        return KEPT_HERE if self.destinations else NO_DESTINATION

    def _noted(self, job: int, event: str, actor: str, outcome: str = "success") -> None:
        with self.database.write() as connection:
            audit.append(connection, event, actor, self.store.job(job).name, outcome)

    def _follow(self, job_id: int, actor: str) -> None:
        """Take the job where its deliveries are."""
        with self.database.write() as connection:
            rows = connection.execute(
                "SELECT destination, state, reason FROM deliveries WHERE job = ?", (job_id,)
            ).fetchall()
            states = {row["state"] for row in rows}
            state = self.store.job(job_id).state
            if state == "sent" and states & {"waiting", "dead"}:
                self.store.move(
                    job_id, "sending", actor, "an archive does not keep what it accepted, or did not say so"
                )
                state = "sending"
            if state == "sending" and "waiting" not in states:
                state = "dead" if "dead" in states else "sent"
                whose = "dead" if state == "dead" else "superseded"
                told = [f"{row['destination']}: {row['reason']}" for row in rows if row["state"] == whose]
                self.store.move(job_id, state, actor, "; ".join(told) or (None if rows else self._why_nobody()))
            if state == "sent" and states - {"superseded"} == {"committed"}:
                self.store.move(job_id, "committed", actor)
