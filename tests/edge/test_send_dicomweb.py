"""DICOMweb as a destination: a real Orthanc, and servers that are down, fail, hang, redirect or answer nonsense."""

from __future__ import annotations

import contextlib
import itertools
import json
import ssl
import threading
import time
from collections.abc import Iterator
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from orthokernels.edge import audit
from orthokernels.edge.config import WebDestination
from orthokernels.edge.deliveries import Made, NotDeliveredError
from orthokernels.edge.send.stow import post

from orthokernels.errors import InputError
from tests.edge.certificates import Authority
from tests.edge.kit import ORTHANC_LOGIN, free_port, orthanc_objects, store, wait_for, web_destination

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


class Server:
    """A DICOMweb server that does what ``answer`` says, given the UIDs that came: status, headers, body."""

    def __init__(self, answer: Any, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.received: list[list[str]] = []
        self.headers: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                uids = instances(self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"])))
                server.received.append(uids)
                given = answer(uids) if callable(answer) else answer
                if given is None:
                    return
                status, headers, body = given
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for part in [body] if isinstance(body, bytes) else body:
                        self.wfile.write(part)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def instances(content_type: str, body: bytes) -> list[str]:
    """SOP Instance UIDs of a multipart body, read by Python's own MIME parser."""
    message = BytesParser().parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    assert message.get_content_type() == "multipart/related"
    assert message.get_param("type") == "application/dicom"
    found = []
    for part in message.get_payload():
        assert part.get_content_type() == "application/dicom"
        content = part.get_payload(decode=True)
        found.append(str(pydicom.dcmread(BytesIO(content), stop_before_pixels=True).SOPInstanceUID))
    return found


def told(kept: list[str], failed: dict[str, int] | None = None) -> bytes:
    def items(given: list[dict[str, Any]]) -> dict[str, Any]:
        return {"vr": "SQ", "Value": given}

    def item(uid: str, **more: Any) -> dict[str, Any]:
        return {"00081155": {"vr": "UI", "Value": [uid]}, **more}

    answer = {"00081199": items([item(uid) for uid in kept])}
    if failed:
        answer["00081198"] = items(
            [item(uid, **{"00081197": {"vr": "US", "Value": [reason]}}) for uid, reason in failed.items()]
        )
    return json.dumps(answer).encode()


@pytest.fixture
def serve() -> Iterator[Any]:
    running = []

    def begin(answer: Any, tls: ssl.SSLContext | None = None, port: int = 0) -> Server:
        running.append(Server(answer, tls, port))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture
def owed(study: list[Path]) -> tuple[Path, list[Made]]:
    """Three DICOM files as objects that are owed, and the folder that they are below."""
    folder = study[0].parent.parent
    made = [
        Made(str(header.SOPClassUID), str(header.SOPInstanceUID), "", str(path.relative_to(folder)), number)
        for number, path in enumerate(study[:3])
        for header in [pydicom.dcmread(path, stop_before_pixels=True)]
    ]
    return folder, made


def deliver(owed: tuple[Path, list[Made]], port: int, **more: Any) -> list[str]:
    """UIDs that were accepted; raises what one try raises."""
    accepted: list[str] = []
    settings = {"timeout_seconds": 2.0, **more}
    try:
        post(
            WebDestination.model_validate(web_destination(port, **settings)),
            *owed,
            lambda made: accepted.append(made.sop_uid),
        )
    except NotDeliveredError as error:
        error.add_note(f"accepted: {len(accepted)}")
        raise
    return accepted


def test_orthanc_takes_what_it_is_posted(start, study, orthanc, tmp_path):
    if not PLUGIN.is_file():
        pytest.skip("Orthanc's DICOMweb plugin is not installed (Debian's orthanc-dicomweb)")
    _, http = orthanc(free_port(), (PLUGIN,))
    (tmp_path / "login").write_text(ORTHANC_LOGIN + "\n")
    service = start(destinations=[web_destination(http, password_file=tmp_path / "login")])
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("sent", "dead")))
    assert job.state == "sent", job.reason
    assert set(orthanc_objects(http)) == {made.sop_uid for made in service.deliveries.objects(job.id)}


def test_orthanc_says_no_to_a_wrong_password(start, study, orthanc, tmp_path):
    if not PLUGIN.is_file():
        pytest.skip("Orthanc's DICOMweb plugin is not installed (Debian's orthanc-dicomweb)")
    _, http = orthanc(free_port(), (PLUGIN,))
    (tmp_path / "login").write_text("orthokernels:guessed\n")
    service = start(destinations=[web_destination(http, password_file=tmp_path / "login", tries=1)])
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("dead",)))
    assert "does not let us in (HTTP 401)" in job.reason
    assert not orthanc_objects(http)


def test_server_that_is_down_gets_everything_once_it_is_back(start, study, serve):
    port = free_port()
    service = start(destinations=[web_destination(port, tries=100)])
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("sending",)))
    wait_for(lambda: any(one["event"] == "not delivered" for one in audit.entries(service.store.database)))
    server = serve(lambda uids: (200, {}, told(uids)), port=port)
    wait_for(lambda: service.store.job(job.id).state == "sent")
    assert set(server.received[0]) == {made.sop_uid for made in service.deliveries.objects(job.id)}


