"""Whatever is pushed at the DICOM port is answered or cut off, ends where it can be seen, and leaves the rest up."""

from __future__ import annotations

import gzip
import io
import socket
import ssl
import struct
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from orthokernels.bench.edge.wire import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    P_DATA,
    Peer,
    associate_request,
    pdu,
    store_command,
    value_item,
)
from pydicom.errors import InvalidDicomError
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from tests.conftest import REAL_DATA
from tests.data.test_bombs import BOMBS, bombs
from tests.edge.certificates import Authority
from tests.edge.kit import config, store, wait_for, write_study
from tests.edge.test_receive import echo, images

PEERS = [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]
SUCCESS, OTHER_UIDS, NOT_UNDERSTOOD = 0x0000, 0xA900, 0xC000
CLASS_NOT_TAKEN, SYNTAX_NOT_TAKEN = "context refused: 3", "context refused: 4"  # PS3.8 table 9-18

# What is answered to each real file that is not simply taken in.
ANSWERS = {
    "knee-nema/RG3_J2KR.dcm": CLASS_NOT_TAKEN,  # a radiograph
    "knee-nema/RG3_JPLY.dcm": CLASS_NOT_TAKEN,
    "odd/nibabel/csa_slice_norm.dcm": OTHER_UIDS,
    "odd/nibabel/decimal_rescale.dcm": NOT_UNDERSTOOD,  # no UIDs in its data set
    "odd/pydicom/ExplVR_BigEndNoMeta.dcm": OTHER_UIDS,
    "odd/pydicom/J2K_pixelrep_mismatch.dcm": CLASS_NOT_TAKEN,
    "odd/pydicom/UN_sequence.dcm": CLASS_NOT_TAKEN,
    "odd/pydicom/badVR.dcm": CLASS_NOT_TAKEN,
    "odd/pydicom/bad_sequence.dcm": CLASS_NOT_TAKEN,
    "odd/pydicom/empty_charset_LEI.dcm": NOT_UNDERSTOOD,
    "odd/pydicom/image_dfl.dcm": SYNTAX_NOT_TAKEN,
    "odd/pydicom/meta_missing_tsyntax.dcm": CLASS_NOT_TAKEN,
    "odd/pydicom/no_meta.dcm": NOT_UNDERSTOOD,
    "odd/pydicom/no_meta_group_length.dcm": CLASS_NOT_TAKEN,
    "odd/pydicom/rtplan_truncated.dcm": CLASS_NOT_TAKEN,
    "odd/pydicom/test-SR.dcm": CLASS_NOT_TAKEN,
}


def odd_files() -> list[str]:
    folders = ("odd", "knee-enhanced", "knee-nema")
    found = [path for folder in folders for path in (REAL_DATA / folder).rglob("*.dcm*")]
    return sorted(str(path.relative_to(REAL_DATA)) for path in found) or ["absent"]


@dataclass
class Pushed:
    """What was answered, by file, and where what was taken in ended."""

    answers: dict[str, int | str | None]
    ends: dict[str, list[str]]


@pytest.fixture(scope="module")
def pushed(real_data, tmp_path_factory) -> Pushed:
    """Every odd file, its bytes as they are, on an association of its own."""
    from orthokernels.edge.service import Service

    service = Service(config(tmp_path_factory.mktemp("odd"), settle={"quiet_seconds": 0.5}))
    service.start()
    try:
        answers, uids = {}, {}
        for name in odd_files():
            answers[name], uids[name] = push(service.config.receive.port, real_data / name)
        assert echo(service)
        wait_for(lambda: not service.store.waiting(), 120)
        assert echo(service)
        assert service.alive()
        return Pushed(answers, {name: ends(service, uid) for name, uid in uids.items()})
    finally:
        service.stop()


