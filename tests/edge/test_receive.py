"""The DICOM port: who may send, what is answered, and what stays up whatever is sent."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
import time
from pathlib import Path

import pydicom
import pytest
from orthokernels.edge.dcmtk import program
from orthokernels.edge.receive.intake import Intake
from orthokernels.edge.receive.open_studies import OpenStudies
from orthokernels.edge.receive.scp import Receiver
from orthokernels.edge.service import Service
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, _config, evt

from orthokernels.errors import InputError
from tests.edge.certificates import Authority
from tests.edge.kit import archive_destination, config, free_port, store, wait_for, write_study


def echo(service, *options: str, **names: str) -> bool:
    """Whether the appliance still answers a sender that is allowed."""
    import subprocess

    config = service.config
    done = subprocess.run(
        [program("echoscu"), "-aet", "MR1", "-aec", config.appliance.ae_title, *options, "127.0.0.1",
         str(config.receive.port)],
        check=False, timeout=30,
    )  # fmt: skip
    return done.returncode == 0


def images(service) -> list[Path]:
    return list(service.config.appliance.data.rglob("images/*/*.dcm"))


def associate(service, calling: str = "MR1", called: str | None = None):
    entity = AE(ae_title=calling)
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    config = service.config
    return entity.associate("127.0.0.1", config.receive.port, ae_title=called or config.appliance.ae_title)


def send(service, dataset: Dataset) -> int | None:
    association = associate(service)
    assert association.is_established
    try:
        return association.send_c_store(dataset).get("Status")
    finally:
        association.release()


@pytest.fixture
def image(study) -> Dataset:
    return pydicom.dcmread(study[0])


def test_port_that_is_in_use_is_told(start):
    service = start()
    intake, studies = Intake(service.config, service.store), OpenStudies(service.store)
    with pytest.raises(InputError, match="receive: can't listen on 127"):
        Receiver(service.config, intake, studies, lambda transaction, kept: False).start()


def test_port_that_is_in_use_is_told_before_a_worker_or_a_sender_starts(tmp_path):
    """Otherwise the sentence is followed by what a worker says whose appliance is gone; and a try to deliver is cut."""
    settings = config(tmp_path, destinations=[archive_destination(free_port())])
    service = Service(settings)
    with (
        socket.create_server(("127.0.0.1", settings.receive.port)),
        pytest.raises(InputError, match="receive: can't listen on 127"),
    ):
        service.start()
    assert service._threads == []
    service.stop()


def test_sender_that_is_listed_is_answered(start):
    assert echo(start())


def test_unknown_ae_title_is_rejected_with_the_reason(start, study):
    service = start()
    pushed = store(service.config, study[:1], calling="STRANGER")
    assert pushed.returncode != 0
    assert "Calling AE Title Not Recognized" in pushed.stdout + pushed.stderr
    assert not images(service)


def test_wrong_called_ae_title_is_rejected_with_the_reason(start, study):
    service = start()
    pushed = store(service.config, study[:1], called="SOMEONE")
    assert pushed.returncode != 0
    assert "Called AE Title Not Recognized" in pushed.stdout + pushed.stderr
    assert not images(service)


def test_unknown_host_is_not_talked_to(start, study):
    service = start(receive={"peers": [{"ae_title": "MR1", "hosts": ["192.0.2.0/24"]}]})
    assert store(service.config, study[:1]).returncode != 0
    assert not images(service)


def test_ae_title_counts_only_with_its_own_host(start, study):
    service = start(
        receive={"peers": [{"ae_title": "MR1", "hosts": ["192.0.2.7"]}, {"ae_title": "MR2", "hosts": ["127.0.0.1"]}]}
    )
    assert store(service.config, study[:1], calling="MR1").returncode != 0
    assert store(service.config, study[:1], calling="MR2").returncode == 0


def test_nobody_may_send_by_default(start, study):
    service = start(receive={"peers": []})
    assert store(service.config, study[:1]).returncode != 0


def test_success_is_answered_only_once_file_and_row_are_there(start, image, monkeypatch):
    service = start()
    seen = []
    kept = service.store.add

    def add(one, priority):
        seen.append([(path.stat().st_size, service.store.known(one.sop_uid)) for path in images(service)])
        kept(one, priority)

    monkeypatch.setattr(service.store, "add", add)
    assert send(service, image) == 0x0000
    ((size, known),) = seen[0]
    assert size > len(image.PixelData)
    assert known is None  # the file was whole before the row
    assert service.store.known(image.SOPInstanceUID)


def test_full_disk_is_answered_with_out_of_resources_and_takes_images_again_later(start, image):
    service = start(disk={"keep_free_bytes": 2**60})
    assert send(service, image) == 0xA700
    assert not images(service)
    service._intake.disk = service.config.disk.model_copy(update={"keep_free_bytes": 0})
    assert send(service, image) == 0x0000


def test_disk_that_fails_while_writing_is_answered_with_out_of_resources(start, image, monkeypatch, caplog):
    from orthokernels.edge.receive import intake

    def no_space(path, parts):
        raise OSError(28, "No space left on device")

    service = start()
    monkeypatch.setattr(intake, "write_durably", no_space)
    assert send(service, image) == 0xA700
    assert service.store.known(image.SOPInstanceUID) is None
    assert "could not keep an instance from MR1: [Errno 28] No space left on device" in caplog.text
    assert "Traceback" not in caplog.text  # of hundreds of images, the log would fill the disk too


def test_new_study_is_refused_while_too_many_wait_and_those_that_wait_go_on(start, tmp_path):
    service = start(
        receive={"limits": {"waiting_studies": 1}, "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]},
        settle={"quiet_seconds": 60.0},
    )
    first, second, *_ = write_study(tmp_path / "a", study="1.2.5")
    assert send(service, pydicom.dcmread(first)) == 0x0000
    assert send(service, pydicom.dcmread(write_study(tmp_path / "b", study="1.2.6")[0])) == 0xA700
    assert send(service, pydicom.dcmread(second)) == 0x0000


@pytest.mark.parametrize("uid", ["../../../etc/passwd", "/etc/passwd", "1.2/../../3", "..", "1.2.3\x00/x", "$(reboot)"])
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_no_header_leads_out_of_the_folder(start, image, keyword, uid):
    from orthokernels.edge.receive.intake import Arrival, Refused

    service = start()
    element = image[keyword]
    content = (
        encoded(image)
        .getvalue()
        .replace(
            element.value.encode().ljust((len(element.value) + 1) & ~1, b"\0"),
            uid.encode().ljust((len(element.value) + 1) & ~1, b"\0")[: (len(element.value) + 1) & ~1],
        )
    )
    before = set(service.config.appliance.data.parent.rglob("*"))
    with contextlib.suppress(Refused):
        service._intake.take(Arrival(io.BytesIO(content), ExplicitVRLittleEndian, "MR1", 5))
    new = set(service.config.appliance.data.parent.rglob("*")) - before
    assert all(service.config.appliance.data / "images" in path.parents for path in new)


def encoded(dataset: Dataset) -> io.BytesIO:
    from pynetdicom.dsutils import encode

    return io.BytesIO(encode(dataset, False, True))


def test_image_that_is_not_the_one_announced_is_refused(start, image):
    service = start()
    association = associate(service)

    def other_uid(event) -> None:
        if hasattr(event.message.command_set, "AffectedSOPInstanceUID"):
            event.message.command_set.AffectedSOPInstanceUID = "1.2.3.4.5.6.7"

    association.bind(evt.EVT_DIMSE_SENT, other_uid)
    status = association.send_c_store(image).get("Status")
    association.release()
    assert status == 0xA900
    assert not images(service)


def test_pdu_that_claims_gigabytes_ends_the_connection_and_nothing_else(start):
    service = start()
    with socket.create_connection(("127.0.0.1", service.config.receive.port)) as peer:
        peer.sendall(struct.pack(">BBL", 1, 0, 2**32 - 1))
        peer.settimeout(10)
        assert peer.recv(100) == b""
    assert echo(service)


def test_instance_beyond_its_bytes_is_cut_off(start, image):
    service = start(
        receive={"limits": {"bytes_per_instance": 1000}, "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]}
    )
    image.PixelData = bytes(4 * 2**20)
    association = associate(service)
    assert association.send_c_store(image).get("Status") is None
    wait_for(lambda: association.is_aborted or not association.is_established)
    assert echo(service)
    assert not images(service)


@pytest.mark.parametrize("sent", [b"", b"\x01", struct.pack(">BBL", 1, 0, 500) + b"x"])
def test_peer_that_says_nothing_more_is_dropped_and_holds_up_no_other(start, sent):
    service = start(receive={"limits": {"pdu_seconds": 1.0}, "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]})
    with socket.create_connection(("127.0.0.1", service.config.receive.port)) as peer:
        peer.sendall(sent)
        assert echo(service)
        peer.settimeout(10)
        assert peer.recv(100) == b""


def test_peer_that_drips_bytes_is_dropped_at_the_deadline_of_its_pdu(start):
    service = start(receive={"limits": {"pdu_seconds": 1.5}, "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]})
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", service.config.receive.port)) as peer:
        peer.sendall(struct.pack(">BBL", 1, 0, 500))
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 20:
                peer.sendall(b"x")
                time.sleep(0.1)
    assert time.monotonic() - began < 10  # 500 bytes at this pace take 50 seconds
    assert echo(service)


def test_connections_that_come_and_go_leave_no_thread(start):
    service = start()
    echo(service)
    before = threading.active_count()
    for _ in range(50):
        socket.create_connection(("127.0.0.1", service.config.receive.port)).close()
    wait_for(lambda: threading.active_count() <= before)
    assert echo(service)


def test_association_waits_for_no_data_while_it_has_something_to_do(start, monkeypatch):
    from orthokernels.bench.edge.wire import ASSOCIATE_AC, Peer, associate_request

    monkeypatch.setattr("orthokernels.edge.receive.connection._LISTENING_SECONDS", 10.0)
    service = start()
    with Peer(service.config.receive.port) as peer:
        began = time.monotonic()
        peer.send(associate_request())
        assert peer.receive()[0] == ASSOCIATE_AC
    assert time.monotonic() - began < 5  # half of one such wait


def test_more_associations_than_allowed_are_told_to_come_back(start):
    service = start(receive={"limits": {"associations": 2}, "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]})
    held = [associate(service) for _ in range(2)]
    third = associate(service)
    assert third.is_rejected
    for association in held:
        association.release()
    wait_for(lambda: echo(service))


def test_network_cut_in_mid_image_leaves_nothing_half_written(start, study):
    service = start()
    association = associate(service)
    assert association.send_c_store(pydicom.dcmread(study[0])).get("Status") == 0x0000

    def cut(event) -> None:
        event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)

    association.bind(evt.EVT_PDU_SENT, cut)
    with contextlib.suppress(RuntimeError):
        association.send_c_store(pydicom.dcmread(study[1]))
    assert echo(service)
    assert len(images(service)) == 1
    wait_for(lambda: service.store.jobs(("settling", "rejected")))  # the association has ended, one way or the other


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def tls(authority: Authority, *, mutual: bool) -> dict[str, object]:
    certificate, key = authority.sign("appliance")
    return {
        "tls": {"certificate": certificate, "key": key, "authority": authority.certificate, "mutual": mutual},
        "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}],
        "limits": {"handshake_seconds": 1.0},
    }


def test_tls_with_certificates_on_both_sides(start, study, authority):
    service = start(receive=tls(authority, mutual=True))
    certificate, key = authority.sign("scanner")
    assert store(service.config, study[:2], "+tls", str(key), str(certificate), "-ic").returncode == 0
    assert len(images(service)) == 2


def test_sender_without_certificate_is_turned_away_where_tls_is_mutual(start, study, authority):
    service = start(receive=tls(authority, mutual=True))
    assert store(service.config, study[:1], "+tla", "-ic").returncode != 0
    assert not images(service)


def test_plain_peer_on_the_tls_port_is_dropped_and_holds_up_no_other(start, study, authority):
    service = start(receive=tls(authority, mutual=False))
    with socket.create_connection(("127.0.0.1", service.config.receive.port)) as silent:
        assert store(service.config, study[:1]).returncode != 0
        assert store(service.config, study[:1], "+tla", "-ic").returncode == 0
        silent.settimeout(10)
        assert silent.recv(1) == b""
    assert len(images(service)) == 1


def send_as_it_is(service, path: Path) -> int | None:
    """Push a file's bytes undecoded; None where the file has no meta header, or no common way to send it."""
    try:
        meta = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[]).file_meta
        entity = AE(ae_title="MR1")
        entity.add_requested_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)
    except (InvalidDicomError, AttributeError):
        return None
    config = service.config
    association = entity.associate("127.0.0.1", config.receive.port, ae_title=config.appliance.ae_title)
    if not association.is_established:
        return None
    try:
        return association.send_c_store(path).get("Status")
    finally:
        association.release()


