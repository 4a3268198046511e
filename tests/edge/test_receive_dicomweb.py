"""The DICOMweb port: who may post, what is answered, and what stays up whatever is sent."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest
from orthokernels.edge.receive.part10 import read_meta
from orthokernels.edge.service import Service

from tests.edge.certificates import Authority
from tests.edge.conftest import needs
from tests.edge.kit import config, free_port, wait_for, write_study

BOUNDARY = "between-parts"
TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
TOKEN = "correct horse battery staple"


def stow(**more: Any) -> dict[str, Any]:
    return {"port": free_port(), **more}


def multipart(*parts: bytes, media_type: str = "application/dicom", end: bytes = b"--") -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: {media_type}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{BOUNDARY}".encode() + end + b"\r\n"


def post(
    service, body: bytes, path: str = "/studies", content_type: str = TYPE, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers in lower case, and what the body says."""
    connection = http.client.HTTPConnection("127.0.0.1", service.config.stow.port, timeout=20)
    given = {"Content-Type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        connection.request("POST", path, body, given)
        answer = connection.getresponse()
        told = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        known = headers.get("content-type") == "application/dicom+json"
        return answer.status, headers, json.loads(told) if known else told.decode()
    finally:
        connection.close()


def uids(answer: dict[str, Any], tag: str) -> list[str]:
    return [item["00081155"]["Value"][0] for item in answer.get(tag, {}).get("Value", [])]


def reasons(answer: dict[str, Any], tag: str = "00081198") -> list[int]:
    return [item["00081197"]["Value"][0] for item in answer.get(tag, {}).get("Value", [])]


STORED, FAILED, NAMELESS = "00081199", "00081198", "0008119A"


def images(service) -> list[Path]:
    return list(service.config.appliance.data.rglob("images/*/*.dcm"))


def works(service, study) -> bool:
    """Whether the port still takes an image in; one that is there already will do."""
    return post(service, multipart(study[0].read_bytes()))[0] == 200


@pytest.fixture(scope="module")
def appliance(tmp_path_factory):
    """One for all tests that are turned away whatever it is set to."""
    needs("storescu")
    service = Service(config(tmp_path_factory.mktemp("dicomweb"), stow=stow()))
    service.start()
    yield service
    service.stop()


def test_study_that_a_client_posts_is_evaluated(start, study):
    client = pytest.importorskip(
        "dicomweb_client", reason="dicomweb-client, which posts as others do, is not installed"
    )
    service = start(stow=stow())
    answer = client.DICOMwebClient(f"http://127.0.0.1:{service.config.stow.port}").store_instances(
        [pydicom.dcmread(path) for path in study]
    )
    assert len(answer.ReferencedSOPSequence) == len(study)
    assert "FailedSOPSequence" not in answer
    (job,) = wait_for(lambda: service.store.jobs(("sent",)))
    assert job.because == "every plane is there, and every acquisition has the images that it counts"


def test_what_is_posted_is_kept_to_the_byte(start, study):
    service = start(stow=stow())
    assert post(service, multipart(study[0].read_bytes()))[0] == 200
    (kept,) = images(service)
    with kept.open("rb") as own, study[0].open("rb") as posted:
        assert read_meta(own).syntax == read_meta(posted).syntax
        assert own.read() == posted.read()


def test_success_is_answered_only_once_every_file_and_row_is_there(start, study, monkeypatch):
    service = start(stow=stow())
    status, _, answer = post(service, multipart(*(path.read_bytes() for path in study[:3])))
    assert status == 200
    assert all(service.store.known(uid) for uid in uids(answer, STORED))
    assert len(images(service)) == 3


def test_repeat_is_success_and_other_content_is_kept_aside(start, study):
    service = start(stow=stow())
    changed = pydicom.dcmread(study[0])
    changed.PixelData = bytes(len(changed.PixelData))
    changed.save_as(other := io.BytesIO(), enforce_file_format=True)
    for body in (study[0].read_bytes(), study[0].read_bytes(), other.getvalue()):
        assert post(service, multipart(body))[0] == 200
    with service.store.database.read() as connection:
        counted = connection.execute(
            "SELECT (SELECT count(*) FROM instances), (SELECT count(*) FROM asides)"
        ).fetchone()
    assert tuple(counted) == (1, 1)


def test_images_of_another_study_than_the_paths_fail(start, study):
    service = start(stow=stow())
    status, _, answer = post(service, multipart(study[0].read_bytes()), "/studies/1.2.3.4")
    assert (status, reasons(answer), uids(answer, FAILED)) == (409, [0xA900], ["1.2.3.1.1.1"])
    assert not images(service)
    assert post(service, multipart(study[0].read_bytes()), "/studies/1.2.3")[0] == 200


def test_parts_that_fail_are_told_beside_those_that_were_stored(start, study):
    service = start(stow=stow())
    report = pydicom.dcmread(study[1])
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.34"
    report.save_as(of_other_class := io.BytesIO(), enforce_file_format=True)
    body = multipart(study[0].read_bytes(), of_other_class.getvalue(), b"not DICOM")
    status, _, answer = post(service, body)
    assert status == 202
    assert uids(answer, STORED) == ["1.2.3.1.1.1"]
    assert (uids(answer, FAILED), reasons(answer)) == (["1.2.3.1.1.2"], [0xC000])
    assert reasons(answer, NAMELESS) == [0xC000]


def test_full_disk_is_answered_with_503_and_when_to_come_back(start, study):
    service = start(stow=stow(), disk={"keep_free_bytes": 2**60})
    status, headers, told = post(service, multipart(study[0].read_bytes()))
    assert (status, headers["retry-after"]) == (503, "60")
    assert "are kept free" in told
    assert not images(service)


def test_new_study_is_answered_with_503_while_too_many_wait(start, tmp_path):
    peers = [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]
    service = start(
        stow=stow(), receive={"limits": {"waiting_studies": 1}, "peers": peers}, settle={"quiet_seconds": 60.0}
    )
    first, second, *_ = write_study(tmp_path / "a", study="1.2.5")
    new = write_study(tmp_path / "b", study="1.2.6")[0]
    assert post(service, multipart(first.read_bytes()))[0] == 200
    assert post(service, multipart(new.read_bytes()))[0] == 503
    status, _, answer = post(service, multipart(new.read_bytes(), second.read_bytes()))
    assert (status, reasons(answer)) == (202, [0xA700])


@pytest.fixture
def guarded(start, tmp_path):
    """Two peers with tokens, one of them urgent, one from another network."""
    for name in ("router", "console", "far"):
        (tmp_path / name).write_text(f"{TOKEN} of {name}\n")
    own = {"hosts": ["127.0.0.1"]}
    return start(
        stow=stow(
            peers=[
                {"name": "router", "token_file": tmp_path / "router", **own},
                {"name": "console", "token_file": tmp_path / "console", "priority": 0, **own},
                {"name": "far", "token_file": tmp_path / "far", "hosts": ["192.0.2.0/24"]},
            ]
        ),
        settle={"quiet_seconds": 60.0},
    )


def test_token_says_who_posts_and_how_urgent_it_is(guarded, tmp_path):
    for name, study in (("router", "1.2.7"), ("console", "1.2.8")):
        image = write_study(tmp_path / study, study=study)[0].read_bytes()
        assert post(guarded, multipart(image), Authorization=f"Bearer {TOKEN} of {name}")[0] == 200
    with guarded.store.database.read() as connection:
        jobs = connection.execute("SELECT study_uid FROM jobs ORDER BY priority").fetchall()
        sources = connection.execute("SELECT source FROM instances ORDER BY study_uid").fetchall()
    assert [row[0] for row in jobs] == ["1.2.8", "1.2.7"]
    assert [row[0] for row in sources] == ["router", "console"]


@pytest.mark.parametrize("shown", ["", "Bearer wrong", f"Bearer {TOKEN} of far", f"Basic {TOKEN} of router"])
def test_without_a_peers_token_from_its_network_nothing_is_taken(guarded, study, shown):
    status, headers, _ = post(guarded, multipart(study[0].read_bytes()), Authorization=shown)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert not images(guarded)


def test_unknown_host_is_not_talked_to(start, study, tmp_path):
    (tmp_path / "far").write_text(TOKEN)
    service = start(stow=stow(peers=[{"name": "far", "token_file": tmp_path / "far", "hosts": ["192.0.2.0/24"]}]))
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        post(service, multipart(study[0].read_bytes()), Authorization=f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"content_type": "application/dicom"}, 415),
        ({"content_type": "multipart/form-data; boundary=x"}, 415),
        ({"content_type": 'multipart/related; type="application/dicom+json"; boundary=x'}, 415),
        ({"content_type": 'multipart/related; type="application/dicom"'}, 400),
        ({"content_type": f"multipart/related; boundary={'x' * 71}"}, 400),
        ({"Accept": "application/dicom+xml"}, 406),
        ({"Content_Encoding": "gzip"}, 415),
        ({"path": "/studies/1.2.3/series"}, 404),
        ({"path": "/studies/"}, 404),
        ({"path": "/studies/..%2F..%2Fetc%2Fpasswd"}, 404),
        ({"path": "/studies/.."}, 400),
        ({"path": "/studies/$(reboot)"}, 400),
        ({"path": f"/studies/{'1.' * 40}1"}, 400),
    ],
)
def test_request_that_is_none_of_ours_is_told_so(appliance, study, changes, status):
    before = images(appliance)
    assert post(appliance, multipart(study[1].read_bytes()), **changes)[0] == status
    assert images(appliance) == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"no boundary at all " * 100, 400),
        (multipart(), 400),
        (multipart(b"x", end=b""), 400),
        (multipart(b"x")[:20], 400),
        (f"--{BOUNDARY}\r\n".encode() + b"X-Endless: y\r\n" * 10000, 400),
        (f"--{BOUNDARY}\r\nX: ".encode() + b"y" * 10**6, 400),
        (f"--{BOUNDARY}\r\n\0\0: nothing\r\n\r\nx\r\n--{BOUNDARY}--".encode(), 400),
        (multipart(b"--inner\r\n\r\nx\r\n--inner--", media_type="multipart/related; boundary=inner"), 409),
        (multipart(b"{}", media_type="application/dicom+json"), 409),
        (multipart(b"\0" * 132), 409),
        (multipart(b"\0" * 128 + b"DICM" + b"\xff" * 100), 409),
    ],
)
def test_body_that_is_no_multipart_of_dicom_is_told_so(appliance, study, body, status):
    before = images(appliance)
    assert post(appliance, body)[0] == status
    assert images(appliance) == before
    assert works(appliance, study)