def push(port: int, path: Path) -> tuple[int | str | None, str]:
    """The answer, and the SOP Instance UID. A file that names no syntax is sent in each, until one is understood."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    stream = io.BytesIO(content)
    try:
        read_preamble(stream, force=False)
        meta = _read_file_meta_info(stream)
        content = stream.read()
    except InvalidDicomError:
        meta = pydicom.Dataset()
    sop_class = str(meta.get("MediaStorageSOPClassUID", MRImageStorage))
    uid = str(meta.get("MediaStorageSOPInstanceUID", "1.2.3.9"))
    guesses = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
    answer: int | str | None = None
    for syntax in (meta["TransferSyntaxUID"].value,) if "TransferSyntaxUID" in meta else guesses:
        with Peer(port) as peer:
            accepted = peer.associate((1, sop_class, (str(syntax),)))
            assert accepted is not None
            answer = peer.store(content, sop_class, uid) if accepted[1] == 0 else f"context refused: {accepted[1]}"
        if answer != NOT_UNDERSTOOD:
            break
    return answer, uid


def ends(service, uid: str) -> list[str]:
    """Where the instance can be seen: kept aside, or a job that ended, with its reason."""
    with service.store.database.read() as connection:
        rows = connection.execute(
            "SELECT state, coalesce(reason, '') AS reason FROM jobs JOIN job_instances ON job = jobs.id "
            "JOIN instances ON instances.id = instance WHERE sop_uid = ?",
            (uid,),
        ).fetchall()
        aside = connection.execute("SELECT count(*) FROM asides WHERE sop_uid = ?", (uid,)).fetchone()[0]
    return [f"{row['state']}: {row['reason']}" for row in rows] + ["aside"] * bool(aside)


@pytest.mark.parametrize("name", odd_files())
def test_odd_file_is_answered_and_ends_where_it_can_be_seen(pushed, name):
    assert pushed.answers[name] == ANSWERS.get(name, SUCCESS)
    if pushed.answers[name] == SUCCESS:
        assert pushed.ends[name]
        assert all(end == "aside" or (end.startswith("rejected: ") and len(end) > 20) for end in pushed.ends[name])


@pytest.fixture
def waiting(start):
    """An appliance that answers and does not work on what comes; peers are dropped after a second of silence."""
    return start(
        receive={"peers": PEERS, "limits": {"idle_seconds": 1.0, "pdu_seconds": 1.0}},
        settle={"quiet_seconds": 3600.0, "early": False},
    )


def explicit(tag: int, vr: bytes, length: int, value: bytes = b"") -> bytes:
    """An element in explicit VR little endian, with whatever length it claims."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    return (
        head
        + (struct.pack("<HL", 0, length) if vr in (b"OB", b"OW", b"SQ", b"UN") else struct.pack("<H", length))
        + value
    )


def identified(*elements: bytes, before: bytes = b"") -> bytes:
    """A data set with the four UIDs, something between the first and the last two of them, and something after."""

    def uid(tag: int, value: str) -> bytes:
        padded = value.encode() + b"\0" * (len(value) % 2)
        return explicit(tag, b"UI", len(padded), padded)

    start = uid(0x00080016, MRImageStorage) + uid(0x00080018, "1.2.3.9")
    return start + before + uid(0x0020000D, "1.2.3") + uid(0x0020000E, "1.2.3.1") + b"".join(elements)


@pytest.mark.parametrize("length", [2**32 - 2, 2**31, 2**24])
def test_element_that_claims_gigabytes_before_the_uids_is_refused(waiting, length):
    with Peer(waiting.config.receive.port) as peer:
        assert peer.associate() == {1: 0}
        sent = identified(before=explicit(0x00091001, b"OB", length, b"short"))
        assert peer.store(sent, str(MRImageStorage), "1.2.3.9") == NOT_UNDERSTOOD
        assert peer.store(identified(), str(MRImageStorage), "1.2.3.9") == SUCCESS  # the association goes on
    assert len(images(waiting)) == 1


