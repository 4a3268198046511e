"""DICOMweb in: a STOW-RS server (PS3.18 section 10.5) on the same intake as C-STORE.

A part is taken in as soon as it has ended, so that no request is in memory as a whole; the answer comes when all are on
disk.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import logging
import threading
from ipaddress import ip_network

from orthokernels.edge import metrics
from orthokernels.edge.config import Config, Stow, StowPeer
from orthokernels.edge.credentials import SHORTEST_TOKEN, read_secret
from orthokernels.edge.receive.connection import within
from orthokernels.edge.receive.http_connection import Door, body, drop, limited_protocol, serve_http
from orthokernels.edge.receive.identity import is_uid
from orthokernels.edge.receive.intake import Arrival, Intake, Refused, Status, no_room
from orthokernels.edge.receive.listening import listen
from orthokernels.edge.receive.multipart import MultipartError, Part, PartReader, TooMuchError, media_type
from orthokernels.edge.receive.open_studies import OpenStudies
from orthokernels.edge.receive.part10 import check_readable, read_meta
from orthokernels.edge.receive.stow_answer import NO_ROOM, Outcome
from orthokernels.edge.tls import server_context
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

LOG = logging.getLogger("orthokernels.edge.receive")

DICOM_JSON = "application/dicom+json"
_ACCEPTABLE = {DICOM_JSON, "application/json", "application/*", "*/*"}

# Connections beyond the requests that may run, so that the next one can be told so.
_SPARE = 8


class StowServer:
    """Listens until it is stopped.

    Raises:
        InputError: a token or a certificate can't be read, or the port can't be had.
    """

    def __init__(self, config: Config, stow: Stow, intake: Intake, studies: OpenStudies) -> None:
        self._stow = stow
        self._intake = intake
        self._studies = studies
        self._most_bytes = config.receive.limits.bytes_per_instance
        self._tokens = {
            peer.name: read_secret(peer.token_file, f"stow.peers: {peer.name}.token_file", SHORTEST_TOKEN)
            for peer in stow.peers
            if peer.token_file is not None
        }
        self._tls = server_context(stow.tls) if stow.tls else None
        self._running = 0
        self._socket = listen("stow", stow.host, stow.port)

    def run(self, stop: threading.Event) -> None:
        """Serve until told to stop."""
        paths = ("/studies", "/studies/{study}")
        application = Starlette(routes=[Route(path, self._store, methods=["POST"]) for path in paths])
        application.router.redirect_slashes = False  # it would send a sender to the host that its own header names
        limits = self._stow.limits
        door = Door(self._socket, self._allowed, limits.requests + _SPARE)
        protocol = limited_protocol(door, limits.requests + _SPARE, limits.header_seconds)
        serve_http(application, door, protocol, stop, self._tls)

    async def _store(self, request: Request) -> Response:
        peer = self._peer(request)
        answer = self._unfit(request, peer)
        if answer is not None:
            await drop(request)
        else:
            assert peer is not None
            answer = await self._received(request, peer)
        if answer.status_code >= 400:
            told = bytes(answer.body).decode().strip() if answer.media_type != DICOM_JSON else "nothing was stored"
            LOG.warning("refused a request from %s: %s", peer.name if peer else "an unknown sender", told)
        metrics.REQUESTS.labels(str(answer.status_code)).inc()
        return answer

    def _allowed(self, host: str) -> bool:
        return any(within(host, peer.hosts) for peer in _peers(self._stow))

    def _peer(self, request: Request) -> StowPeer | None:
        """Who asks: by address, and by token where the peer has one."""
        assert request.client is not None
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        shown = token.strip().encode() if scheme.lower() == "bearer" else b""
        for peer in _peers(self._stow):
            known = self._tokens.get(peer.name)
            if within(request.client.host, peer.hosts) and (known is None or _same(known, shown)):
                return peer
        return None

    def _unfit(self, request: Request, peer: StowPeer | None) -> Response | None:
        """Why a request is answered before its body is read, where it is."""
        if peer is None:
            return _told(401, "a token is needed", {"WWW-Authenticate": "Bearer"})
        if not is_uid(request.path_params.get("study", "0.0")):
            return _told(400, "the path holds no Study Instance UID")
        accepted = {media_type(one)[0] for one in request.headers.get("accept", "*/*").split(",")}
        if not accepted & _ACCEPTABLE:
            return _told(406, f"answers are {DICOM_JSON}")
        kind, parameters = media_type(request.headers.get("content-type", ""))
        if kind != "multipart/related" or parameters.get("type", b"application/dicom").lower() != b"application/dicom":
            return _told(415, 'send multipart/related; type="application/dicom"')
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            return _told(415, "send the body as it is, not encoded")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._stow.limits.bytes_per_request:
            return _told(413, f"a request may have {self._stow.limits.bytes_per_request} bytes; send several")
        if self._running >= self._stow.limits.requests:
            return self._come_back("too many requests are running")
        if told := no_room(self._intake.data, self._intake.disk, int(length)):
            return self._come_back(told)
        return None

    def _come_back(self, why: str) -> Response:
        return _told(NO_ROOM, why, {"Retry-After": str(self._stow.limits.retry_after_seconds)})

    async def _received(self, request: Request, peer: StowPeer) -> Response:
        """Take the parts in and answer. What was taken in before a fault stays; the sender sends it again, or not."""
        self._running += 1
        outcome = Outcome()
        connection = object()
        try:
            await self._take_all(request, peer, outcome, connection)
        except MultipartError as error:
            return _told(400, str(error))
        except TooMuchError as error:
            await drop(request)
            return _told(413, str(error))
        except TimeoutError:
            return _told(408, "the request did not end in time")
        except ClientDisconnect:
            return _told(400, "the sender left")
        finally:
            self._running -= 1
            await asyncio.to_thread(self._studies.closed, connection)
        status = outcome.status
        if status == NO_ROOM:
            return self._come_back("there is no room for new images")
        body = await asyncio.to_thread(lambda: json.dumps(outcome.dataset().to_json_dict()))
        return Response(body, status, media_type=DICOM_JSON)

    async def _take_all(self, request: Request, peer: StowPeer, outcome: Outcome, connection: object) -> None:
        limits = self._stow.limits
        _, parameters = media_type(request.headers["content-type"])
        reader = PartReader(parameters.get("boundary", b""), limits.parts, self._most_bytes)
        received = parts = 0
        async for chunk in body(request, limits.idle_seconds, limits.request_seconds):
            received += len(chunk)
            if received > limits.bytes_per_request:
                raise TooMuchError(f"a request of more than {limits.bytes_per_request} bytes")
            for part in reader.feed(chunk):
                parts += 1
                await asyncio.to_thread(self._take, part, request, peer, outcome, connection)
        if not reader.ended:
            raise MultipartError("the body ends before its last boundary")
        if not parts:
            raise MultipartError("the body has no part")

    def _take(self, part: Part, request: Request, peer: StowPeer, outcome: Outcome, connection: object) -> None:
        sop_class = sop_uid = ""
        try:
            if part.media_type != "application/dicom":
                raise Refused(Status.NOT_UNDERSTOOD, "it is not application/dicom")
            meta = read_meta(part.content)
            sop_class, sop_uid = meta.sop_class, meta.sop_uid
            check_readable(meta)
            arrival = Arrival(
                io.BytesIO(part.content.read()),
                meta.syntax,
                peer.name,
                peer.priority,
                sop_class=meta.sop_class,
                study_uid=request.path_params.get("study"),
            )
            identity = self._intake.take(arrival)
        except Refused as refusal:
            outcome.refused(sop_class, sop_uid, refusal.status)
            return
        self._studies.brought(connection, identity.study_uid)
        outcome.stored.append((identity.sop_class, identity.sop_uid))


def _peers(stow: Stow) -> tuple[StowPeer, ...]:
    """Who may post; where nobody is listed, whoever is on this machine, which is all that can connect then."""
    here = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    return stow.peers or (StowPeer(name="loopback", hosts=here),)


def _same(known: str, shown: bytes) -> bool:
    return hmac.compare_digest(known.encode(), shown)


def _told(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{why}\n", status, headers)