def test_objects_that_fail_are_sent_again_and_those_that_were_kept_are_not(start, study, serve):
    turns = iter(range(100))

    def one_more_each_time(uids):
        return (202, {}, told(uids[:1], dict.fromkeys(uids[1:], 42752))) if next(turns) < 2 else (
            200, {}, told(uids)
        )  # fmt: skip

    server = serve(one_more_each_time)
    service = start(destinations=[web_destination(server.port, tries=10)])
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("sent",)))
    first, second, third = server.received
    assert (second, third) == (first[1:], first[2:])
    assert job.reason is None


def test_delivery_is_put_aside_with_what_the_server_said(start, study, serve):
    server = serve(lambda uids: (409, {}, told([], dict.fromkeys(uids, 290))))
    service = start(destinations=[web_destination(server.port, tries=2)])
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("dead",)))
    assert job.reason == "web: Secondary Capture Image Storage: it answered 0x0122"
    assert len(server.received) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((500, {}, b"oops"), "it answered HTTP 500"),
        ((503, {"Retry-After": "1"}, b""), "it answered HTTP 503"),
        ((409, {}, b""), "it answered HTTP 409"),
        ((401, {}, b""), "does not let us in (HTTP 401)"),
        ((307, {"Location": "http://192.0.2.1/studies"}, b""), "it redirects (HTTP 307), which is not followed"),
        ((202, {}, b""), "not DICOM JSON"),
        ((200, {}, b"<html>Welcome</html>"), "not DICOM JSON"),
        ((200, {}, b"[" * 100_000), "not DICOM JSON"),
        ((200, {}, b"{}"), "it did not say that it keeps it"),
        ((200, {}, b'{"00081199": {"Value": [null, 3, {"00081155": {"Value": 5}}]}}'), "it did not say"),
        ((200, {}, b" " * (5 * 2**20)), "longer than 4 MB"),
        (None, "the connection broke"),
    ],
)
def test_answer_that_does_not_say_kept_is_no_delivery(serve, owed, answer, reason):
    server = serve(answer)
    with pytest.raises(NotDeliveredError) as refused:
        deliver(owed, server.port)
    assert reason in str(refused.value)
    assert refused.value.__notes__ == ["accepted: 0"]


def test_success_without_a_body_is_success(serve, owed):
    assert len(deliver(owed, serve((200, {}, b"")).port)) == 3


def test_object_that_the_server_has_already_is_delivered(serve, owed):
    server = serve(lambda uids: (409, {}, told([], dict.fromkeys(uids, 273))))
    assert len(deliver(owed, server.port)) == 3


def test_large_results_go_in_several_requests(serve, owed):
    server = serve(lambda uids: (200, {}, told(uids)))
    assert len(deliver(owed, server.port, bytes_per_request=1)) == 3
    assert [len(uids) for uids in server.received] == [1, 1, 1]


def test_server_that_hangs_is_left_at_the_deadline(serve, owed):
    server = serve(lambda uids: time.sleep(20))
    began = time.monotonic()
    with pytest.raises(NotDeliveredError, match=r"did not answer within 0\.5 seconds"):
        deliver(owed, server.port, timeout_seconds=0.5)
    assert time.monotonic() - began < 5


def test_server_that_drips_its_answer_is_left_at_the_deadline(serve, owed):
    server = serve(lambda uids: (200, {}, (time.sleep(0.1) or b" " for _ in itertools.count())))
    began = time.monotonic()
    with pytest.raises(NotDeliveredError, match="did not end in time"):
        deliver(owed, server.port, timeout_seconds=1.0)
    assert time.monotonic() - began < 8


def test_nobody_listening_is_no_connection(owed):
    with pytest.raises(NotDeliveredError, match=r"no connection .*refused"):
        deliver(owed, free_port())


def test_token_goes_along_and_no_proxy_of_the_environment_is_asked(serve, owed, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (tmp_path / "token").write_text("abc.def\n")
    server = serve(lambda uids: (200, {}, told(uids)))
    deliver(owed, server.port, token_file=tmp_path / "token")
    assert server.headers[0]["authorization"] == "Bearer abc.def"
    assert server.headers[0]["accept"] == "application/dicom+json"


def test_token_that_is_not_there_stops_the_appliance_before_it_listens(start, tmp_path):
    with pytest.raises(InputError, match=r"destinations: web\.token_file: .*can't be read"):
        start(destinations=[web_destination(1, token_file=tmp_path / "absent")])


def test_tls_checks_the_servers_certificate(serve, owed, tmp_path):
    authority = Authority(tmp_path)
    (tmp_path / "stranger").mkdir()
    stranger = Authority(tmp_path / "stranger")
    certificate, key = authority.sign("archive")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = serve(lambda uids: (200, {}, told(uids)), context)
    url = f"https://127.0.0.1:{server.port}/dicom-web"
    assert len(deliver(owed, server.port, url=url, tls={"authority": authority.certificate})) == 3
    with pytest.raises(NotDeliveredError, match=r"TLS failed: .*certificate"):
        deliver(owed, server.port, url=url, tls={"authority": stranger.certificate})