@pytest.mark.parametrize("vr", [b"OB", b"SQ", b"UN"])
def test_element_that_claims_gigabytes_after_the_uids_is_rejected_by_the_worker(start, vr):
    service = start(settle={"quiet_seconds": 0.3})
    sent = identified(explicit(0x00291010, vr, 2**32 - 2, b"short"))
    with Peer(service.config.receive.port) as peer:
        assert peer.associate() == {1: 0}
        assert peer.store(sent, str(MRImageStorage), "1.2.3.9") == SUCCESS
    (job,) = wait_for(lambda: service.store.jobs(("rejected", "dead", "sent")))
    assert job.state == "rejected"
    assert job.reason
    assert job.attempts == 0  # its process lives
    assert echo(service)


def test_value_item_that_claims_gigabytes_ends_its_association_alone(waiting):
    with Peer(waiting.config.receive.port) as peer:
        assert peer.associate() == {1: 0}
        peer.send(pdu(P_DATA, struct.pack(">LBB", 2**32 - 1, 1, 3) + b"command"))
        assert peer.receive() in (None, (ABORT, b"\0\0\2\6"), (ABORT, b"\0\0\2\0"), (ABORT, b"\0\0\2\2"))
        assert peer.receive() is None
    assert echo(waiting)


@pytest.mark.parametrize("length", [0, 1])
def test_value_item_without_its_header_ends_its_association_alone(waiting, length):
    with Peer(waiting.config.receive.port) as peer:
        assert peer.associate() == {1: 0}
        peer.send(pdu(P_DATA, struct.pack(">L", length) + b"\1" * length))
        until = time.monotonic() + 10
        while peer.receive() is not None:
            assert time.monotonic() < until
    assert echo(waiting)


def test_command_that_makes_no_sense_ends_its_association_alone(waiting):
    with Peer(waiting.config.receive.port) as peer:
        assert peer.associate() == {1: 0}
        peer.send(pdu(P_DATA, value_item(1, b"\xff" * 50, command=True, last=True)))
        assert (peer.receive() or (ABORT,))[0] == ABORT
        assert peer.receive() is None
    assert echo(waiting)


@pytest.mark.parametrize("kind", BOMBS)
def test_bomb_is_rejected_within_the_memory_of_the_worker(start, tmp_path, kind):
    service = start(settle={"quiet_seconds": 0.3}, results={"planes": ["sagittal"]}, work={"memory_bytes": 2**30})
    files = bombs(tmp_path / "bombs", kind)
    with Peer(service.config.receive.port) as peer:
        meta = pydicom.dcmread(files[0], stop_before_pixels=True).file_meta
        assert peer.associate((1, str(MRImageStorage), (str(meta.TransferSyntaxUID),))) == {1: 0}
        for path in files:
            stream = io.BytesIO(path.read_bytes())
            read_preamble(stream, force=False)
            uid = str(_read_file_meta_info(stream).MediaStorageSOPInstanceUID)
            assert peer.store(stream.read(), str(MRImageStorage), uid) == SUCCESS
    (job,) = wait_for(lambda: service.store.jobs(("rejected", "dead", "sent")))
    assert job.state == "rejected", job.reason
    assert "claim 60000 x 60000" in job.reason or "RLE pixels are longer" in job.reason
    assert job.attempts == 0
    assert echo(service)


def test_deflated_data_sets_are_not_negotiated(waiting):
    with Peer(waiting.config.receive.port) as peer:
        assert peer.associate((1, str(MRImageStorage), (str(DeflatedExplicitVRLittleEndian),))) == {1: 4}


@pytest.mark.parametrize(
    "title", ["../../etc/passwd", "<script>", "MR1/../MR2", "\x00\x01\x02", "MR1\\..", "'; DROP TABLE"]
)
def test_ae_title_that_is_a_path_or_a_script_is_rejected_and_named_nowhere(waiting, title, caplog):
    before = set(waiting.config.appliance.data.parent.rglob("*"))
    for titles in ({"calling": title}, {"called": title}):
        with Peer(waiting.config.receive.port) as peer:
            assert peer.associate(**titles) is None
    assert set(waiting.config.appliance.data.parent.rglob("*")) == before
    assert title not in caplog.text
    assert echo(waiting)


