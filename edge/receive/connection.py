"""The DICOM port's sockets: who may connect, how much may come, and how long anything may take.

pynetdicom reads whatever length a PDU claims, waits for it without end, and shakes hands for TLS in the thread that
accepts connections. Here a PDU is capped and has a deadline, a message and an association have a budget of bytes, and a
handshake happens in the connection's own thread.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from io import FileIO
from ipaddress import IPv4Network, IPv6Network, ip_address
from socketserver import BaseServer
from typing import Any

from orthokernels.edge import metrics
from orthokernels.edge.config import Limits, Peer
from orthokernels.edge.receive.shortcuts import shorten
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

LOG = logging.getLogger("orthokernels.edge.receive")

# An A-ASSOCIATE-RQ has at most 128 contexts of a few dozen transfer syntaxes, each a UID of up to 64 characters.
_LARGEST_OTHER_PDU = 2**18

# Connections beyond those that may have an association, so that the next one can be told so.
_SPARE = 8

# How long the reactor waits for data, unless it is woken, before it looks at its timers.
_LISTENING_SECONDS = 0.02

_ONE = (1).to_bytes(8, sys.byteorder)  # what an event counter is woken by


class LimitError(OSError):
    """A sender went beyond a limit; pynetdicom ends the association on an OSError from its socket."""


class CountedSocket(AssociationSocket):
    """A socket that never waits past a deadline, nor takes more than its budget."""

    def limit(self, limits: Limits) -> None:
        self._limits = limits
        self._of_message = self._of_association = 0
        self._woken = FileIO(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), "r+")
        self._waking = threading.Lock()

    def message_ended(self) -> None:
        """A whole message is there."""
        self._of_message = 0

    def wake(self) -> None:
        """End the wait for data: there is something to send. Any thread may call it."""
        with self._waking:
            if not self._woken.closed:
                self._woken.write(_ONE)

    def close(self) -> None:
        super().close()
        with self._waking:
            self._woken.close()

    @property
    def ready(self) -> bool:
        """Whether data can be read; waits for it a moment, unless the state machine has an event to act on first."""
        if self.socket is None or not self._is_connected:
            return False
        if not (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()):
            with suppress(OSError, ValueError):  # closed meanwhile, which pynetdicom finds out itself
                heard: list[Any] = [self.socket, self._woken]
                readable, _, _ = select.select(heard, [], [], _LISTENING_SECONDS if self.event_queue.empty() else 0.0)
                if self._woken in readable:
                    self._woken.read(len(_ONE))
        return super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        """``nr_bytes`` bytes, or fewer if the other side closes.

        Raises:
            LimitError: there are too many of them, or they took too long.
        """
        limits = self._limits
        if nr_bytes > max(limits.pdu_bytes + 6, _LARGEST_OTHER_PDU):
            raise LimitError(f"a PDU of {nr_bytes} bytes")
        self._of_message += nr_bytes
        self._of_association += nr_bytes
        if self._of_message > limits.bytes_per_instance + 2**20:
            raise LimitError(f"an instance of more than {limits.bytes_per_instance} bytes")
        if self._of_association > limits.bytes_per_association:
            raise LimitError(f"an association of more than {limits.bytes_per_association} bytes")
        received = bytearray(nr_bytes)
        filled = self._fill(memoryview(received), time.monotonic() + limits.pdu_seconds)
        return received if filled == nr_bytes else received[:filled]

    def _fill(self, view: memoryview, deadline: float) -> int:
        assert self.socket is not None
        filled = 0
        try:
            while filled < len(view):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise LimitError("a PDU that did not end in time")
                self.socket.settimeout(left)
                got = self.socket.recv_into(view[filled:])
                if got == 0:
                    break
                filled += got
            # A sender that waits for it before its next few bytes (Nagle's algorithm) would wait 40 ms; the system
            # forgets this each time.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        finally:
            self.socket.settimeout(self._limits.pdu_seconds)  # for what is sent
        return filled


class ConnectionHandler(RequestHandler):
    """Gives each association a counted socket."""

    server: LimitedServer

    def _create_association(self) -> Any:
        association = super()._create_association()
        counted = CountedSocket(association, client_socket=self.request)
        counted.limit(self.server.limits)
        association.dul.event_queue.get_nowait()  # the socket that it replaces has announced the connection too
        association.dul.socket = counted
        shorten(association, counted.wake)
        association.run = partial(self._run, association, counted)  # type: ignore[method-assign]
        return association

    def _run(self, association: Any, counted: CountedSocket) -> None:
        """The association's thread, whose end is the association's: pynetdicom tells of a closed connection sometimes
        before the last image that came on it is stored, and sometimes not at all."""
        try:
            threading.Thread.run(association)
        finally:
            counted.close()
            self.server.ended(association)


class LimitedServer(ThreadedAssociationServer):
    """Listens. What follows is set before it serves; ``ended`` is called with each association that is over."""

    limits: Limits
    hosts_allowed: Callable[[str], bool]
    ended: Callable[[Any], None]
    request_queue_size = 32
    daemon_threads = True

    def get_request(self) -> tuple[socket.socket, Any]:
        """The connection alone; its TLS handshake comes in its own thread."""
        assert self.socket is not None
        connection, address = self.socket.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(self.limits.handshake_seconds)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether to talk to this address at all."""
        if not self.hosts_allowed(client_address[0]):
            metrics.CONNECTIONS.labels("wrong host").inc()
            LOG.warning("closed a connection from %s, which no peer's hosts include", client_address[0])
            return False
        if len(self.active_associations) + self._shaking_hands() >= self.limits.associations + _SPARE:
            metrics.CONNECTIONS.labels("too many").inc()
            LOG.warning("closed a connection from %s: too many are open", client_address[0])
            return False
        return True

    def _shaking_hands(self) -> int:
        return sum(1 for thread in threading.enumerate() if "process_request_thread" in thread.name)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: the handshake, then the association."""
        if self.ssl_context is not None:
            request = self.ssl_context.wrap_socket(request, server_side=True)
        request.settimeout(self.limits.pdu_seconds)
        ConnectionHandler(request, client_address, self)

    def shutdown(self) -> None:
        """Stop; pynetdicom's own also takes the server off a list that only its ``start_server`` puts it on."""
        BaseServer.shutdown(self)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line instead of a traceback; a failed handshake is the usual case."""
        metrics.CONNECTIONS.labels("failed").inc()
        LOG.warning("a connection from %s failed: %s", client_address[0], sys.exception())


def host_allowed(peers: tuple[Peer, ...], host: str, ae_title: str | None = None) -> Peer | None:
    """The peer that this address (and, where given, AE title) belongs to."""
    for peer in peers:
        if ae_title in (None, peer.ae_title) and within(host, peer.hosts):
            return peer
    return None


def within(host: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Whether an address, as a socket gives it, lies in one of the networks."""
    address = ip_address(host.split("%")[0])
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
