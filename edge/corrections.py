"""What readers found wrong with a result, kept for whoever improves the model."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from orthokernels.edge import audit
from orthokernels.edge.store import Job, Store

from orthokernels import tasks
from orthokernels.errors import InputError

Kind = Literal["structure", "finding", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LONGEST_TEXT, LONGEST_NAME = 2000, 100  # characters


@dataclass(frozen=True)
class Correction:
    """One remark on one job's result.

    Attributes:
        kind, label: what is wrong; ``label`` is the key of the structure or finding, None for "other".
        plane: where, None for all planes.
        text, who: as the reader wrote them.
        model: digest of the weights, None where there was no result.
        at: seconds since 1970. The store sets it, and ``id``.
    """

    job: int
    kind: Kind
    label: str | None
    plane: str | None
    text: str
    who: str
    model: str | None = None
    at: float = 0.0
    id: int = 0


def labels(kind: Kind, joint: str) -> dict[str, str]:
    """What can be wrong, by key: names of structures, or of a joint's findings."""
    if kind == "structure":
        return {structure.key: structure.name for structure in tasks.STRUCTURES}
    return {label.key: label.name for label in tasks.LABELS.get(joint, ())} if kind == "finding" else {}


def every_label(kind: Kind) -> dict[str, str]:
    """The same whatever the joint: a correction outlives the setting by which it was made."""
    return {key: name for joint in tasks.LABELS for key, name in labels(kind, joint).items()}


class Corrections:
    """The list. It only grows."""

    def __init__(self, store: Store, joint: str) -> None:
        self._store = store
        self._joint = joint

    def add(self, given: Correction) -> None:
        """Keep a correction, and note in the audit log that it came: by its digest, not by what it says.

        Raises:
            InputError: something in it is missing, too long, or names nothing that there is.
        """
        self._check(given)
        digest = hashlib.sha256(json.dumps(asdict(given), sort_keys=True).encode()).hexdigest()
        columns = [field.name for field in fields(given) if field.name not in ("at", "id")]
        with self._store.database.write() as connection:
            number = connection.execute(
                f"INSERT INTO corrections ({', '.join(columns)}, at) VALUES ({'?, ' * len(columns)}?)",
                (*(getattr(given, column) for column in columns), time.time()),
            ).lastrowid
            job = self._store.job(given.job)
            audit.append(connection, "correction", "page", job.name, f"correction {number}, SHA-256 {digest}")

    def _check(self, given: Correction) -> None:
        if given.kind not in KINDS or (given.kind != "other" and given.label not in labels(given.kind, self._joint)):
            raise InputError("Choose what is wrong from the list.")
        if given.kind == "other" and given.label is not None:
            raise InputError("Choose what is wrong from the list.")
        if given.plane is not None and given.plane not in tasks.PLANES:
            raise InputError("Choose the plane from the list.")
        for what, text, longest in (
            ("How it should be", given.text, LONGEST_TEXT),
            ("Your name", given.who, LONGEST_NAME),
        ):
            if not text.strip():
                raise InputError(f"{what}: please fill this in.")
            if len(text) > longest:
                raise InputError(f"{what}: {len(text)} characters; at most {longest} are kept. Please shorten it.")

    def of(self, job: Job) -> list[Correction]:
        """A job's corrections, oldest first."""
        with self._store.database.read() as connection:
            rows = connection.execute("SELECT * FROM corrections WHERE job = ? ORDER BY id", (job.id,)).fetchall()
        return [Correction(**dict(row)) for row in rows]

    def export(self) -> list[dict[str, object]]:
        """Every correction, oldest first; ``study`` is the hash and version by which logs and folders call it."""
        with self._store.database.read() as connection:
            rows = connection.execute("SELECT * FROM corrections ORDER BY id").fetchall()
        return [{"study": self._store.job(row["job"]).name, **dict(row)} for row in rows]
