"""The whole loop with a study of nobody: sent over DICOM, worked on, and looked at when it comes out.

Through the appliance that runs, where a peer with ``deliver = false`` lets it in: its results then stay here and are
looked at where they lie. Otherwise through one of its own, on ports and folders for the moment, with the same bundle
and a receiver of its own in the archives' place. No archive of the hospital sees it either way.
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from orthokernels.edge.config import Config, Peer
from orthokernels.edge.deliveries import Deliveries
from orthokernels.edge.doctor.look import Look
from orthokernels.edge.doctor.study import PATIENT_ID, new_study
from orthokernels.edge.forms import FORMS
from orthokernels.edge.receive.connection import within
from orthokernels.edge.receive.intake import IMPLEMENTATION_UID
from orthokernels.edge.send.scu import WRITTEN
from orthokernels.edge.store import Job, Store
from orthokernels.edge.tls import own_context
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt

from orthokernels.errors import InputError

_TITLE, _RECEIVER = "DOCTOR", "DOCTOR-ARCHIVE"
_ENDS = ("sent", "committed", "rejected", "dead")
_POLL_SECONDS = 0.2


@dataclass
class _Course:
    """What is known of the study on its way: its UID, its job once there is one, and how to hear of trouble."""

    study_uid: str
    store: Store
    deliveries: Deliveries
    data: Path
    trouble: Callable[[], str | None] = lambda: None
    received: list[Dataset] | None = None


def doctors_peer(config: Config) -> Peer | None:
    """The entry that lets the doctor in from this machine without its results going to an archive."""
    here = address(config)
    return next((peer for peer in config.receive.peers if not peer.deliver and within(here, peer.hosts)), None)


def through_running(config: Config, images: Sequence[Path], seconds: float) -> Iterator[Look]:
    """Send the study to the appliance that runs."""
    from orthokernels.edge.status import open_store

    peer = doctors_peer(config)
    assert peer is not None
    store = open_store(config)
    study = new_study(images)
    course = _Course(
        str(study[0].StudyInstanceUID), store, Deliveries(store, config.destinations), config.appliance.data
    )
    try:
        yield from _send_and_wait(config, peer.ae_title, study, course, seconds)
    finally:
        store.database.close()


def through_own(config: Config, images: Sequence[Path], seconds: float) -> Iterator[Look]:
    """Start an appliance with the same bundle and limits beside, send the study to it, and stop it again."""
    from orthokernels.edge.service import Service

    with tempfile.TemporaryDirectory(prefix="orthokernels-doctor-") as folder, _receiver() as (port, received):
        own = _own_config(config, Path(folder), port)
        service = Service(own)
        service.start()
        study = new_study(images)
        course = _Course(
            str(study[0].StudyInstanceUID), service.store, service.deliveries, own.appliance.data,
            lambda: next((worker.unusable for worker in service.workers if worker.unusable), None), received,
        )  # fmt: skip
        try:
            yield from _send_and_wait(own, _TITLE, study, course, seconds)
        finally:
            service.stop()


def _own_config(config: Config, folder: Path, archive: int) -> Config:
    return Config.model_validate(
        {
            "appliance": {"ae_title": config.appliance.ae_title, "data": folder / "data"},
            "receive": {"port": _free_port(), "peers": [{"ae_title": _TITLE, "hosts": ["127.0.0.1"]}]},
            "disk": {"keep_free_bytes": 0, "refuse_above": 1.0, "clean_above": 1.0},
            "settle": {"quiet_seconds": 5.0},
            "results": config.results.model_dump(),
            "work": {**config.work.model_dump(), "workers": 1},
            "destinations": [
                {
                    "name": "doctor", "ae_title": _RECEIVER, "host": "127.0.0.1", "port": archive,
                    "label_map": "auto" if config.forms() == FORMS else "label map" in config.forms(),
                }
            ],
        }
    )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _receiver() -> Iterator[tuple[int, list[Dataset]]]:
    """A storage SCP of the doctor's own, and what it was sent."""
    received: list[Dataset] = []

    def take(event: Any) -> int:
        received.append(event.dataset)
        return 0x0000

    entity = AE(ae_title=_RECEIVER)
    for sop_class in WRITTEN:
        entity.add_supported_context(sop_class)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, take)])
    assert server is not None
    try:
        yield int(server.server_address[1]), received
    finally:
        server.shutdown()