def test_body_that_is_cut_short_keeps_the_parts_that_are_whole(start, study):
    service = start(stow=stow())
    body = multipart(study[0].read_bytes(), study[1].read_bytes())
    status, _, told = post(service, body[: -len(study[1].read_bytes()) // 2])
    assert (status, told) == (400, "the body ends before its last boundary\n")
    assert len(images(service)) == 1


def test_sender_that_leaves_in_mid_request_leaves_nothing_half_written(start, study):
    service = start(stow=stow())
    body = multipart(study[0].read_bytes(), study[1].read_bytes())
    with socket.create_connection(("127.0.0.1", service.config.stow.port)) as peer:
        head = f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
        peer.sendall(head.encode() + body[: -len(study[1].read_bytes()) // 2])
        wait_for(lambda: images(service))
    wait_for(lambda: service.store.jobs(("settling",)))  # the request has ended
    assert len(images(service)) == 1
    assert works(service, study)


def test_request_beyond_its_limits_is_cut_off(start, study):
    limits = {"bytes_per_request": 10**6, "parts": 5}
    peers = [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]
    service = start(stow=stow(limits=limits), receive={"limits": {"bytes_per_instance": 10**5}, "peers": peers})
    assert post(service, multipart(*[b"x"] * 6))[0] == 413
    assert post(service, multipart(b"x" * 10**5))[0] == 409
    assert post(service, multipart(b"x" * (10**5 + 1)))[0] == 413
    assert post(service, multipart(*[b"x" * 10**5] * 20))[0] == 413
    assert works(service, study)


def test_length_that_is_claimed_is_not_waited_for(appliance):
    with socket.create_connection(("127.0.0.1", appliance.config.stow.port), timeout=20) as peer:
        peer.sendall(
            f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nContent-Length: {2**62}\r\n\r\n".encode()
        )
        assert peer.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("path", ["/studies", "/studies/0", "/nothing"])
def test_body_that_turns_out_to_be_no_http_is_answered_once(appliance, caplog, path):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", appliance.config.stow.port), timeout=20) as peer:
        peer.sendall(head.encode() + b"5\r\n--bet\r\nno chunk\r\n")
        answer = b"".join(iter(lambda: peer.recv(1000), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_chunked_body_without_end_is_cut_off_at_its_bytes(start, study):
    service = start(stow=stow(limits={"bytes_per_request": 10**6}))
    with socket.create_connection(("127.0.0.1", service.config.stow.port), timeout=20) as peer:
        peer.sendall(
            f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        with contextlib.suppress(OSError):
            peer.sendall(b"%x\r\n%b\r\n" % (len(head), head))
            for _ in range(1000):
                peer.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    assert works(service, study)
    assert not [path for path in images(service) if path.stat().st_size > 10**5]


@pytest.mark.parametrize("sent", ["", "POST /stu", f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\n"])
def test_request_that_does_not_begin_is_dropped_and_holds_up_no_other(start, study, sent):
    service = start(stow=stow(limits={"header_seconds": 0.5}))
    with socket.create_connection(("127.0.0.1", service.config.stow.port), timeout=10) as peer:
        peer.sendall(sent.encode())
        assert works(service, study)
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(100) == b""


def test_sender_that_falls_silent_or_drips_is_given_up_in_time(start, study):
    service = start(stow=stow(limits={"idle_seconds": 0.5, "request_seconds": 1.5}))
    head = f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nContent-Length: 100000\r\n\r\n".encode()
    for pause in (5.0, 0.2):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", service.config.stow.port), timeout=10) as peer:
            peer.sendall(head + multipart(b"", end=b"")[: -len(BOUNDARY) - 6])
            peer.settimeout(pause)
            answer = b""
            while not answer and time.monotonic() - began < 8:
                with contextlib.suppress(TimeoutError):
                    answer = peer.recv(100)
                with contextlib.suppress(OSError):
                    peer.sendall(b"-")
        assert answer.startswith(b"HTTP/1.1 408")
    assert works(service, study)


def test_more_requests_than_allowed_are_told_to_come_back(start, study):
    service = start(stow=stow(limits={"requests": 2}))
    head = f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nContent-Length: 1000\r\n\r\n".encode()
    with contextlib.ExitStack() as held:
        for _ in range(2):
            peer = held.enter_context(socket.create_connection(("127.0.0.1", service.config.stow.port)))
            peer.sendall(head)
        wait_for(lambda: service._stow._running == 2)
        status, headers, _ = post(service, multipart(study[0].read_bytes()))
        assert (status, headers["retry-after"]) == (503, "60")
    wait_for(lambda: works(service, study))


def test_forwarded_header_makes_nobody_another_host(start, study, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    service = start(stow=stow(peers=[{"name": "here", "token_file": tmp_path / "token", "hosts": ["127.0.0.1"]}]))
    shown = {"Authorization": f"Bearer {TOKEN}", "X_Forwarded_For": "192.0.2.1"}
    assert post(service, multipart(study[0].read_bytes()), **shown)[0] == 200


def test_tls_with_certificates_on_both_sides(start, study, tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.sign("appliance")
    own, own_key = authority.sign("router")
    tls = {"certificate": certificate, "key": key, "authority": authority.certificate, "mutual": True}
    service = start(stow=stow(tls=tls))
    context = ssl.create_default_context(cafile=str(authority.certificate))

    def posted() -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", service.config.stow.port, context=context, timeout=10)
        connection.request("POST", "/studies", multipart(study[0].read_bytes()), {"Content-Type": TYPE})
        return connection.getresponse().status

    with pytest.raises(OSError):  # noqa: PT011 - a TLS alert or a reset, as it comes
        posted()
    context.load_cert_chain(own, own_key)
    assert posted() == 200


def test_port_in_use_is_told_in_a_sentence(start):
    from orthokernels.errors import InputError

    port = free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(InputError, match=f"stow: can't listen on .*{port}"):
        start(stow=stow(port=port))
