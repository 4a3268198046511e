"""What is sent to the DICOM port: damaged associations to a receiver that listens, and whether good ones fare well."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from orthokernels.bench.edge.fuzz.files import seeds as files
from orthokernels.bench.edge.fuzz.target import Target
from orthokernels.bench.edge.fuzz.watch import Watch, settled
from orthokernels.bench.edge.wire import (
    ASSOCIATE_AC,
    P_DATA,
    RELEASE_RP,
    Peer,
    associate_request,
    echo_request,
    free_port,
    pdu,
    release_request,
    store_command,
    store_request,
    value_item,
)
from orthokernels.edge.config import Config
from orthokernels.edge.database import Database
from orthokernels.edge.receive.intake import Intake
from orthokernels.edge.receive.open_studies import OpenStudies
from orthokernels.edge.receive.scp import Receiver
from orthokernels.edge.store import Store
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

_CLASS, _UID = str(MRImageStorage), "1.2.3.1.1"
_CONTEXTS = ((1, _CLASS, (str(ExplicitVRLittleEndian),)), (3, "1.2.840.10008.1.1", (str(ExplicitVRLittleEndian),)))
_ANSWER_SECONDS = 0.1  # for what is answered at all before the other side hangs up


class Pdus(Target):
    """The first byte of an input says what the rest is (its remainder by three).

    0: a request for an association, its length before it, and all that follows once that is answered; 1: a data set,
    which is sent as a good sender would; 2: a command set, likewise.
    """

    fragments = (
        pdu(P_DATA, b""),
        pdu(P_DATA, struct.pack(">L", 0)),
        pdu(P_DATA, struct.pack(">LBB", 2**32 - 1, 1, 3)),
        pdu(P_DATA, value_item(1, b"", command=True, last=True)),
        pdu(P_DATA, value_item(99, b"x", command=False, last=True)),
        pdu(2, b""), pdu(3, b""), pdu(6, b""), pdu(7, bytes(4)), pdu(9, b""),
        b"\x50\x00\xff\xff", b"\x51\x00\x00\x00", b"\x54\x00\x00\x02\x00\xff",
        b"\x58\x00\x00\x06\x05\x01\xff\xff\x00\x00",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.seeds = list(_conversations())
        self._watch = Watch("orthokernels")
        self._config = Config.model_validate(
            {
                "appliance": {"data": folder / "data"},
                "receive": {
                    "port": free_port(),
                    "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}],
                    "limits": {"idle_seconds": 5.0, "pdu_seconds": 5.0, "waiting_studies": 10**6},
                },
                "disk": {"keep_free_bytes": 0, "refuse_above": 1.0},
            }
        )
        self._database = Database(self._config.appliance.data)
        store = Store(self._database)
        self._studies = OpenStudies(store)
        self._receiver = Receiver(self._config, Intake(self._config, store), self._studies, lambda *_: False)

    def __enter__(self) -> Self:
        self._watch.start()
        self._receiver.start()
        self._threads = threading.active_count()  # before any association, whose own may end a little later
        self._echo()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._receiver.stop()
        self._watch.stop()

    def take(self, content: bytes) -> str:
        request, rest = _spoken(content)
        answered = False
        with Peer(self._config.receive.port, 8.0) as peer:
            try:
                peer.send(request)
                if len(request) < 6 or struct.unpack_from(">L", request, 2)[0] + 6 != len(request):
                    peer.end()  # or the other side would wait for more, as long as it may
                answer = peer.receive()
                if answer is None or answer[0] != ASSOCIATE_AC:
                    return "refused"
                peer.send(rest)
                peer.wait(_ANSWER_SECONDS)
                peer.end()
                while (answer := peer.receive()) is not None:
                    answered = answered or answer[0] in (P_DATA, RELEASE_RP)
            except TimeoutError:
                raise
            except OSError:  # it was cut off
                return "refused"
        return "taken" if answered else "refused"

    def check(self) -> None:
        """No thread of ours ended by an exception, none is left, and a good association is served."""
        assert settled(lambda: threading.active_count() <= self._threads), f"are left: {threading.enumerate()}"
        self._echo()
        assert settled(lambda: not self._studies.any()), "studies of associations that have ended are remembered"
        self._watch.check()
        data = self._config.appliance.data
        strange = [path for path in data.parent.rglob("*.dcm") if data / "images" not in path.parents]
        assert not strange, f"files outside of their place: {strange}"

    def _echo(self) -> None:
        with Peer(self._config.receive.port) as peer:
            accepted = peer.associate(*_CONTEXTS)
            assert accepted == {1: 0, 3: 0}, f"a good association was answered {accepted}"
            peer.send(echo_request(3))
            answer = peer.receive()
            assert (answer or (0,))[0] == P_DATA, "a good C-ECHO was not answered"
            peer.send(release_request())
            assert (peer.receive() or (0,))[0] == RELEASE_RP, "a good release was not answered"


_REQUEST = associate_request(contexts=_CONTEXTS)


def _spoken(content: bytes) -> tuple[bytes, bytes]:
    """The request for an association and what follows it, of an input."""
    kind, payload = content[:1] or b"\0", content[1:]
    if kind[0] % 3 == 0:
        length = struct.unpack(">L", payload[:4].ljust(4, b"\0"))[0]
        return payload[4 : 4 + length], payload[4 + length :]
    if kind[0] % 3 == 1:
        return _REQUEST, b"".join(store_request(payload, _CLASS, _UID)) + release_request()
    return _REQUEST, pdu(P_DATA, value_item(1, payload, command=True, last=True)) + release_request()


def _conversations() -> Iterator[bytes]:
    request = _REQUEST
    dataset = next(files())[_meta_bytes(next(files())) :]
    yield b"\1" + dataset
    yield b"\2" + store_command(_CLASS, _UID)
    yield b"\2" + echo_request(3)[12:]
    image = b"".join(store_request(dataset, _CLASS, _UID))
    for rest in (
        image + release_request(),
        b"".join(store_request(dataset, _CLASS, _UID, chunk=64)) + release_request(),
        echo_request(3) + release_request(),
        image + image,
        pdu(P_DATA, value_item(1, store_command(_CLASS, _UID), command=True, last=True)) + pdu(7, bytes(4)),
    ):
        yield b"\0" + struct.pack(">L", len(request)) + request + rest


def _meta_bytes(file: bytes) -> int:
    """Where the data set begins: after preamble, prefix and the meta group, whose length its first element tells."""
    return int(144 + struct.unpack_from("<L", file, 140)[0])