def _send_and_wait(
    config: Config, title: str, study: Sequence[Dataset], course: _Course, seconds: float
) -> Iterator[Look]:
    started = time.monotonic()
    if refusal := _send(config, title, study):
        yield Look("send a study", "failed", refusal, "The appliance's log says why; check receive.peers.")
        return
    yield Look("send a study", "ok", f"{len(study)} images, each acknowledged")
    job = _wait(course, started + seconds)
    if job is None or job.state not in _ENDS:
        where = f"it is {job.state}{f', {job.progress}' if job.progress else ''}" if job else "no job was made of it"
        told = course.trouble() or f"not within {seconds:g} s: {where}"
        yield Look("work on it", "failed", told, "The appliance's log says more; --wait gives it more time.")
    elif job.state in ("rejected", "dead"):
        yield Look("work on it", "failed", f"{job.state}: {job.reason}", "The bundle should give a result for it.")
    else:
        yield Look("work on it", "ok", f"{job.state} after {time.monotonic() - started:.0f} s")
        yield _results(course, job)


def _send(config: Config, title: str, study: Sequence[Dataset]) -> str | None:
    """Send it as a scanner would; why it was not taken, or None."""
    entity = AE(ae_title=title)
    entity.implementation_class_uid = IMPLEMENTATION_UID
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    tls = (own_context(config.receive.tls), "") if config.receive.tls else None
    place = (address(config), config.receive.port)
    association = entity.associate(*place, ae_title=config.appliance.ae_title, tls_args=tls)
    if not association.is_established:
        what = "rejects the association" if association.is_rejected else "does not answer"
        return f"{place[0]}:{place[1]} {what} (as {title})"
    try:
        for number, image in enumerate(study, 1):
            status = association.send_c_store(image).get("Status")
            if status != 0x0000:
                answer = "without an answer" if status is None else f"0x{status:04X}"
                return f"image {number} of {len(study)} was refused: {answer}"
    finally:
        if association.is_established:
            association.release()
    return None


def address(config: Config) -> str:
    """Where the appliance is reached from this machine, which is then where the doctor comes from, too.

    Raises:
        InputError: receive.host is no address, and no name that is known.
    """
    host = config.receive.host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(host, host)
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise InputError(f"receive.host: {host}: is not known ({error.strerror}). Give an address.") from error


def _wait(course: _Course, until: float) -> Job | None:
    """The study's job once it has reached an end, or as it stands then."""
    pause = threading.Event()
    while True:
        job = next((job for job in course.store.jobs() if job.study_uid == course.study_uid), None)
        if (job is not None and job.state in _ENDS) or time.monotonic() > until or course.trouble():
            return job
        pause.wait(_POLL_SECONDS)


def _results(course: _Course, job: Job) -> Look:
    """Whether the objects are there, unchanged, and belong to the study that was sent."""
    made = course.deliveries.objects(job.id)
    for one in made:
        content = (course.data / one.file).read_bytes()
        if hashlib.sha256(content).hexdigest() != one.digest:
            return Look("results", "failed", f"{one.file}: is not what was made", "Look at the disk.")
        header = pydicom.dcmread(course.data / one.file, stop_before_pixels=True)
        if (header.StudyInstanceUID, header.PatientID) != (course.study_uid, PATIENT_ID):
            return Look("results", "failed", f"{one.file}: belongs to another study", "Report this as a fault.")
    kinds = Counter(UID(one.sop_class).name.removesuffix(" Storage") for one in made)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    if not made:
        return Look("results", "failed", "nothing was made of it", "The appliance's log says why.")
    if course.received is None:
        return Look("results", "ok", f"{told}; kept here, delivered to nobody")
    arrived = {str(dataset.SOPInstanceUID) for dataset in course.received}
    forms = {own["form"] for own in course.deliveries.of(job.id)}
    owed = {one.sop_uid for one in made if one.form is None or one.form in forms}
    if arrived != owed:
        told = f"{len(arrived & owed)} of {len(owed)} objects were delivered"
        return Look("results", "failed", told, "The appliance's log says why.")
    return Look("results", "ok", f"{told}; delivered to the doctor's own receiver")
