"""The DICOM storage SCP: who may associate, what is answered to a C-STORE, and when a study's association has ended."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from orthokernels.edge import metrics
from orthokernels.edge.config import Config, DimseDestination, Peer
from orthokernels.edge.receive.connection import CountedSocket, LimitedServer, host_allowed
from orthokernels.edge.receive.intake import IMPLEMENTATION_UID, Arrival, Intake, Refused, Status
from orthokernels.edge.receive.listening import not_taken
from orthokernels.edge.receive.open_studies import OpenStudies
from orthokernels.edge.receive.part10 import IMAGE_CLASSES, SYNTAXES
from orthokernels.edge.tls import server_context
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

LOG = logging.getLogger("orthokernels.edge.receive")

# PS3.8 section 9.3.4: result, source, reason.
_CALLING_TITLE_UNKNOWN = (0x01, 0x01, 0x03)
_CALLED_TITLE_UNKNOWN = (0x01, 0x01, 0x07)

# How often archives' names are looked up.
_LOOKUP_SECONDS = 60.0

_HIGH = 1  # C-STORE's priority (PS3.7 table 9.3-1)

# Told of a commitment's transaction and the objects that it keeps; whether anyone had asked for it.
Committed = Callable[[str, set[str]], bool]


class Receiver:
    """Listens until it is stopped."""

    def __init__(self, config: Config, intake: Intake, studies: OpenStudies, committed: Committed) -> None:
        self._config = config
        self._intake = intake
        self._peers = config.receive.peers
        self._archives = _Archives(config)
        self._committed = committed
        self._studies = studies
        self._counts: dict[Any, int] = {}
        self._server: LimitedServer | None = None
        self._stopped = threading.Event()

    def start(self) -> threading.Thread:
        """Listen, in a thread of its own.

        Raises:
            InputError: the port can't be had.
        """
        receive = self._config.receive
        _config.LOG_HANDLER_LEVEL = "none"  # pynetdicom's own lines tell UIDs and names
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
        entity = AE(ae_title=self._config.appliance.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_UID
        entity.require_called_aet = True
        entity.require_calling_aet = [*(peer.ae_title for peer in self._peers), *self._archives.titles] or ["nobody"]
        entity.maximum_associations = receive.limits.associations
        entity.maximum_pdu_size = receive.limits.pdu_bytes
        entity.network_timeout = receive.limits.idle_seconds
        entity.acse_timeout = receive.limits.pdu_seconds
        entity.add_supported_context(Verification)
        for image_class in IMAGE_CLASSES:
            entity.add_supported_context(image_class, list(SYNTAXES))
        # The archive reports as SCP of the commitment on an association that it opens (PS3.4 annex J.3.3).
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        context = server_context(receive.tls) if receive.tls else None
        try:
            server = entity.make_server(
                (receive.host, receive.port),
                server_class=LimitedServer,
                ssl_context=context,
                evt_handlers=self._handlers(),
            )
        except OSError as error:
            raise not_taken("receive", receive.host, receive.port, error) from error
        assert isinstance(server, LimitedServer)
        server.limits = receive.limits
        server.hosts_allowed = lambda host: self._allowed(host) is not None
        server.ended = self._ended
        self._server = server
        threading.Thread(target=self._archives.run, args=(self._stopped,), name="archives", daemon=True).start()
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="dicom-port", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Stop listening; associations that are open are aborted, and their senders keep what was not acknowledged."""
        self._stopped.set()
        if self._server is None:
            return
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()

    def _allowed(self, host: str, ae_title: str | None = None) -> Peer | None:
        """Who may talk to us; a scanner waits for no look-up of an archive's name."""
        return host_allowed(self._peers, host, ae_title) or host_allowed(self._archives.peers(), host, ae_title)

    def _handlers(self) -> list[Any]:
        return [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_DIMSE_RECV, self._message_ended),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, lambda event: 0x0000),
            (evt.EVT_N_EVENT_REPORT, self._report),
        ]

    def _requested(self, event: Any) -> None:
        """Reject who is not listed: pynetdicom's own lists don't know which host an AE title belongs to."""
        association = event.assoc
        wanted = association.requestor.primitive
        host = association.requestor.address
        peer = self._allowed(host, wanted.calling_ae_title)
        if wanted.called_ae_title != self._config.appliance.ae_title:
            self._reject(association, _CALLED_TITLE_UNKNOWN, f"{host} calls another AE title than ours")
        elif peer is None:
            self._reject(association, _CALLING_TITLE_UNKNOWN, f"{host} calls itself by an AE title that it may not use")
        else:
            metrics.CONNECTIONS.labels("accepted").inc()

    def _reject(self, association: Any, why: tuple[int, int, int], told: str) -> None:
        metrics.CONNECTIONS.labels("rejected").inc()
        LOG.warning("rejected an association: %s", told)
        association.is_rejected = True  # first: should sending fail, it is not negotiated any further
        association.acse.send_reject(*why)
        association.kill()

    def _message_ended(self, event: Any) -> None:
        if isinstance(event.assoc.dul.socket, CountedSocket):
            event.assoc.dul.socket.message_ended()

    def _store(self, event: Any) -> int:
        association, request = event.assoc, event.request
        peer = host_allowed(self._peers, association.requestor.address, association.requestor.ae_title)
        if peer is None:  # an archive, which reports commitments and sends nothing
            return int(Status.OUT_OF_RESOURCES)
        count = self._counts[association] = self._counts.get(association, 0) + 1
        if count > self._config.receive.limits.instances_per_association:
            LOG.warning("refused an instance from %s: more than %d on one association", peer.ae_title, count - 1)
            return int(Status.OUT_OF_RESOURCES)
        arrival = Arrival(
            content=request.DataSet,
            syntax=event.context.transfer_syntax,
            source=peer.ae_title,
            priority=max(peer.priority - (request.Priority == _HIGH), 0),
            sop_class=str(request.AffectedSOPClassUID),
            sop_uid=str(request.AffectedSOPInstanceUID),
        )
        try:
            identity = self._intake.take(arrival)
        except Refused as refusal:
            return int(refusal.status)
        self._studies.brought(association, identity.study_uid)
        return int(Status.SUCCESS)

    def _report(self, event: Any) -> tuple[int, None]:
        return report_status(event, self._committed), None

    def _ended(self, association: Any) -> None:
        self._counts.pop(association, None)
        self._studies.closed(association)


