"""Shorter ways through pynetdicom for what every image takes: its threads wake each other, and bytes are not copied.

pynetdicom's two threads of an association look for work every millisecond or so; every fragment of an image is copied
half a dozen times on its way; and a C-STORE's command and its answer, seven short elements each, go through pydicom's
general decoder and encoder, twice. Here the one thread wakes the other, and answers without it; fragments are views
into what was read; and the two commands are unpacked and packed as they are. What the standard says of each is checked
as before; everything else, any command that is not plainly a C-STORE's among it, goes pynetdicom's own way.
"""

from __future__ import annotations

import logging
import queue
import ssl
import struct
import threading
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

from orthokernels.edge.receive.identity import is_uid
from pydicom.uid import UID
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA

LOG = logging.getLogger("orthokernels.edge.receive")

_P_DATA_TF = 0x04
_RECEIVED_P_DATA, _INVALID_PDU, _READY_FOR_DATA = "Evt10", "Evt19", "Sta6"  # PS3.8 table 9-10

# How long an association's thread waits for a message before it looks whether it still has a reason to.
_WAITING_SECONDS = 0.05

_LAST_OF_COMMAND = 0x03  # message control header (PS3.8 annex E.2)
_C_STORE_RQ, _C_STORE_RSP, _NO_DATA_SET = 0x0001, 0x8001, 0x0101  # PS3.7 tables 9.3-1, 9.3-2 and E.1-1

# A C-STORE's elements (PS3.7 table 9.3-1) in their order, but for those of a C-MOVE that it may be part of; None is a
# UID, a number the bytes of an unsigned integer.
_OF_STORE_REQUEST = {0x0000: 4, 0x0002: None, 0x0100: 2, 0x0110: 2, 0x0700: 2, 0x0800: 2, 0x1000: None}
_PRIORITIES = (0, 1, 2)


class PData:
    """A P-DATA-TF PDU (PS3.8 tables 9-22 and 9-23), its values as views into what was read.

    Raises:
        ValueError: an item reaches beyond the PDU, or is too short for the header that it must have.
    """

    def __init__(self, pdu: bytearray) -> None:
        view = memoryview(pdu)
        self._values: list[tuple[int, memoryview]] = []
        at = 6
        while at < len(view):
            if at + 6 > len(view):
                raise ValueError("a P-DATA item without its header")
            (length,) = struct.unpack_from(">L", view, at)
            end = at + 4 + length
            if length < 2 or end > len(view):
                raise ValueError("a P-DATA item that is no part of its PDU")
            self._values.append((view[at + 4], view[at + 5 : end]))
            at = end

    def to_primitive(self) -> P_DATA:
        primitive = P_DATA()
        primitive._presentation_data_value_list = self._values  # type: ignore[assignment]  # its setter wants bytes
        return primitive


class UpperLayer(DULServiceProvider):
    """pynetdicom's, but for data. What is sent goes out whole, whichever thread sends it."""

    _sending: threading.Lock

    def send_pdu(self, primitive: Any) -> None:
        """Data go out at once while nothing waits to be sent; else, and over TLS, of which one thread may read while
        another writes only with care, the upper layer's thread sends them."""
        if (
            isinstance(primitive, P_DATA)
            and self.state_machine.current_state == _READY_FOR_DATA
            and self.to_provider_queue.empty()
            and self.socket is not None
            and not isinstance(self.socket.socket, ssl.SSLSocket)
        ):
            self._send(P_DATA_TF(primitive))
        else:
            super().send_pdu(primitive)

    def _send(self, pdu: Any) -> None:
        with self._sending:
            super()._send(pdu)

    def _decode_pdu(self, bytestream: bytearray) -> Any:
        if bytestream[0] != _P_DATA_TF:
            return super()._decode_pdu(bytestream)
        return PData(bytestream), _RECEIVED_P_DATA


class StoreRequest(C_STORE_RQ):
    """A C-STORE whose command set is known, and whose data set is to come."""

    def __init__(self, context_id: int, request: C_STORE) -> None:
        # Its base would make a pydicom data set of elements without values; whatever else it sets is here.
        self.context_id = context_id
        self.encoded_command_set = BytesIO()
        self.data_set = BytesIO()
        self._data_set_path = None
        self._data_set_file = None
        self._request = request

    def message_to_primitive(self) -> C_STORE:
        self._request.DataSet = self.data_set
        self._request._context_id = self.context_id
        return self._request


