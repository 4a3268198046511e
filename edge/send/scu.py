"""One try to deliver: a new association, every object that is still owed, and the question whether it is kept.

And C-ECHO, which asks whether anyone is there at all.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
from orthokernels.edge.config import DimseDestination
from orthokernels.edge.deliveries import Made, NotDeliveredError
from orthokernels.edge.forms import STORAGE
from orthokernels.edge.receive.intake import IMPLEMENTATION_UID
from orthokernels.edge.receive.scp import Committed, report_status
from orthokernels.edge.tls import client_context
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"  # the one instance of the push model (PS3.4 annex J.3.1)
_REQUEST_COMMITMENT = 1

# How long the association stays open for the report. An archive that reports on it has its objects at hand and does so
# at once; most report on one of their own, and meanwhile no other study goes to them.
_REPORT_SECONDS = 5.0
_LOOK_SECONDS = 0.1

# SOP classes of all objects that we write.
WRITTEN = (*STORAGE.values(), Comprehensive3DSRStorage, SecondaryCaptureImageStorage)
_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)

# PS3.7 annex C.5.6: it has the object already, as after an answer that was lost. Identifiers derive from what is in the
# object, so it has this one.
DUPLICATE = 0x0111

# Statuses of a C-STORE that say "kept" (PS3.4 table B.2-1): success, and warnings about elements; and the answer of
# archives that take nothing twice.
_KEPT = (0x0000, 0xB000, 0xB006, 0xB007, DUPLICATE)


def deliver(
    title: str,
    destination: DimseDestination,
    data: Path,
    offered: Sequence[Made],
    chosen: Callable[[Collection[str]], Sequence[Made]],
    accepted: Callable[[Made], None],
) -> None:
    """Send objects on a new association.

    Args:
        title: our AE title.
        destination: where to.
        data: the folder that the objects' files are below.
        offered: the objects whose SOP classes are proposed.
        chosen: those of them to send, given the SOP classes that the destination accepted.
        accepted: called after each object that it took.

    Raises:
        NotDeliveredError: no association, or objects that were not taken. Those that were told stay delivered.
    """
    if not offered:
        return
    entity = _entity(title, destination)
    for sop_class, syntaxes in sorted({_context(data / one.file) for one in offered}):
        entity.add_requested_context(sop_class, list(syntaxes))
    failures = []
    with _association(entity, destination) as association:
        for one in chosen({str(context.abstract_syntax) for context in association.accepted_contexts}):
            if not association.is_established:
                failures.append("it ended the association before all was sent")
                break
            failure = _send(association, data / one.file)
            if failure is None:
                accepted(one)
            else:
                failures.append(f"{UID(one.sop_class).name}: {failure}")
    if failures:
        raise NotDeliveredError("; ".join(dict.fromkeys(failures)))


def _context(path: Path) -> tuple[str, tuple[str, ...]]:
    """What to offer for a file: its own syntax; where that is not compressed, a peer may choose between two."""
    meta = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[]).file_meta
    syntax = meta.TransferSyntaxUID
    return str(meta.MediaStorageSOPClassUID), (syntax,) if syntax.is_compressed else _PLAIN


def _send(association: Any, path: Path) -> str | None:
    """Why the destination did not take a file, or None if it did."""
    try:
        status = association.send_c_store(pydicom.dcmread(path)).get("Status")
    except ValueError:  # pynetdicom's, where no context was accepted for it
        return "it does not accept these"
    except RuntimeError:
        return "the association broke"
    if status is None:
        return "it did not answer, or ended the association"
    return None if status in _KEPT else f"it answered 0x{status:04X}"


def ask_commitment(
    title: str,
    destination: DimseDestination,
    kept: Sequence[Made],
    transaction: str,
    committed: Committed,
    awaited: Callable[[], bool],
) -> None:
    """Ask the archive to answer for ``kept``. It reports on this association, which stays open for it for some seconds
    while the report is ``awaited``, or later on one of its own.

    Raises:
        NotDeliveredError: it could not be asked, and has not reported either.
    """
    entity = _entity(title, destination)
    entity.add_requested_context(StorageCommitmentPushModel)
    request = Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = []
    for one in kept:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.sop_class, one.sop_uid
        request.ReferencedSOPSequence.append(item)
    reports = _Reports(committed)
    try:
        with _association(entity, destination, [(evt.EVT_N_EVENT_REPORT, reports.take)]) as association:
            try:
                status, _ = association.send_n_action(
                    request, _REQUEST_COMMITMENT, StorageCommitmentPushModel, _COMMITMENT_INSTANCE
                )
                asked = status.get("Status") == 0x0000
                # Half of what may pass in silence, after which the association would be aborted.
                until = time.monotonic() + min(_REPORT_SECONDS, destination.timeout_seconds / 2)
                while asked and association.is_established and awaited() and time.monotonic() < until:
                    reports.wait(_LOOK_SECONDS)
            finally:
                reports.close(destination.timeout_seconds)
            if not asked and awaited():  # it may have reported first, and answered badly or not at all
                raise NotDeliveredError("it did not take the commitment request")
    finally:
        reports.ended()


class _Reports:
    """Commitment reports that come on the association that asked for them.

    pynetdicom takes each in a thread of its own, which says at its end that the association's main thread does not
    rest; if it says so in the midst of a release, that waits for ever. So none may end in the midst of one.
    """

    def __init__(self, committed: Committed) -> None:
        self._committed = committed
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] | None = []
        self._came = threading.Event()
        self._over = threading.Event()

    def take(self, event: Any) -> tuple[int, None]:
        """Handle a report."""
        with self._lock:
            closed = self._threads is None
            if self._threads is not None:
                self._threads.append(threading.current_thread())
        status = report_status(event, self._committed)
        self._came.set()
        if closed:
            self._over.wait()
        return status, None

    def wait(self, seconds: float) -> None:
        """Wait until a report came."""
        self._came.wait(seconds)
        self._came.clear()

    def close(self, seconds: float) -> None:
        """Let those that came be answered, in at most so many seconds; the association is to be released."""
        with self._lock:
            threads, self._threads = self._threads or [], None
        until = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def ended(self) -> None:
        """The association is over."""
        self._over.set()


def echo(title: str, destination: DimseDestination, asked: Collection[str] = ()) -> set[str]:
    """Ask a destination whether it is there (C-ECHO).

    Returns:
        Those of the SOP classes ``asked`` that it accepts.

    Raises:
        NotDeliveredError: it is not, or does not talk to us.
    """
    entity = _entity(title, destination)
    entity.add_requested_context(Verification)
    for sop_class in asked:
        entity.add_requested_context(sop_class, list(_PLAIN))
    with _association(entity, destination) as association:
        accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        if Verification not in accepted:
            raise NotDeliveredError("it does not accept it")
        status = association.send_c_echo().get("Status")
        if status != 0x0000:
            raise NotDeliveredError("it did not answer" if status is None else f"it answered 0x{status:04X}")
    return accepted & set(asked)


def _entity(title: str, destination: DimseDestination) -> AE:
    entity = AE(ae_title=title)
    entity.implementation_class_uid = IMPLEMENTATION_UID
    entity.connection_timeout = destination.timeout_seconds
    entity.acse_timeout = destination.timeout_seconds
    entity.dimse_timeout = destination.timeout_seconds
    entity.network_timeout = destination.timeout_seconds
    return entity


@contextmanager
def _association(entity: AE, destination: DimseDestination, handlers: Sequence[Any] = ()) -> Iterator[Any]:
    association = entity.associate(
        destination.host,
        destination.port,
        ae_title=destination.ae_title,
        tls_args=(client_context(destination.tls), destination.host) if destination.tls else None,
        evt_handlers=[(evt.EVT_CONN_OPEN, _no_delay), *handlers],
    )
    if not association.is_established:
        what = "it rejected the association" if association.is_rejected else "no association"
        if association.is_aborted and not association.accepted_contexts:
            what = "no association, or none of our objects accepted"
        raise NotDeliveredError(f"{what} ({destination.host}:{destination.port}, {destination.ae_title})")
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _no_delay(event: Any) -> None:
    """Small messages wait for nothing: Nagle's algorithm and delayed acknowledgement cost 40 ms per object, and
    pynetdicom's thread, which looks for something to send or to read every 10 ms, up to 20."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    event.assoc.dul._run_loop_delay = 0.001