class _Archives:
    """Destinations that report commitments on associations of their own, from their addresses.

    Names are looked up once a minute, as they may be unknown for a while, or change, and in a thread of their own, as
    that may take its time; in the meantime the addresses that were found last count. Of an archive that was never
    found, reports on associations of its own are refused.
    """

    def __init__(self, config: Config) -> None:
        self._destinations = [
            one for one in config.destinations if isinstance(one, DimseDestination) and one.commitment
        ]
        self.titles = tuple(one.ae_title for one in self._destinations)
        self._found: dict[str, tuple[IPv4Network | IPv6Network, ...]] = {}
        self._unknown: set[str] = set()

    def peers(self) -> tuple[Peer, ...]:
        """Those whose addresses are known."""
        found = [(one.ae_title, self._found.get(one.host)) for one in self._destinations]
        return tuple(Peer(ae_title=title, hosts=addresses) for title, addresses in found if addresses)

    def run(self, stop: threading.Event) -> None:
        """Look names up until told to stop."""
        while True:
            for one in self._destinations:
                self._look_up(one.name, one.host)
            if stop.wait(_LOOKUP_SECONDS):
                return

    def _look_up(self, name: str, host: str) -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            self._found[host] = tuple(ip_network(str(entry[4][0]).split("%")[0]) for entry in found)
            self._unknown.discard(host)
        except (OSError, UnicodeError) as error:
            if host not in self._unknown:
                last = "those found last count" if host in self._found else "its commitment reports are refused"
                LOG.warning("destination %s: host %r is not known (%s); %s", name, host, error, last)
            self._unknown.add(host)


def report_status(event: Any, committed: Committed) -> int:
    """Pass an archive's commitment report on; the status that answers it (PS3.7 annex C).

    What it does not name as kept counts as missing, whether or not it is among the failed; and so does what it names as
    both.
    """
    try:
        report = event.event_information
        transaction = str(report.TransactionUID)
        kept, failed = (
            {str(item.ReferencedSOPInstanceUID) for item in report.get(sequence) or ()}
            for sequence in ("ReferencedSOPSequence", "FailedSOPSequence")
        )
    except Exception:
        LOG.warning("a commitment report could not be read")
        return 0x0110  # processing failure
    return 0x0000 if committed(transaction, kept - failed) else 0x0115  # invalid argument value: no such transaction