class Messages(DIMSEServiceProvider):
    """pynetdicom's, but waiting for messages instead of looking for them, and taking C-STORE by the short way."""

    def get_msg(self, block: bool = False) -> Any:
        """A C-STORE is served here: pynetdicom's thread would sleep a millisecond before it took the next one."""
        if block:
            return super().get_msg(block)
        while not self.assoc._kill:
            try:
                context_id, message = self.msg_queue.get(timeout=_WAITING_SECONDS)
            except queue.Empty:
                break
            if context_id is None or not isinstance(message, C_STORE):
                return context_id, message
            self.assoc._serve_request(message, context_id)
        return None, None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """A message that can't be understood ends its association; pynetdicom's thread would end instead."""
        try:
            values = primitive.presentation_data_value_list
            if self.message is None and values and values[0][1][0] == _LAST_OF_COMMAND:
                context_id, value = values[0]
                request = store_request(value[1:])
                if request is not None:
                    self.message = StoreRequest(context_id, request)
                    primitive._presentation_data_value_list = values[1:]
            super().receive_primitive(primitive)
        except Exception:
            self.dul.event_queue.put(_INVALID_PDU)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        command = store_response(primitive)
        if command is None or 0 < self.maximum_pdu_size < len(command) + 6:
            super().send_msg(primitive, context_id)
            return
        data = P_DATA()
        data.presentation_data_value_list = [[context_id, bytes([_LAST_OF_COMMAND]) + command]]  # type: ignore[list-item]
        self.dul.send_pdu(data)


def store_request(command: bytes | memoryview) -> C_STORE | None:
    """What a command set asks for, if it is that of a plain C-STORE, to the byte as the standard has it; None for any
    other, for a data set's absence, and for elements that are missing, doubled, misplaced or of another length."""
    found: dict[int, int | str] = {}
    numbers = iter(_OF_STORE_REQUEST.items())
    at = 0
    while at < len(command):
        expected, size = next(numbers, (-1, None))
        if at + 8 > len(command):
            return None
        group, number, length = struct.unpack_from("<HHL", command, at)
        value = bytes(command[at + 8 : at + 8 + length])
        if (group, number) != (0x0000, expected) or len(value) != length or size not in (None, length):
            return None
        found[number] = value.decode("latin-1").removesuffix("\0") if size is None else int.from_bytes(value, "little")
        at += 8 + length
    if len(found) < len(_OF_STORE_REQUEST) or found[0x0000] != len(command) - 12:
        return None
    sop_class, sop_instance = str(found[0x0002]), str(found[0x1000])
    if found[0x0100] != _C_STORE_RQ or found[0x0800] == _NO_DATA_SET or found[0x0700] not in _PRIORITIES:
        return None
    if not (is_uid(sop_class) and is_uid(sop_instance)):
        return None
    request = C_STORE()
    request.MessageID, request.Priority = int(found[0x0110]), int(found[0x0700])
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(sop_class), UID(sop_instance)
    return request


def store_response(primitive: Any) -> bytes | None:
    """The command set that answers a C-STORE (PS3.7 table 9.3-2); None for any other message."""
    if not isinstance(primitive, C_STORE) or primitive.MessageIDBeingRespondedTo is None:
        return None
    if primitive.ErrorComment or primitive.OffendingElement or primitive.AffectedSOPInstanceUID is None:
        return None
    assert primitive.Status is not None
    elements = b"".join(
        (
            _element(0x0002, _padded(str(primitive.AffectedSOPClassUID))),
            _element(0x0100, struct.pack("<H", _C_STORE_RSP)),
            _element(0x0120, struct.pack("<H", primitive.MessageIDBeingRespondedTo)),
            _element(0x0800, struct.pack("<H", _NO_DATA_SET)),
            _element(0x0900, struct.pack("<H", primitive.Status)),
            _element(0x1000, _padded(str(primitive.AffectedSOPInstanceUID))),
        )
    )
    return _element(0x0000, struct.pack("<L", len(elements))) + elements


def _element(number: int, value: bytes) -> bytes:
    """An element of group 0000, implicit VR little endian, as all of a command set's."""
    return struct.pack("<HHL", 0x0000, number, len(value)) + value


def _padded(uid: str) -> bytes:
    return (uid + "\0" * (len(uid) % 2)).encode("ascii")


class WakingQueue(queue.Queue[Any]):
    """Calls ``wake`` for everything that is put into it."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._wake()


def shorten(association: Any, wake_upper_layer: Callable[[], None]) -> None:
    """Let an association that has not started go these ways.

    Args:
        association: pynetdicom's.
        wake_upper_layer: ends the wait of its upper layer's thread for data.
    """
    association.dul.__class__ = UpperLayer
    association.dimse.__class__ = Messages
    association.dul._sending = threading.Lock()
    association.dul._run_loop_delay = 0.0  # it waits for data instead
    association.dul.to_provider_queue = WakingQueue(wake_upper_layer)
    messages = association.dimse.msg_queue
    association.dul.to_user_queue = WakingQueue(lambda: messages.put((None, None)))
    association.dul.run = partial(_run, association.dul)


def _run(upper_layer: DULServiceProvider) -> None:
    """The upper layer's thread. Its end is told to the association's, which may wait for what can't come any more and
    hold a place for so long; and an event that its state does not know, such as an answer after an abort, ends it."""
    try:
        threading.Thread.run(upper_layer)
    except Exception as error:
        LOG.warning("an association broke the protocol: %s", error)
    finally:
        upper_layer.to_user_queue.put(None)  # type: ignore[arg-type]  # as if the wait had timed out