def test_script_in_headers_reaches_no_page_and_no_log(start, tmp_path, caplog):
    from orthokernels.edge.web import Page

    script = "<script>alert(1)</script>"
    service = start(settle={"quiet_seconds": 0.3})
    headers = {"PatientName": script, "PatientID": script, "SeriesDescription": script, "StudyDescription": script}
    assert store(service.config, write_study(tmp_path / "one", planes=("sagittal",), **headers)[:3]).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("rejected",)))
    assert script in job.reason  # the reason names the series, as it is: what shows it has to escape it
    Page(service).start()
    address = f"http://127.0.0.1:{service.config.page.port}/"
    wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", service.config.page.port)) == 0)
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert script not in caplog.text


def test_tls_peer_on_the_plain_port_is_dropped_and_holds_up_no_other(waiting):
    plain = ssl.create_default_context()
    plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", waiting.config.receive.port), timeout=10) as peer,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        plain.wrap_socket(peer)
    assert echo(waiting)


def test_tls_handshake_that_drips_is_dropped_and_holds_up_no_other(start, tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.sign("appliance")
    service = start(
        receive={"tls": {"certificate": certificate, "key": key}, "peers": PEERS, "limits": {"handshake_seconds": 1.0}}
    )
    with socket.create_connection(("127.0.0.1", service.config.receive.port), timeout=10) as peer:
        peer.sendall(b"\x16\x03\x01\x02\x00")
        assert peer.recv(1) == b""
    assert echo(service, "+tla", "-ic")


def test_association_that_never_speaks_is_ended(waiting):
    with Peer(waiting.config.receive.port) as peer:
        assert peer.associate() == {1: 0}
        assert (peer.receive() or (ABORT,))[0] == ABORT
        assert peer.receive() is None
    assert echo(waiting)


def test_image_that_stops_half_way_leaves_nothing_and_frees_its_place(start):
    service = start(
        receive={"peers": PEERS, "limits": {"associations": 1, "idle_seconds": 1.0, "pdu_seconds": 1.0}},
    )
    with Peer(service.config.receive.port) as peer:
        assert peer.associate() == {1: 0}
        command = store_command(str(MRImageStorage), "1.2.3.9")
        peer.send(pdu(P_DATA, value_item(1, command, command=True, last=True)))
        peer.send(pdu(P_DATA, value_item(1, identified(), command=False, last=False)))
        assert (peer.receive() or (ABORT,))[0] == ABORT
    wait_for(lambda: echo(service))
    assert not images(service)


def test_flood_of_associations_is_turned_away_and_over_when_it_ends(start):
    service = start(receive={"peers": PEERS, "limits": {"associations": 4, "idle_seconds": 30.0}})
    flood, kinds = [], []
    for _ in range(40):
        flood.append(Peer(service.config.receive.port))
        try:
            flood[-1].send(associate_request())
            kinds.append((flood[-1].receive() or (None,))[0])
        except OSError:
            kinds.append(None)  # closed before it was heard
    assert kinds[:4] == [ASSOCIATE_AC] * 4
    assert set(kinds[4:]) <= {ASSOCIATE_RJ, None}
    for peer in flood:
        peer.socket.close()
    wait_for(lambda: echo(service))


def test_answer_goes_to_a_peer_that_takes_only_tiny_pdus(waiting):
    """pynetdicom's own way splits it, where our short one would not fit."""
    request = associate_request().replace(
        struct.pack(">BBHL", 0x51, 0, 4, 131072), struct.pack(">BBHL", 0x51, 0, 4, 100)
    )
    with Peer(waiting.config.receive.port) as peer:
        peer.send(request)
        assert (peer.receive() or (None,))[0] == ASSOCIATE_AC
        command = store_command(str(MRImageStorage), "1.2.3.9")
        peer.send(pdu(P_DATA, value_item(1, command, command=True, last=True)))
        peer.send(pdu(P_DATA, value_item(1, identified(), command=False, last=True)))
        parts = []
        while not parts or not parts[-1][5] & 2:
            answer = peer.receive()
            assert answer is not None
            assert len(answer[1]) <= 100
            parts.append(answer[1])
    assert b"".join(part[6:] for part in parts).endswith(b"1.2.3.9\0")
