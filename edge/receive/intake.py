"""One instance in: known or new, room or none, and success only once its bytes and its row are on disk."""

from __future__ import annotations

import hashlib
import io
import logging
import secrets
import shutil
import sqlite3
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from orthokernels.edge import metrics
from orthokernels.edge.config import Config, Disk
from orthokernels.edge.deliveries import Deliveries
from orthokernels.edge.durable import name_of, write_durably
from orthokernels.edge.receive.identity import Identity, read_identity
from orthokernels.edge.store import Image, Known, Store
from pydicom.uid import UID

from orthokernels import __version__
from orthokernels.data.volume import hash_of
from orthokernels.errors import InputError

LOG = logging.getLogger("orthokernels.edge.receive")
FOLDER = "images"

# Ours alone, made once from a random UUID (PS3.5 annex B.2).
IMPLEMENTATION_UID = UID("2.25.71178758331537684092484713271797692360")
_PREAMBLE = b"\0" * 128 + b"DICM"


class Status(IntEnum):
    """DICOM's answers to a C-STORE (PS3.4 table B.2-1)."""

    SUCCESS = 0x0000
    OUT_OF_RESOURCES = 0xA700
    OTHER_THAN_ANNOUNCED = 0xA900
    NOT_UNDERSTOOD = 0xC000


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """The instance is not taken in; ``status`` is the answer, and the sender keeps it."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Arrival:
    """An instance as it came: its data set undecoded, what the message said of it, and who sent it."""

    content: io.BytesIO
    syntax: UID
    source: str
    priority: int
    sop_class: str | None = None
    sop_uid: str | None = None
    study_uid: str | None = None


class Intake:
    """Takes instances in, whichever way they come. With ``deliveries``, an image that comes again may make results
    owed that were not to be delivered before."""

    def __init__(self, config: Config, store: Store, deliveries: Deliveries | None = None) -> None:
        self.store = store
        self._deliveries = deliveries
        self.data = config.appliance.data
        self.disk = config.disk
        self.limits = config.receive.limits

    def take(self, arrival: Arrival) -> Identity:
        """Take one instance in. When this returns, it is on disk and in the database.

        Raises:
            Refused: it is not taken in, and why.
        """
        try:
            identity = self._identity(arrival)
            self._store(arrival, identity)
            return identity
        except Refused as refusal:
            metrics.INSTANCES.labels("refused").inc()
            LOG.warning("refused an instance from %s: %s", arrival.source, refusal)
            raise
        except (OSError, sqlite3.OperationalError) as error:
            metrics.INSTANCES.labels("refused").inc()
            # In a line: a study has hundreds, and what is full may be the disk that the log is on.
            LOG.error("could not keep an instance from %s: %s", arrival.source, error)
            raise Refused(Status.OUT_OF_RESOURCES, f"it could not be written ({error})") from error

    def _identity(self, arrival: Arrival) -> Identity:
        try:
            identity = read_identity(arrival.content, arrival.syntax, self.limits.elements_before_uids)
        except InputError as error:
            raise Refused(Status.NOT_UNDERSTOOD, str(error)) from error
        announced = (
            (arrival.sop_class, identity.sop_class),
            (arrival.sop_uid, identity.sop_uid),
            (arrival.study_uid, identity.study_uid),
        )
        if any(told and told != own for told, own in announced):
            raise Refused(Status.OTHER_THAN_ANNOUNCED, "its UIDs are not those that its message announced")
        return identity

    def _store(self, arrival: Arrival, identity: Identity) -> None:
        view = arrival.content.getbuffer()
        digest = hashlib.sha256(arrival.syntax.encode() + b"\0")
        digest.update(view)
        known = self.store.known(identity.sop_uid)
        if known == (digest.hexdigest(), True):
            self._came_again(identity, arrival)
            return
        self._check_room(identity, len(view))
        image = Image(
            **vars(identity),
            digest=digest.hexdigest(),
            bytes=len(view),
            file=f"{FOLDER}/{name_of(identity.study_uid)}/{_file_name(identity, digest.hexdigest(), known)}",
            source=arrival.source,
        )
        write_durably(self.data / image.file, (_PREAMBLE, _meta(identity, arrival), view))
        if known is None or not known.here:
            if self._add(image, arrival.priority, known):
                metrics.INSTANCES.labels("stored").inc()
                metrics.BYTES.inc(len(view))
                return
            first = self.store.known(identity.sop_uid)
            if first is not None and first.digest == image.digest:
                if known is not None:  # then this one's file has a name of its own
                    (self.data / image.file).unlink()
                self._came_again(identity, arrival)
                return
        self.store.set_aside(image)
        metrics.INSTANCES.labels("set aside").inc()
        LOG.warning("an instance from %s has a known UID and other content: kept aside", arrival.source)

    def _came_again(self, identity: Identity, arrival: Arrival) -> None:
        metrics.INSTANCES.labels("duplicate").inc()
        if self._deliveries is not None:
            self._deliveries.claim(identity.sop_uid, arrival.source)

    def _add(self, image: Image, priority: int, known: Known | None) -> bool:
        """False where the same UID came on two associations at once, and the other was first."""
        if known is not None:
            return self.store.add_again(image, priority)
        try:
            self.store.add(image, priority)
        except sqlite3.IntegrityError:
            return False
        return True

    def _check_room(self, identity: Identity, size: int) -> None:
        if told := no_room(self.data, self.disk, size):
            raise Refused(Status.OUT_OF_RESOURCES, told)
        if self.store.waiting() >= self.limits.waiting_studies and not self.store.is_open(identity.study_uid):
            raise Refused(
                Status.OUT_OF_RESOURCES,
                f"{self.limits.waiting_studies} studies are waiting, and study {hash_of(identity.study_uid)} is new",
            )


def used_share(folder: Path, coming: int = 0) -> float:
    """Of a folder's disk, what is used and ``coming``, as ``df`` counts it: what root alone may fill is nobody's."""
    usage = shutil.disk_usage(folder)
    return (usage.used + coming) / (usage.used + usage.free)


def no_room(data: Path, disk: Disk, size: int = 0) -> str | None:
    """Why nothing of ``size`` bytes may be taken in now, or None."""
    usage = shutil.disk_usage(data)
    if usage.free - size < disk.keep_free_bytes:
        return f"the disk has {usage.free >> 20} MB left, and {disk.keep_free_bytes >> 20} MB are kept free"
    if used_share(data, size) > disk.refuse_above:
        return f"the disk is fuller than {disk.refuse_above:.0%}"
    return None


def _file_name(identity: Identity, digest: str, known: Known | None) -> str:
    """An image that comes again gets another name, since the file of the first may be about to be removed."""
    again = f"-{secrets.token_hex(4)}" if known is not None and not known.here else ""
    return f"{name_of(identity.sop_uid)}-{digest[:16]}{again}.dcm"


def _meta(identity: Identity, arrival: Arrival) -> bytes:
    """File meta information (PS3.10 section 7.1), as short as it is written for every image."""
    elements = b"".join(
        (
            _element(0x0001, b"OB", b"\0\1"),
            _element(0x0002, b"UI", identity.sop_class.encode()),
            _element(0x0003, b"UI", identity.sop_uid.encode()),
            _element(0x0010, b"UI", arrival.syntax.encode()),
            _element(0x0012, b"UI", IMPLEMENTATION_UID.encode()),
            _element(0x0013, b"SH", f"ORTHOKERNELS{__version__}"[:16].encode()),
        )
    )
    return _element(0x0000, b"UL", struct.pack("<L", len(elements))) + elements


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    """An element of group 0002, explicit VR little endian (PS3.5 section 7.1.2)."""
    value += (b" " if vr == b"SH" else b"\0") * (len(value) % 2)
    long = b"\0\0" + struct.pack("<L", len(value)) if vr == b"OB" else struct.pack("<H", len(value))
    return struct.pack("<HH", 0x0002, number) + vr + long + value
