"""What is posted to the DICOMweb port: damaged requests, bodies and parts, and whether good ones fare well."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import h11
from orthokernels.bench.edge.fuzz.files import seeds as files
from orthokernels.bench.edge.fuzz.watch import Served, settled
from orthokernels.bench.edge.wire import exchange, free_port
from orthokernels.edge.config import Config
from orthokernels.edge.database import Database
from orthokernels.edge.receive.intake import FOLDER, Intake
from orthokernels.edge.receive.multipart import MultipartError, PartReader, TooMuchError
from orthokernels.edge.receive.open_studies import OpenStudies
from orthokernels.edge.receive.stow import StowServer
from orthokernels.edge.store import Store

_BOUNDARY = b"between-parts"
_TYPE = b'multipart/related; type="application/dicom"; boundary=' + _BOUNDARY
_STORED, _UID = "00081199", "00081155"

# CONFORMANCE.md's, and those of HTTP for a path and a method that there are not. 408 would mean that it was waited for
# what had been sent, 503 that requests which have ended are counted.
_ANSWERS = {200, 202, 400, 404, 405, 406, 409, 413, 415}

_LONGEST_HEAD = 2**16  # uvicorn's
_PIECE = 13  # bytes; shorter than the boundary, so that it is cut wherever it can be


def multipart(*parts: bytes, kind: bytes = b"application/dicom", boundary: bytes = _BOUNDARY) -> bytes:
    head = b"--" + boundary + b"\r\nContent-Type: " + kind + b"\r\n\r\n"
    return b"".join(head + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


def request(body: bytes, path: bytes = b"/studies", more: bytes = b"", chunk: int = 0) -> bytes:
    """A request as a good sender would send it; in chunks of so many bytes where ``chunk`` is not 0."""
    length = b"Content-Length: %d" % len(body)
    if chunk:
        length = b"Transfer-Encoding: chunked"
        pieces = [body[at : at + chunk] for at in range(0, len(body), chunk)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = b"POST " + path + b" HTTP/1.1\r\nHost: appliance\r\nContent-Type: " + _TYPE + b"\r\n" + more + length
    return head + b"\r\n\r\n" + body


class Multiparts(Served):
    """The first byte of an input says what the rest is (its remainder by three).

    0: a request from its first line on; 1: a body, which is posted under a good head; 2: a file, likewise in a good
    body.
    """

    fragments = (
        b"\r\n--" + _BOUNDARY + b"\r\n",
        b"\r\n--" + _BOUNDARY + b"--",
        b"\r\n--" + _BOUNDARY[:-1],
        b"--" + _BOUNDARY + b"\r\n\r\n" * 20,
        b"\r\n-",
        b"Content-Type: multipart/related; boundary=" + _BOUNDARY + b"\r\n\r\n",
        b"Content-Type: application/dicom\r\n" * 20,
        b"X-Long: " + b"a" * 5000 + b"\r\n",
        b"\r\nX-Huge: " + b"a" * 70_000,
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Expect: 100-continue\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n",
        b"Accept: text/html\r\n",
        b"HTTP/1.0\r\n",
        b"/studies/%00%2e%2e%2f1.2.3",
        b"ffffffffffffffff\r\n",
        b"\r\n0\r\n\r\n",
        b"boundary=",
        b'boundary="' + b"a" * 70 + b'"',
        b"; type*=utf-8''application%2Fdicom; a=\"\\",
        b"\r\n\r\n",
    )

    def __init__(self, folder: Path) -> None:
        self.seeds = list(_requests())
        self._data = folder / "data"

    def __enter__(self) -> Self:
        config = Config.model_validate(
            {
                "appliance": {"data": self._data},
                "receive": {"limits": {"waiting_studies": 10**6}},
                "stow": {"port": free_port(), "limits": {"bytes_per_request": 2**20}},
                "disk": {"keep_free_bytes": 0, "refuse_above": 1.0},
            }
        )
        assert config.stow is not None
        self._port = config.stow.port
        self._store = Store(Database(self._data))
        self._studies = OpenStudies(self._store)
        server = StowServer(config, config.stow, Intake(config, self._store), self._studies)
        self.serve(server.run, "orthokernels", "uvicorn", "asyncio")
        return self

    def take(self, content: bytes) -> str:
        """What is whole is answered as documented, and what is acknowledged is there."""
        kind, rest = content[:1] or b"\0", content[1:]
        sent = rest
        if kind[0] % 3:
            body = rest if kind[0] % 3 == 1 else multipart(rest)
            _hold_pieces_against_whole(body)
            sent = request(body)
        whole = _is_whole(sent)
        try:
            answer = exchange(self._port, sent, then_end=not whole)
        except ConnectionError:  # it was cut off
            return "refused"
        answer = re.sub(rb"\AHTTP/1\.1 100 [^\r]*\r\n\r\n", b"", answer)  # go on
        if not answer:
            assert not whole, "a request was not answered"
            return "refused"
        return self._judged(answer)

    def _judged(self, answer: bytes) -> str:
        found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
        assert found is not None, f"no answer of HTTP: {answer[:100]!r}"
        status = int(found[1])
        assert status in _ANSWERS, f"it was answered {status}: {answer[-100:]!r}"
        if status not in (200, 202):
            return "refused"
        for item in json.loads(answer.partition(b"\r\n\r\n")[2])[_STORED]["Value"]:
            assert self._store.known(item[_UID]["Value"][0]), f"{item} is not there, and was acknowledged"
        return "taken"

    def check(self) -> None:
        """Nothing was raised or half written, no study is held open, and a good request is answered."""
        assert settled(lambda: not self._studies.any()), "studies of requests that have ended are remembered"
        self._watch.check()
        assert self.take(self.seeds[0]) == "taken", "a good request was refused"
        assert settled(lambda: not self._unmatched()), f"on disk and in the database differ: {self._unmatched()}"

    def _unmatched(self) -> set[Path]:
        """Files without a row, and rows without a file."""
        with self._store.database.read() as connection:
            rows = connection.execute("SELECT file FROM instances UNION SELECT file FROM asides").fetchall()
        found = {path for path in (self._data / FOLDER).rglob("*") if path.is_file()}
        return found ^ {self._data / row[0] for row in rows}


def _is_whole(sent: bytes) -> bool:
    """Whether a server needs no more of a request to answer it, be it that it is none."""
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=_LONGEST_HEAD)
    if not sent:  # h11 takes that for the end of the connection
        return False
    reader.receive_data(sent)
    try:
        while (event := reader.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.EndOfMessage):
                return True
    except h11.RemoteProtocolError:
        return True
    return False


def _hold_pieces_against_whole(body: bytes) -> None:
    """However a body is cut on its way, its parts are the same."""
    whole, pieces = _parts(body, len(body) or 1), _parts(body, _PIECE)
    if whole is not None and pieces is not None:  # the reader skips what stands before a body by the piece
        assert whole == pieces, "cut in pieces, a body has other parts"


def _parts(body: bytes, piece: int) -> list[tuple[str, bytes]] | None:
    reader = PartReader(_BOUNDARY, 100, 2**20)
    found = []
    try:
        for at in range(0, len(body), piece):
            found += [(part.media_type, part.content.getvalue()) for part in reader.feed(body[at : at + piece])]
    except (MultipartError, TooMuchError):
        return None
    return found


def _requests() -> Iterator[bytes]:
    classic, *others = files()
    yield b"\0" + request(multipart(classic))
    yield b"\0" + request(multipart(classic), b"/studies/1.2.3", b"Accept: application/dicom+json\r\n", chunk=300)
    yield b"\0" + request(multipart(classic), more=b"Expect: 100-continue\r\n")
    yield b"\0" + request(multipart(classic, classic[:-50], b"no file"), chunk=4000)
    yield b"\0" + request(multipart(multipart(classic), kind=b"multipart/related; boundary=between-parts"))
    yield b"\1" + multipart(classic, classic)
    yield b"\1" + b"before\r\n" + multipart(classic, kind=b'application/dicom; transfer-syntax="*"') + b"after"
    yield b"\1" + multipart(*(b"" for _ in range(20)))
    yield b"\1" + multipart(b"\r\n--between-part\r\n-" * 30)
    for file in (classic, *others):
        yield b"\2" + file
