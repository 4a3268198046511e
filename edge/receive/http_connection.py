"""Connections of the DICOMweb port and of the page: who may connect, and how long a request may take to begin, go on
and end.

uvicorn waits for a request's header without end, and for each piece of its body too. Here both have deadlines, and so
has the whole; a connection is closed after its one request. Over TLS it hears of a connection once hands are shaken;
here those before that are few as well, or whoever connects and says nothing would take every file that may be open.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import uvicorn
from orthokernels.edge import metrics
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.h11_impl import H11Protocol

LOG = logging.getLogger("orthokernels.edge.receive")

_STOP_SECONDS = 5
_AT_ONCE = 32

# A sender reads no answer before it has sent its request, so as much as this is read and dropped for it to be heard.
_DROPPED_BYTES, _DROPPED_SECONDS = 16 * 2**20, 2.0


class Door(socket.socket):
    """A listening socket that lets in who is ``allowed``, and so many at one time that no request can come from yet: of
    more than that, the one goes that came first."""

    def __init__(self, taken: socket.socket, allowed: Callable[[str], bool], connections: int) -> None:
        super().__init__(fileno=taken.detach())
        self._allowed = allowed
        self._connections = connections
        self._waiting: dict[int, socket.socket] = {}  # oldest first

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if not self._allowed(address[0]):
            connection.close()
            turned_away("wrong host", f"closed a connection from {address[0]}, which no peer's hosts include")
            raise ConnectionAbortedError
        self._waiting = {number: own for number, own in self._waiting.items() if own.fileno() == number}
        if len(self._waiting) >= self._connections:
            with suppress(OSError):  # it has just gone by itself
                self._waiting.pop(next(iter(self._waiting))).shutdown(socket.SHUT_RDWR)
            turned_away("too many", "closed a connection: too many are open")
        self._waiting[connection.fileno()] = connection
        return connection, address

    def passed(self, number: int) -> None:
        """A request may come on the connection of this file number."""
        self._waiting.pop(number, None)


def turned_away(outcome: str, told: str) -> None:
    """Count a connection that was closed, and say why."""
    metrics.CONNECTIONS.labels(outcome).inc()
    LOG.warning("%s", told)


def serve_http(
    application: Starlette,
    door: Door,
    protocol: type[H11Protocol],
    stop: threading.Event,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve on a listening socket until told to stop; each connection has one request. ``protocol`` is what
    ``limited_protocol`` made for the door."""
    settings = uvicorn.Config(
        application,
        http=protocol,
        loop="asyncio",  # which asks the door for connections,
        backlog=_AT_ONCE,  # and for as many before it sees to those that are to go
        headers=[("Connection", "close")],
        proxy_headers=False,  # who connects is who connects, whatever a header says
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",  # a connection that became a web socket's would have none of the deadlines
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    settings.load()
    settings.ssl = tls

    class Server(uvicorn.Server):
        async def on_tick(self, counter: int) -> bool:
            return stop.is_set() or await super().on_tick(counter)

    Server(settings).run(sockets=[door])


def limited_protocol(door: Door, connections: int, header_seconds: float) -> type[H11Protocol]:
    """What uvicorn speaks with, for so many connections that came through a door, whose headers come in time.

    Of more connections than that, the one goes whose request has been awaited longest.
    """
    silent: dict[LimitedProtocol, None] = {}  # without a request so far, oldest first

    class LimitedProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            door.passed(transport.get_extra_info("socket").fileno())
            silent[self] = None
            self._deadline = self.loop.call_later(header_seconds, self._give_up)
            if len(self.connections) > connections:
                oldest = next((own for own in silent if own.cycle is None), self)
                oldest._close("too many", "closed a connection: too many are open")

        def connection_lost(self, exc: Exception | None) -> None:
            silent.pop(self, None)
            self._deadline.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """What came is no HTTP. A request that it was to be the body of has one answer all the same: its own where
            that has begun, and otherwise this one, so that whoever waits for the body hears that the sender left."""
            if self.cycle is not None and self.cycle.response_started:
                return
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            super().send_400_response(msg)

        def _give_up(self) -> None:
            if self.cycle is None:
                self._close("failed", "closed a connection whose request did not begin in time")

        def _close(self, outcome: str, told: str) -> None:
            turned_away(outcome, told)
            silent.pop(self, None)
            self.transport.abort()

    return LimitedProtocol


async def body(request: Request, idle_seconds: float, request_seconds: float) -> AsyncIterator[bytes]:
    """A request's body as it comes.

    Raises:
        TimeoutError: nothing came for ``idle_seconds``, or all of it took longer than ``request_seconds``.
        ClientDisconnect: the sender left.
    """
    clock = asyncio.get_running_loop().time
    until = clock() + request_seconds
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(max(min(idle_seconds, until - clock()), 0.0)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        yield chunk


async def drop(request: Request) -> None:
    """Read on for a while without keeping it, so that a sender hears why it was refused rather than a broken pipe."""
    dropped = 0
    try:
        async for chunk in body(request, _DROPPED_SECONDS, _DROPPED_SECONDS):
            dropped += len(chunk)
            if dropped > _DROPPED_BYTES:
                return
    except (TimeoutError, ClientDisconnect, RuntimeError):  # the last: there is no more to read
        return