def test_odd_files_are_each_taken_in_or_refused_and_end_visibly(start, real_data, monkeypatch):
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    service = start(settle={"quiet_seconds": 0.5})
    answers = [send_as_it_is(service, path) for path in sorted((real_data / "odd").rglob("*.dcm"))]
    assert echo(service)
    assert answers.count(0x0000) >= 20  # all but what has no meta header or another class than images
    assert set(answers) <= {0x0000, 0xA900, 0xC000, None}
    wait_for(lambda: not service.store.waiting(), 120)
    with service.store.database.read() as connection:
        ended = connection.execute(
            "SELECT count(DISTINCT instance) FROM job_instances JOIN jobs ON jobs.id = job "
            "WHERE state IN ('sent', 'rejected', 'dead')"
        ).fetchone()[0]
        aside = connection.execute("SELECT count(*) FROM asides").fetchone()[0]
    assert ended + aside == len(images(service))


def test_images_of_a_peer_that_is_urgent_go_first(start, tmp_path):
    service = start(
        receive={
            "peers": [
                {"ae_title": "MR1", "hosts": ["127.0.0.1"]},
                {"ae_title": "CONSOLE", "hosts": ["127.0.0.1"], "priority": 0},
            ]
        },
        settle={"quiet_seconds": 60.0, "early": False},
    )
    for name, calling in (("1.2.7", "MR1"), ("1.2.8", "CONSOLE")):
        assert store(service.config, write_study(tmp_path / name, study=name)[:1], calling=calling).returncode == 0
    with service.store.database.read() as connection:
        rows = connection.execute("SELECT study_uid FROM jobs ORDER BY priority, created_at").fetchall()
    assert [row["study_uid"] for row in rows] == ["1.2.8", "1.2.7"]
