"""A DICOM peer in raw bytes, for what no well-behaved toolkit will send (PS3.8 section 9.3, PS3.7 annex E)."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

# A presentation context as it is proposed: number, abstract syntax, transfer syntaxes.
Context = tuple[int, str, Sequence[str]]
MR_IMAGES: Context = (1, str(MRImageStorage), (str(ExplicitVRLittleEndian),))


def pdu(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(content)) + content


def item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(content)) + content


def associate_request(
    called: str = "ORTHOKERNELS", calling: str = "MR1", contexts: Sequence[Context] = (MR_IMAGES,)
) -> bytes:
    proposed = b"".join(
        item(
            0x20,
            struct.pack(">BBBB", number, 0, 0, 0)
            + item(0x30, abstract.encode())
            + b"".join(item(0x40, syntax.encode()) for syntax in syntaxes),
        )
        for number, abstract, syntaxes in contexts
    )
    user = item(0x51, struct.pack(">L", 131072)) + item(0x52, b"1.2.3.4") + item(0x55, b"WIRE")
    titles = called.encode("latin-1").ljust(16)[:16] + calling.encode("latin-1").ljust(16)[:16]
    content = struct.pack(">HH", 1, 0) + titles + bytes(32) + item(0x10, APPLICATION_CONTEXT) + proposed
    return pdu(ASSOCIATE_RQ, content + item(0x50, user))


def release_request() -> bytes:
    return pdu(RELEASE_RQ, bytes(4))


def element(number: int, value: bytes) -> bytes:
    """Of a command set: group 0000, implicit VR little endian."""
    return struct.pack("<HHL", 0, number, len(value)) + value


def padded(uid: str) -> bytes:
    return uid.encode("latin-1") + b"\0" * (len(uid) % 2)


def command_set(*elements: bytes) -> bytes:
    """With its length before them."""
    joined = b"".join(elements)
    return element(0x0000, struct.pack("<L", len(joined))) + joined


def echo_request(context: int, message: int = 1) -> bytes:
    """The PDU of a C-ECHO."""
    command = command_set(
        element(0x0002, padded("1.2.840.10008.1.1")), element(0x0100, struct.pack("<H", 0x0030)),
        element(0x0110, struct.pack("<H", message)), element(0x0800, struct.pack("<H", 0x0101)),
    )  # fmt: skip
    return pdu(P_DATA, value_item(context, command, command=True, last=True))


def store_command(sop_class: str, sop_uid: str, message: int = 1) -> bytes:
    return command_set(
        element(0x0002, padded(sop_class)), element(0x0100, struct.pack("<H", 0x0001)),
        element(0x0110, struct.pack("<H", message)), element(0x0700, struct.pack("<H", 0)),
        element(0x0800, struct.pack("<H", 0x0001)), element(0x1000, padded(sop_uid)),
    )  # fmt: skip


def value_item(context: int, content: bytes, *, command: bool, last: bool) -> bytes:
    return struct.pack(">LBB", len(content) + 2, context, command | last << 1) + content


def store_request(
    content: bytes, sop_class: str, sop_uid: str, context: int = 1, message: int = 1, chunk: int = 100_000
) -> Iterator[bytes]:
    """The PDUs of a C-STORE of an encoded data set."""
    command = store_command(sop_class, sop_uid, message)
    yield pdu(P_DATA, value_item(context, command, command=True, last=True))
    for at in range(0, max(len(content), 1), chunk):
        part = content[at : at + chunk]
        yield pdu(P_DATA, value_item(context, part, command=False, last=at + chunk >= len(content)))


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def exchange(port: int, content: bytes, *, then_end: bool, seconds: float = 8.0) -> bytes:
    """Send all of ``content``, say that nothing more comes where ``then_end``, and read until the other side closes.

    Raises:
        TimeoutError: it does not go on for so many seconds.
        ConnectionError: it cuts the connection.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(content)
        if then_end:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(2**16):
            received += part
        return received


class Peer:
    """A connection to the appliance."""

    def __init__(self, port: int, seconds: float = 20.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.socket.close()

    def send(self, *content: bytes) -> None:
        for part in content:
            self.socket.sendall(part)

    def wait(self, seconds: float) -> None:
        """Until there is something to receive, at most so long."""
        select.select([self.socket], [], [], seconds)

    def end(self) -> None:
        """Say that nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def receive(self) -> tuple[int, bytes] | None:
        """The next PDU's type and content; None once the connection is closed."""
        try:
            head = self._exactly(6)
            if head is None:
                return None
            kind, _, length = struct.unpack(">BBL", head)
            content = self._exactly(length)
        except ConnectionError:
            return None
        return None if content is None else (kind, content)

    def _exactly(self, count: int) -> bytes | None:
        received = b""
        while len(received) < count:
            part = self.socket.recv(count - len(received))
            if not part:
                return None
            received += part
        return received

    def associate(self, *contexts: Context, **titles: str) -> dict[int, int] | None:
        """The result of each context by its number (0 is accepted); None where there is no association."""
        self.send(associate_request(contexts=contexts or (MR_IMAGES,), **titles))
        answer = self.receive()
        if answer is None or answer[0] != ASSOCIATE_AC:
            return None
        results, at, content = {}, 68, answer[1]
        while at < len(content):
            kind, _, length = struct.unpack_from(">BBH", content, at)
            if kind == 0x21:
                results[content[at + 4]] = content[at + 6]
            at += 4 + length
        return results

    def store(self, content: bytes, sop_class: str, sop_uid: str, context: int = 1) -> int | None:
        """The status of a C-STORE; None where the association ended instead."""
        self.send(*store_request(content, sop_class, sop_uid, context))
        answer = self.receive()
        return None if answer is None or answer[0] != P_DATA else status_of(answer[1])


def status_of(content: bytes) -> int:
    """The status in a response's P-DATA."""
    at = 6
    while at < len(content):
        _, number, length = struct.unpack_from("<HHL", content, at)
        if number == 0x0900:
            return int(struct.unpack_from("<H", content, at + 8)[0])
        at += 8 + length
    raise ValueError("a response without status")
