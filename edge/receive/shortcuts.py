"""Shorter ways through pynetdicom for what every image takes: its threads wake each other, and bytes are not copied.

pynetdicom's two threads of an association look for work every millisecond or so; every fragment of an image is copied
half a dozen times on its way; and the answer to a C-STORE, seven short elements, goes through pydicom's general encoder
twice. Here the one thread wakes the other, fragments are views into what was read, and the answer is packed as it is.
What the standard says of each is checked as before; everything else goes pynetdicom's own way.
"""

from __future__ import annotations

import logging
import queue
import struct
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA

LOG = logging.getLogger("orthokernels.edge.receive")

_P_DATA_TF = 0x04
_RECEIVED_P_DATA, _INVALID_PDU = "Evt10", "Evt19"  # PS3.8 table 9-10

# How long an association's thread waits for a message before it looks whether it still has a reason to.
_WAITING_SECONDS = 0.05

_LAST_OF_COMMAND = 0x03  # message control header (PS3.8 annex E.2)
_C_STORE_RSP, _NO_DATA_SET = 0x8001, 0x0101  # PS3.7 tables 9.3-2 and E.1-1


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
    """pynetdicom's, but for data."""

    def _decode_pdu(self, bytestream: bytearray) -> Any:
        if bytestream[0] != _P_DATA_TF:
            return super()._decode_pdu(bytestream)
        return PData(bytestream), _RECEIVED_P_DATA


class Messages(DIMSEServiceProvider):
    """pynetdicom's, but waiting for messages instead of looking for them, and answering C-STORE by the short way."""

    def get_msg(self, block: bool = False) -> Any:
        if block:
            return super().get_msg(block)
        try:
            return self.msg_queue.get(timeout=_WAITING_SECONDS)
        except queue.Empty:
            return None, None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """A message that can't be understood ends its association; pynetdicom's thread would end instead."""
        try:
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
