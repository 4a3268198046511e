"""The short ways of a C-STORE say what pynetdicom's own way says, or leave the message to it."""

import random
import struct

import pytest
from orthokernels.bench.edge.wire import (
    ASSOCIATE_AC,
    P_DATA,
    Peer,
    associate_request,
    command_set,
    element,
    padded,
    pdu,
    release_request,
    store_command,
    value_item,
)
from orthokernels.edge.receive.part10 import read_meta
from orthokernels.edge.receive.shortcuts import store_request, store_response
from pydicom.uid import MRImageStorage
from pynetdicom import pdu_primitives
from pynetdicom.dimse_messages import C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE

from tests.edge.kit import wait_for

FIELDS = ("MessageID", "AffectedSOPClassUID", "AffectedSOPInstanceUID", "Priority")
COMMAND = store_command(MRImageStorage, "1.2.3.4.56", message=7)


def decoded(command: bytes) -> DIMSEMessage:
    """The message, as pynetdicom reads it."""
    message, data = DIMSEMessage(), pdu_primitives.P_DATA()
    data.presentation_data_value_list = [[1, b"\3" + command]]
    message.decode_msg(data)
    return message


def told(request) -> tuple:
    return tuple(getattr(request, field) for field in FIELDS)


@pytest.mark.parametrize("uid", ["1.2.3.4.56", "1.2.3.4.567", "1." + "2" * 62])
def test_plain_request_is_read_as_pynetdicom_reads_it(uid):
    command = store_command(MRImageStorage, uid, message=65535)
    request = store_request(memoryview(command))
    assert isinstance(request, C_STORE)
    assert request.is_valid_request is False  # its data set is to come
    assert told(request) == told(decoded(command).message_to_primitive()) == (65535, MRImageStorage, uid, 0)


def test_a_changed_request_is_read_alike_or_left():
    """Whatever byte is another, gone or doubled."""
    draw = random.Random(0)
    short = 0
    for _ in range(20_000):
        command = bytearray(COMMAND)
        for _ in range(draw.randint(1, 2)):
            at = draw.randrange(len(command))
            how = draw.randrange(4)
            if how == 0:
                del command[at:]
            elif how == 1:
                command[at:at] = command[at : at + draw.randint(1, 16)]
            else:
                command[at] = draw.choice([0, 1, 2, 8, 0x2E, 0x31, 0x39, 0xFF, draw.randrange(256)])
            if not command:
                break
        request = store_request(bytes(command))
        if request is not None:
            short += 1
            message = decoded(bytes(command))
            assert message.command_set.CommandDataSetType != 0x0101
            assert told(request) == told(message.message_to_primitive())
    assert 500 < short < 15_000  # of which some went either way


def plain(**changes: bytes | None) -> bytes:
    parts = {
        "sop_class": element(0x0002, padded(MRImageStorage)),
        "field": element(0x0100, struct.pack("<H", 1)),
        "message": element(0x0110, struct.pack("<H", 7)),
        "priority": element(0x0700, struct.pack("<H", 0)),
        "data_set": element(0x0800, struct.pack("<H", 1)),
        "sop_uid": element(0x1000, padded("1.2.3.4.56")),
    }
    return command_set(*(part for part in {**parts, **changes}.values() if part is not None))


@pytest.mark.parametrize(
    "left",
    [
        plain(field=element(0x0100, struct.pack("<H", 0x0030))),
        plain(field=element(0x0100, struct.pack("<H", 0x8001))),
        plain(data_set=element(0x0800, struct.pack("<H", 0x0101))),
        plain(priority=element(0x0700, struct.pack("<H", 3))),
        plain(priority=None),
        plain(sop_uid=None),
        plain(message=element(0x0110, struct.pack("<L", 7))),
        plain(sop_uid=element(0x1000, b"1.2.3.4.5x")),
        plain(sop_uid=element(0x1000, b"1.2.3.4.5\\1.2.3\0")),
        plain(sop_uid=element(0x1000, b"")),
        plain(sop_uid=element(0x1000, padded("1." + "2" * 63))),
        plain(of_a_move=element(0x1030, b"MOVER ")),
        plain() + b"\0",
        plain()[:-1],
        plain()[12:],
        element(0x0000, struct.pack("<L", 0)) + plain()[12:],
        b"",
    ],
)
def test_any_other_command_is_left(left):
    assert store_request(plain()) is not None
    assert store_request(left) is None


def test_answer_is_what_pynetdicom_writes():
    answer = C_STORE()
    answer.MessageID = answer.MessageIDBeingRespondedTo = 65535
    answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID, answer.Status = MRImageStorage, "1.2.3.4.567", 0xA700
    message = C_STORE_RSP()
    message.primitive_to_message(answer)
    (data,) = message.encode_msg(1, 0)
    ((_, written),) = data.presentation_data_value_list
    assert b"\3" + store_response(answer) == written
    assert store_response(C_ECHO()) is None
    answer.ErrorComment = "why"
    assert store_response(answer) is None


@pytest.fixture
def instance(study) -> tuple[bytes, str, str]:
    """An encoded data set, and its UIDs."""
    with open(study[0], "rb") as file:
        meta = read_meta(file)
        return file.read(), meta.sop_class, meta.sop_uid


@pytest.mark.parametrize("way", ["one PDU", "command in two", "one by one", "command twice"])
def test_however_a_message_is_cut_its_image_is_taken_in_once(start, instance, way):
    """As PS3.8 annex E allows: command and data may share a PDU, and either may come in fragments."""
    content, sop_class, sop_uid = instance
    request = store_command(sop_class, sop_uid)
    whole = value_item(1, request, command=True, last=True)
    half = len(content) // 2
    data = (
        value_item(1, content[:half], command=False, last=False),
        value_item(1, content[half:], command=False, last=True),
    )
    pdus = {
        "one PDU": [b"".join((whole, *data))],
        "command in two": [
            value_item(1, request[:30], command=True, last=False),
            value_item(1, request[30:], command=True, last=True) + data[0],
            data[1],
        ],
        "one by one": [whole, *data],
        "command twice": [whole, whole, *data],  # which no sender may do; the last one counts
    }[way]
    service = start()
    with Peer(service.config.receive.port) as peer:
        peer.send(associate_request())
        assert peer.socket.recv(2**16)[0] == ASSOCIATE_AC
        peer.send(*(pdu(P_DATA, items) for items in pdus))
        answer = peer.socket.recv(2**16)
        assert answer[0] == P_DATA
        assert answer.endswith(element(0x1000, padded(sop_uid)))
        assert element(0x0900, struct.pack("<H", 0)) in answer
        peer.send(release_request())
        peer.wait(10)
    wait_for(lambda: len(list(service.config.appliance.data.rglob("images/*/*.dcm"))) == 1)
