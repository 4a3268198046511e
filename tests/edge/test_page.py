"""The page as HTTP: what it tells, what it keeps to itself, and what it refuses."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import socket
import ssl
import sys
import time
from contextlib import suppress
from http.client import HTTPSConnection

import nibabel
import numpy as np
import pytest
from orthokernels.edge import audit, viewing
from orthokernels.edge.config import Tls
from orthokernels.edge.corrections import Correction, Corrections
from orthokernels.edge.database import Database
from orthokernels.edge.doctor.checkup import ask_page
from orthokernels.edge.store import Store
from orthokernels.edge.web import Page
from orthokernels.edge.web.identity import view_folder
from PIL import Image

from orthokernels.data.study import read_study
from orthokernels.errors import InputError
from tests.edge.certificates import Authority
from tests.edge.kit import (
    SCRIPT,
    SCRIPTS,
    STRIPES,
    archive_destination,
    ask,
    edit,
    free_port,
    get,
    store,
    wait_for,
    write_study,
)
from tests.edge.stripes import stripes
from tests.edge.test_config import edge
from tests.edge.test_operate import cleaner

SHOWN = {"command": [sys.executable, str(STRIPES)]}
CORRECTION = {"what": "structure:femur", "plane": "coronal", "text": "Too large\r\nat the back.", "who": "A. Reader"}


def finished(service, *states: str):
    (job,) = wait_for(lambda: service.store.jobs(states or ("sent",)))
    return job


def form(service, path: str = "/study/1") -> tuple[dict[str, str], str]:
    """The cookie that a page leaves, as a header, and the value that stands in its forms."""
    page = ask(service, "GET", path)
    cookie = page.headers["Set-Cookie"].partition(";")[0]
    return {"Cookie": cookie}, re.search(r'name="token" value="(\w+)"', page.body.decode()).group(1)


def test_page_lists_studies_by_hash_and_names_no_patient(shown):
    job = shown.store.job(1)
    for path in ("/", "/queue.json", "/study/1"):
        status, page = get(shown, path)
        assert status == 200
        assert job.name in page
        assert ">kept here</span>" in page or path == "/queue.json"  # there is no destination
        assert not re.search(rf"\b{re.escape(job.study_uid)}\b", page)
        assert "Patient" not in page


def test_patient_is_shown_where_the_configuration_says_so(shown, monkeypatch):
    page = shown.config.page.model_copy(update={"show_patient": True})
    monkeypatch.setattr(shown, "config", shown.config.model_copy(update={"page": page}))
    (told,) = shown.config.appliance.data.glob("results/*-1/view/identity.json")
    assert json.loads(told.read_text())["name"] == SCRIPT
    for path in ("/", "/study/1"):
        shows = get(shown, path)[1]
        assert "&lt;script&gt;alert(1)&lt;/script&gt;, &lt;script&gt;" in shows.replace(" · ", ", ")
        assert "<script>" not in shows


def test_whatever_a_header_or_a_reader_says_is_escaped(shown, tmp_path):
    assert store(shown.config, write_study(tmp_path / "part", study="1.2.4", **SCRIPTS)[:3]).returncode == 0
    rejected = finished(shown, "rejected")
    assert SCRIPT in rejected.reason
    headers, token = form(shown)
    given = {**CORRECTION, "text": SCRIPT, "who": "<img src=x onerror=alert(1)>", "token": token}
    assert ask(shown, "POST", "/study/1/corrections", headers, given).status == 303
    for path in ("/", "/study/1", f"/study/{rejected.id}"):
        page = get(shown, path)[1]
        assert "&lt;script&gt;" in page
        assert not re.search(r"<script(?! src=\"/static/)|<img src=x|<b>", page)
    assert "<script" not in json.loads(get(shown, "/queue.json")[1])["html"]


def test_scripts_and_styles_come_from_the_appliance_alone(shown):
    for path in ("/", "/study/1", "/model", "/queue.json", "/study/99", "/static/page.css"):
        headers = ask(shown, "GET", path).headers
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["form-action"] == "'self'"
        assert policy["img-src"] == ("'self' data:" if path == "/study/1" else "'self'")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
    page = get(shown, "/study/1")[1]
    assert not re.search(r"(src|href)=\"(?!/|#)", page)
    assert " style=" not in page


def test_pinned_viewer_is_the_one_that_is_served(shown):
    import hashlib
    from importlib.resources import files

    pinned, name = (files("orthokernels.edge.web") / "static/vendor/SHA256SUMS").read_text().split()
    served = ask(shown, "GET", f"/static/vendor/{name}").body
    assert hashlib.sha256(served).hexdigest() == pinned
    assert f'src="/static/vendor/{name}"' in get(shown, "/study/1")[1]


def test_result_of_a_version_that_tells_more_of_it_leaves_its_page_and_its_pictures(serve, study):
    service = serve(work=SHOWN)
    assert store(service.config, study).returncode == 0
    view = view_folder(service.config, finished(service).name)
    told = json.loads((view / viewing.FINDINGS).read_text())
    (view / viewing.FINDINGS).write_text(json.dumps({**told, "added_later": 1}))
    status, page = get(service, "/study/1")
    assert (status, "/study/1/picture/" in page) == (200, True)
    assert json.loads(get(service, "/study/1/findings.json")[1])["added_later"] == 1
    assert get(service, "/study/1/viewer.json") == (200, '{"planes":[]}')
    headers, token = form(service)
    assert ask(service, "POST", "/study/1/corrections", headers, {**CORRECTION, "token": token}).status == 303


def test_volumes_and_label_maps_are_those_of_the_study(shown):
    found = read_study([shown.config.appliance.data / file for file in shown.store.files(1)])
    told = json.loads(get(shown, "/study/1/viewer.json")[1])
    assert [plane["plane"] for plane in told["planes"]] == ["sagittal", "coronal", "axial"]
    for plane in told["planes"]:
        volume = found.load(plane["plane"])
        for url, expected in ((plane["volume"], volume.voxels), (plane["labels"], stripes(volume))):
            image = nibabel.Nifti1Image.from_bytes(gzip.decompress(ask(shown, "GET", url).body))
            assert np.array_equal(np.asanyarray(image.dataobj), volume.turn.apply(expected))
            affine = volume.turn.apply_affine(volume.affine, volume.shape)
            np.testing.assert_allclose(image.affine, affine, atol=1e-4)  # NIfTI keeps it in float32
        counted = {one["index"]: one["voxels"] for one in plane["structures"]}
        assert counted == {n: int((stripes(volume) == n).sum()) for n in counted}


def test_result_checks_pictures_and_timings_are_shown(shown):
    page = get(shown, "/study/1")[1]
    for told in ("0.91", "femur", "it may be &lt;b&gt;anything", "inferring", "the only usable volume of this plane"):
        assert told.lower() in page.lower()
    assert json.loads(get(shown, "/study/1/findings.json")[1])["joint"] == "knee"
    picture = Image.open(io.BytesIO(ask(shown, "GET", "/study/1/picture/sagittal.png").body))
    assert picture.size == (20, 24)


def test_only_results_of_ours_are_served_whatever_is_asked_for(shown):
    (shown.config.appliance.data / "secret.png").write_bytes(b"secret")
    for path in (
        "/study/1/picture/../../../secret.png", "/study/1/picture/..%2f..%2f..%2fsecret.png", "/study/1/picture/x.png",
        "/study/1/volume/knee.nii.gz", "/study/1/volume/..%2fsagittal.nii.gz", "/study/99999999999999999999999",
        "/study/-1", "/study/99", "/study/99/viewer.json", "/static/../application.py", "/static/%2e%2e/application.py",
        "/static/vendor/", "/nowhere",
    ):  # fmt: skip
        assert get(shown, path)[0] == 404, path


def test_views_are_delivered_to_no_archive_swept_where_orphaned_and_removed_with_the_result(serve, study, archive):
    from orthokernels.edge.viewing import remove_orphans

    service = serve(work=SHOWN, destinations=[archive_destination(archive.port)])
    assert store(service.config, study).returncode == 0
    finished(service)
    assert len(archive.objects()) == 3
    results = service.config.appliance.data / "results"
    (results / "0123-1" / "view").mkdir(parents=True)
    (results / "0123-1" / "view" / "axial.nii.gz").touch()
    remove_orphans(results)
    assert len(list(results.iterdir())) == 1
    assert get(service, "/study/1/volume/axial.nii.gz")[0] == 200
    assert cleaner(service, delivered_days=0.0).clean() == 1
    assert not list(results.rglob("view/*"))
    assert get(service, "/study/1")[0] == 200
    assert json.loads(get(service, "/study/1/viewer.json")[1]) == {"planes": []}
    assert get(service, "/study/1/volume/axial.nii.gz")[0] == 404


def test_page_needs_its_token_and_probes_do_not(serve, tmp_path):
    (tmp_path / "token").write_text("correct horse battery\n")
    service = serve(page={"port": free_port(), "token_file": tmp_path / "token"})
    for path in ("/", "/queue.json", "/study/1", "/static/page.css", "/corrections.json"):
        assert get(service, path)[0] == 401
        assert get(service, path, Authorization="Bearer wrong horse battery")[0] == 401
    assert get(service, "/", Authorization="Bearer correct horse battery")[0] == 200
    assert get(service, "/", Authorization="Basic OmNvcnJlY3QgaG9yc2UgYmF0dGVyeQ==")[0] == 200
    assert get(service, "/healthz")[0] == 200


def test_name_that_is_not_ours_is_refused_so_that_no_other_site_can_become_this_one(serve):
    service = serve(page={"port": free_port(), "names": ["Orthobox.example"]})
    port = service.config.page.port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[::1",
    ):
        assert get(service, "/", Host=host)[0] == 421, host
    for host in (
        "localhost",
        f"127.0.0.1:{port}",
        "[::1]:80",
        "192.0.2.7",
        "orthobox.example:8080",
        "ORTHOBOX.EXAMPLE",
    ):
        assert get(service, "/", Host=host)[0] == 200, host
    assert get(service, "/readyz", Host="evil.example")[0] in (200, 503)


def test_request_that_nobody_means_gets_an_answer_and_no_traceback(serve, tmp_path, caplog):
    (tmp_path / "token").write_text("correct horse battery\n")
    service = serve(page={"port": free_port(), "token_file": tmp_path / "token"})
    known = {"Authorization": "Bearer correct horse battery"}
    assert ask(service, "GET", "/", {"Authorization": "Basic \xfc\xf6"}).status == 401
    assert ask(service, "GET", f"/study/{'9' * 5000}", known).status == 414
    assert ask(service, "GET", f"/study/{'9' * 500}", known).status == 404
    assert ask(service, "POST", "/study/1/retry", {**known, "Origin": "http://["}, {}).status == 403
    assert "Traceback" not in caplog.text


def test_form_from_elsewhere_is_refused(serve, study):
    service = serve(destinations=[archive_destination(free_port())])
    assert store(service.config, study).returncode == 0
    wait_for(lambda: service.store.jobs())
    headers, token = form(service)
    here = f"http://127.0.0.1:{service.config.page.port}"
    fields = {**CORRECTION, "token": token}
    refused = (
        ({}, fields),  # a form that another site posts has no cookie: it is SameSite=Strict
        (headers, CORRECTION),
        (headers, {**fields, "token": "0" * 64}),
        ({"Cookie": "orthokernels_form=mine"}, fields),
        ({**headers, "Origin": "http://evil.example"}, fields),
        ({**headers, "Origin": "null"}, fields),
        ({**headers, "Origin": here, "Sec-Fetch-Site": "cross-site"}, fields),
    )
    ours = {**headers, "Origin": here, "Sec-Fetch-Site": "same-origin"}
    for path in ("/study/1/corrections", "/study/1/retry", "/study/1/discard", "/destination/archive/retry"):
        for sent, given in refused:
            assert ask(service, "POST", path, sent, given).status == 403
        assert ask(service, "POST", path, {**headers, "Content-Type": "text/plain"}, fields).status == 415
        assert ask(service, "POST", path, headers, {**fields, "text": "x" * 70000}).status == 413
        assert ask(service, "POST", path, headers, {str(n): "x" for n in range(30)}).status == 400
        assert ask(service, "GET", path, headers).status == 405
        assert Corrections(service.store, "knee").export() == []
    for path in ("/study/1/retry", "/destination/archive/retry", "/study/1/corrections"):
        assert ask(service, "POST", path, ours, fields).status == 303


def test_cookie_is_for_our_own_pages_alone(shown):
    cookie = ask(shown, "GET", "/").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


def test_correction_is_kept_listed_exported_and_noted_without_its_text(shown, tmp_path):
    headers, token = form(shown)
    assert ask(shown, "POST", "/study/1/corrections", headers, {**CORRECTION, "token": token}).status == 303
    page = get(shown, "/study/1")[1]
    assert "Too large\nat the back." in page
    assert "A. Reader" in page
    *_, kept = json.loads(get(shown, "/corrections.json")[1])
    job = shown.store.job(1)
    wanted = {"study": job.name, "kind": "structure", "label": "femur", "plane": "coronal", "model": "a" * 64}
    assert wanted.items() <= kept.items()
    (tmp_path / "appliance.toml").write_text(f'[appliance]\ndata = "{shown.config.appliance.data}"\n')
    printed = edge("export-corrections", "--config", tmp_path / "appliance.toml").stdout.splitlines()
    assert json.loads(printed[-1]) == kept
    *_, entry = audit.entries(shown.store.database)
    assert (entry["event"], entry["subject"], entry["intact"]) == ("correction", job.name, True)
    assert "Too large" not in str(entry)
    assert "Reader" not in str(entry)


def test_correction_of_a_finding_is_still_shown_once_the_appliance_reads_another_joint(serve, study):
    service = serve(results={"joint": "ankle"})
    assert store(service.config, study).returncode == 0
    job = finished(service)
    Corrections(service.store, "knee").add(Correction(job.id, "finding", "ACL", None, "It is torn.", "A. Reader"))
    status, page = get(service, f"/study/{job.id}")
    assert (status, "Anterior cruciate ligament injury" in page) == (200, True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"what": ""}, "Choose what is wrong"),
        ({"what": "structure:appendix"}, "Choose what is wrong"),
        ({"what": "other:femur"}, "Choose what is wrong"),
        ({"plane": "oblique"}, "Choose the plane"),
        ({"text": "  "}, "How it should be: please fill this in"),
        ({"who": ""}, "Your name: please fill this in"),
        ({"text": "x" * 2001}, "2001 characters; at most 2000"),
    ],
)
def test_correction_that_says_too_little_or_too_much_comes_back_with_what_was_written(shown, change, told):
    headers, token = form(shown)
    before = len(Corrections(shown.store, "knee").export())
    answer = ask(shown, "POST", "/study/1/corrections", headers, {**CORRECTION, **change, "token": token})
    assert answer.status == 422
    assert told in answer.body.decode()
    if "who" not in change:
        assert 'value="A. Reader"' in answer.body.decode()
    assert len(Corrections(shown.store, "knee").export()) == before


def test_destination_that_is_down_is_shown_and_retried_by_one_form(serve, study, archive):
    archive.stop()
    down = archive_destination(archive.port, tries=1, timeout_seconds=2.0)
    service = serve(destinations=[down])
    assert store(service.config, study).returncode == 0
    finished(service, "dead")
    page = get(service, "/")[1]
    assert "failing" in page
    assert "no association" in page
    archive.start()
    headers, token = form(service, "/")
    assert ask(service, "POST", "/destination/archive/retry", headers, {"token": token}).status == 303
    finished(service, "sent")
    assert "working" in get(service, "/")[1]


def test_delivery_to_a_destination_that_was_taken_out_is_given_up_on_by_a_form_behind_a_question(serve, study):
    service = serve(destinations=[archive_destination(free_port(), tries=1)])
    assert store(service.config, study).returncode == 0
    job = finished(service, "dead")
    service.deliveries.destinations = {}
    page = get(service, "/study/1")[1]
    assert "be sent to archive, which the configuration no longer names: give up on it" in page
    assert "/study/1/retry" not in page
    assert "/study/1/retry" not in get(service, "/")[1]
    question = page.partition("<details><summary")[2].partition("</details>")[0]
    assert "Give up on it</summary>" in question
    assert page.count('action="/study/1/discard"') == question.count('action="/study/1/discard"') == 1
    assert "removed from here after 30 days" in question
    headers, token = form(service)
    assert ask(service, "POST", "/study/1/discard", headers, {"token": token}).status == 303
    assert service.store.job(job.id).state == "discarded"
    assert [own["state"] for own in service.deliveries.of(job.id)] == ["discarded"]
    page = get(service, "/study/1")[1]
    assert "Give up on it" not in page
    assert "Retry" not in page


def test_delivery_to_a_destination_that_was_taken_out_stays_given_up(serve, study):
    service = serve(destinations=[archive_destination(free_port(), tries=1)])
    assert store(service.config, study).returncode == 0
    job = finished(service, "dead")
    service.deliveries.destinations = {}
    service.deliveries.retry(job, "test")
    assert [own["state"] for own in service.deliveries.of(job.id)] == ["dead"]


def test_image_that_was_set_aside_is_told_on_the_page_of_its_study(serve, study, tmp_path):
    service = serve(settle={"quiet_seconds": 60.0})
    assert store(service.config, study[:1]).returncode == 0
    assert "Set aside" not in get(service, "/study/1")[1]
    other = edit(write_study(tmp_path / "other", planes=("sagittal",))[0], StudyDescription="another")
    assert store(service.config, [other]).returncode == 0
    assert "1 image with a known identifier but other content; what came first is used" in get(service, "/study/1")[1]


def test_port_of_the_page_that_is_in_use_is_told(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service = start(page={"port": taken.getsockname()[1]})
        with pytest.raises(InputError, match="page: can't listen on 127"):
            Page(service)


def test_connections_that_say_nothing_do_not_keep_others_from_the_page(serve):
    service = serve()
    silent = [socket.create_connection(("127.0.0.1", service.config.page.port), timeout=30) for _ in range(120)]
    began = time.monotonic()
    try:
        assert get(service, "/healthz") == (200, "ok\n")
        assert time.monotonic() - began < 8  # before the first of them is given up for its silence
    finally:
        for connection in silent:
            connection.close()


def test_connections_that_shake_no_hands_take_neither_the_page_nor_every_file_that_may_be_open(serve, tmp_path):
    certificate, key = Authority(tmp_path).sign("box")
    service = serve(page={"port": free_port(), "tls": {"certificate": certificate, "key": key}})
    before = len(os.listdir("/proc/self/fd"))
    silent = [socket.create_connection(("127.0.0.1", service.config.page.port), timeout=30) for _ in range(400)]
    try:
        assert ask_page(service.config, "healthz") == (200, "ok")
        wait_for(lambda: len(os.listdir("/proc/self/fd")) - before - len(silent) < 150)  # their other ends
    finally:
        for connection in silent:
            connection.close()


def test_appliance_whose_page_or_dicom_port_has_ended_is_not_alive(serve):
    service = serve()
    assert {"page", "dicom-port"} <= {thread.name for thread in service._threads}
    assert service.alive()
    service._receiver._server.shutdown()
    wait_for(lambda: not service.alive())
    assert get(service, "/healthz")[0] == 503


def test_model_card_is_shown_and_what_html_it_holds_is_text(serve, tmp_path):
    (tmp_path / "bundle").mkdir()
    card = "# Model card: knee\n\n<script>alert(1)</script>\n\n[a](javascript:alert(1)) ![b](http://x.example/p.png)\n"
    (tmp_path / "bundle" / "MODEL_CARD.md").write_text(card)
    service = serve(work={"bundle": tmp_path / "bundle"})
    page = get(service, "/model")[1]
    assert "<h1>Model card: knee</h1>" in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"<script|href=\"javascript|<img", page)


def test_page_without_a_bundle_says_so(serve):
    assert "No bundle" in get(serve(), "/model")[1]


# Makes a database one of version 1: what versions 2 to 5 added is taken away.
_VERSION_1 = (
    "DROP TABLE corrections; DROP INDEX audit_of_subject; DROP INDEX audit_of_actor; DROP TABLE object_forms; "
    "DROP TABLE delivery_forms; DROP INDEX instances_here; DROP INDEX jobs_of_instance; DROP INDEX objects_here; "
    "DROP INDEX asides_of_study; DROP TABLE given_up; PRAGMA user_version = 1;"
)


def test_database_of_version_1_is_brought_up_to_date_and_keeps_its_rows(start, study):
    service = start()
    assert store(service.config, study).returncode == 0
    before = finished(service)
    data = service.config.appliance.data
    with service.store.database.read() as connection:
        connection.executescript(_VERSION_1)
    opened = Store(Database(data))
    assert opened.find(before.id) == before
    Corrections(opened, "knee").add(Correction(before.id, "other", None, None, "wrong side", "A. Reader"))
    with opened.database.read() as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 5
        indexes = {row["name"] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'index'")}
    assert {"instances_here", "jobs_of_instance", "objects_here"} <= indexes
    assert all(entry["intact"] for entry in audit.entries(opened.database))
    with opened.database.read() as connection:
        connection.execute("PRAGMA user_version = 6")
    with pytest.raises(InputError, match="newer orthokernels"):
        Database(data)
    opened.database.close()


def test_page_over_tls_for_who_trusts_its_authority_and_plain_http_gets_nothing(serve, tmp_path, tmp_path_factory):
    authority = Authority(tmp_path)
    certificate, key = authority.sign("appliance")
    page = {"port": free_port(), "tls": {"certificate": certificate, "key": key}}
    service = serve(page=page)
    context = ssl.create_default_context(cafile=str(authority.certificate))
    address = ("127.0.0.1", service.config.page.port)

    with socket.create_connection(address) as plain:
        plain.settimeout(10)
        plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with suppress(ConnectionResetError):
            assert b"HTTP" not in plain.recv(4096)
    with pytest.raises(ssl.SSLCertVerificationError):
        HTTPSConnection(*address, timeout=10).request("GET", "/healthz")
    connection = HTTPSConnection(*address, timeout=10, context=context)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert answer.status == 200
    assert "secure" in answer.headers["Set-Cookie"].lower()
    connection.close()
    # As 'edge probe' and the doctor ask, on this machine: they know the certificate, whoever signed it.
    assert ask_page(service.config, "healthz") == (200, "ok")
    other, other_key = Authority(tmp_path_factory.mktemp("other")).sign("other")
    stranger = service.config.page.model_copy(update={"tls": Tls(certificate=other, key=other_key)})
    assert ask_page(service.config.model_copy(update={"page": stranger}), "healthz")[0] == 0
