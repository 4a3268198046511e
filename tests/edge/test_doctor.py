"""The doctor: what is wrong is found and a remedy named; its study goes through the whole loop and to no archive."""

from __future__ import annotations

import json
import shutil
import socket
from types import SimpleNamespace

import pytest
from orthokernels.edge.config import Config, Disk
from orthokernels.edge.deliveries import KEPT_HERE
from orthokernels.edge.doctor.checkup import ask_page, checkup
from orthokernels.edge.doctor.loop import address, doctors_peer
from orthokernels.edge.doctor.peers import look_at_destinations
from orthokernels.edge.doctor.site import (
    is_running,
    look_at_bundle,
    look_at_clock,
    look_at_disk,
    look_at_files,
    look_at_ports,
    look_at_watched_folder,
)
from orthokernels.edge.doctor.study import PATIENT_ID, new_study
from orthokernels.edge.evaluate import PipelineEvaluator
from orthokernels.edge.receive.intake import no_room, used_share
from orthokernels.edge.send.scu import WRITTEN
from orthokernels.edge.web import Page
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from orthokernels.bundle.signature import make_keys, sign
from orthokernels.errors import InputError
from tests.edge.certificates import Authority
from tests.edge.kit import archive_destination, config, free_port, store, wait_for, write_bundle
from tests.edge.test_config import edge

DOCTOR = {"ae_title": "DOCTOR", "hosts": ["127.0.0.1"], "deliver": False}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, study):
    return write_bundle(tmp_path_factory.mktemp("bundle"), study)


@pytest.fixture
def file(tmp_path):
    """A configuration file, for what is looked at of it alone."""
    path = tmp_path / "appliance.toml"
    path.write_text("")
    path.chmod(0o600)
    return path


def verdicts(looks) -> dict[str, str]:
    return {look.what: look.verdict for look in looks}


def test_watched_folder_that_can_not_be_emptied_is_told(tmp_path):
    (tmp_path / "watched").mkdir()
    good, bad = tmp_path / "watched", "/proc/1"  # for root too
    assert verdicts(look_at_watched_folder(config(tmp_path, watch={"folder": good}))) == {"watched folder": "ok"}
    (look,) = look_at_watched_folder(config(tmp_path, watch={"folder": bad}))
    assert look.verdict == "failed"
    assert "ReadWritePaths" in look.remedy
    assert list(good.iterdir()) == []
    assert list(look_at_watched_folder(config(tmp_path))) == []


def test_study_goes_through_an_appliance_of_the_doctor_s_own_and_to_no_archive(bundle, file, archive, tmp_path):
    settings = config(tmp_path, work={"bundle": bundle}, destinations=[archive_destination(archive.port)])
    looks = list(checkup(file, settings, 60))
    assert [look for look in looks if look.verdict == "failed"] == []
    found = {look.what: look.seen for look in looks}
    assert found["destination archive"].endswith("answers C-ECHO")
    assert found["send a study"] == "48 images, each acknowledged"
    assert found["results"].endswith("delivered to the doctor's own receiver")
    assert archive.objects() == []
    assert not settings.appliance.data.exists()


def test_running_appliance_gets_the_study_and_keeps_the_results(start, bundle, file, archive, study):
    service = start(
        receive={"port": free_port(), "peers": [DOCTOR, {"ae_title": "MR1", "hosts": ["127.0.0.1"]}]},
        work={"bundle": bundle}, destinations=[archive_destination(archive.port)],
    )  # fmt: skip
    assert is_running(service.config)
    looks = {look.what: look for look in checkup(file, service.config, 60)}
    assert looks["results"].verdict == "ok"
    (job,) = service.store.jobs()
    assert (job.state, job.reason) == ("sent", KEPT_HERE)
    assert archive.objects() == []
    assert store(service.config, study).returncode == 0
    wait_for(lambda: len(archive.objects()) == 3)  # a scanner's own study is delivered beside it


def test_peer_is_asked_for_from_where_the_doctor_comes(monkeypatch):
    """An appliance that listens on one interface is reached from this machine over that, and it may be named."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("192.0.2.5", 0))])
    doctor = {"ae_title": "DOCTOR", "deliver": False}
    for host, let_in in (("127.0.0.1", False), ("192.0.2.5", True)):
        receive = {"host": "box.example", "peers": [{**doctor, "hosts": [host]}]}
        settings = Config.model_validate({"receive": receive})
        assert (doctors_peer(settings) is not None) is let_in
    assert address(settings) == "192.0.2.5"


def test_study_that_a_scanner_sends_images_of_too_is_delivered(start, archive, study, tmp_path):
    service = start(
        receive={"port": free_port(), "peers": [DOCTOR, {"ae_title": "MR1", "hosts": ["127.0.0.1"]}]},
        settle={"quiet_seconds": 2.0}, destinations=[archive_destination(archive.port)],
    )  # fmt: skip
    assert store(service.config, study[:40], calling="DOCTOR").returncode == 0
    assert store(service.config, study[40:]).returncode == 0
    wait_for(lambda: len(archive.objects()) == 3)


def test_study_that_only_the_doctor_had_sent_is_delivered_once_a_scanner_sends_it(start, archive, study):
    service = start(
        receive={"port": free_port(), "peers": [DOCTOR, {"ae_title": "MR1", "hosts": ["127.0.0.1"]}]},
        destinations=[archive_destination(archive.port)],
    )  # fmt: skip
    assert store(service.config, study, calling="DOCTOR").returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("sent",)))
    assert store(service.config, study[:1], calling="DOCTOR").returncode == 0
    assert service.store.job(job.id).reason == KEPT_HERE
    assert store(service.config, study).returncode == 0
    wait_for(lambda: len(archive.objects()) == 3)
    wait_for(lambda: service.store.job(job.id).state == "sent")
    assert service.store.job(job.id).reason is None
    assert service.store.sources(job.id) == ["MR1"]
    assert len(service.store.jobs()) == 1


def test_each_visit_sends_a_new_study_of_nobody(study):
    first, second = new_study(study), new_study(study)
    assert len({image.SOPInstanceUID for image in first + second}) == 2 * len(study)
    assert len({image.StudyInstanceUID for image in first}) == 1
    assert len({image.SeriesInstanceUID for image in first}) == 3
    assert {image.PatientID for image in first} == {PATIENT_ID}
    assert all("Secret" not in str(image.PatientName) for image in first)


def test_command_tells_what_failed_as_text_and_as_json_with_exit_code_1(tmp_path):
    path = tmp_path / "appliance.toml"
    path.write_text(
        f'[appliance]\ndata = "{tmp_path / "data"}"\n[page]\nport = {free_port()}\n'
        "[disk]\nkeep_free_bytes = 0\nrefuse_above = 1.0\n"  # however full the disk is that tests run on
    )
    path.chmod(0o666)
    done = edge("doctor", "--config", path, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["ok"] is False
    found = {look["what"]: look for look in told["looks"]}
    assert found["configuration"]["remedy"] == f"chmod 640 {path}"
    assert found["bundle"]["verdict"] == found["whole loop"]["verdict"] == "failed"
    text = edge("doctor", "--config", path)
    assert text.returncode == 1
    assert "Failed: configuration, bundle, whole loop." in text.stdout


def test_probe_says_whether_the_appliance_is_well(start, tmp_path):
    from orthokernels.edge.web import Page

    from tests.edge.kit import listens

    path = tmp_path / "appliance.toml"
    port = free_port()
    path.write_text(f"[page]\nport = {port}\n")
    assert edge("probe", "--config", path).returncode == 1
    Page(start(page={"port": port})).start()
    wait_for(lambda: listens(port))
    done = edge("probe", "--config", path)
    assert (done.returncode, done.stdout) == (0, "ok\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "0:0:0:0:0:0:0:1"])
def test_page_is_asked_for_at_any_address_and_past_the_environment_s_proxy(start, tmp_path, monkeypatch, host):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")
    (tmp_path / "token").write_text("correct horse battery\n")
    service = start(page={"host": host, "port": free_port(), "token_file": tmp_path / "token"})
    Page(service).start()
    assert wait_for(lambda: ask_page(service.config, "healthz")[0]) == 200


def test_archive_that_is_down_unknown_or_no_dicom_is_told_apart(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        places = {
            "down": {"port": free_port()},
            "unknown": {"host": "no-such-host.invalid"},
            "silent": {"port": silent.getsockname()[1], "timeout_seconds": 1.0},
        }
        told = {
            name: next(look_at_destinations(config(tmp_path, destinations=[archive_destination(1) | place])))
            for name, place in places.items()
        }
    assert {look.verdict for look in told.values()} == {"failed"}
    assert "nobody answers" in told["down"].seen
    assert "no such host" in told["unknown"].seen
    assert "listens, and C-ECHO failed" in told["silent"].seen


def test_archive_that_does_not_know_us_is_told_with_the_remedy(tmp_path):
    entity = AE(ae_title="PACS")
    entity.require_calling_aet = ["SOMEBODY"]
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    try:
        (look,) = look_at_destinations(config(tmp_path, destinations=[archive_destination(server.server_address[1])]))
    finally:
        server.shutdown()
    assert "rejected the association" in look.seen
    assert look.remedy.startswith("Make ORTHOKERNELS known to PACS")


def test_classes_that_an_archive_does_not_accept_are_told_before_a_study_is_sent(archive, tmp_path):
    def look(port: int, label_map):
        destination = archive_destination(port, label_map=label_map)
        return next(look_at_destinations(config(tmp_path, destinations=[destination])))

    assert look(archive.port, "auto").seen.endswith("it takes binary segmentations alone")  # as dcmtk's storescp does
    assert look(archive.port, None).verdict == "ok"
    assert look(archive.port, True).verdict == "failed"
    entity = AE(ae_title="PACS")
    for sop_class in (Verification, *WRITTEN[1:-1]):
        entity.add_supported_context(sop_class)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        found = look(server.server_address[1], "auto")
    finally:
        server.shutdown()
    assert found.seen.endswith("does not accept: Secondary Capture Image Storage")


def test_secret_that_others_may_read_is_found(tmp_path, file):
    token = tmp_path / "token"
    token.write_text("correct horse battery")
    token.chmod(0o644)
    settings = config(tmp_path, page={"port": free_port(), "token_file": token})
    assert verdicts(look_at_files(file, settings)) == {"configuration": "ok", "token of the page": "failed"}
    token.chmod(0o600)
    assert verdicts(look_at_files(file, settings))["token of the page"] == "ok"
    token.unlink()
    assert verdicts(look_at_files(file, settings))["token of the page"] == "failed"


@pytest.mark.parametrize(("days", "verdict"), [(-1, "failed"), (10, "note"), (300, "ok")])
def test_certificate_s_end_is_seen_before_peers_see_it(tmp_path, file, days, verdict):
    certificate, key = Authority(tmp_path).sign("server", days=days)
    tls = {"certificate": certificate, "key": key}
    settings = config(tmp_path, receive={"port": free_port(), "peers": [], "tls": tls})
    assert verdicts(look_at_files(file, settings))["TLS certificate, receive"] == verdict


def test_data_folder_that_others_may_enter_and_a_full_disk_are_found(tmp_path):
    settings = config(tmp_path, disk={"keep_free_bytes": 2**60})
    assert verdicts(look_at_disk(settings)) == {"data folder": "note", "room": "failed"}
    settings.appliance.data.mkdir(mode=0o755)
    found = {look.what: look for look in look_at_disk(settings)}
    assert verdicts(found.values()) == {"data folder": "failed", "disk": "ok", "room": "failed"}
    assert found["data folder"].remedy == f"chmod 700 {settings.appliance.data}"


def test_the_disk_s_share_is_df_s(tmp_path, monkeypatch):
    usage = SimpleNamespace(total=200, used=90, free=60)  # 50 are root's alone
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert used_share(tmp_path) == 0.6
    assert no_room(tmp_path, Disk(keep_free_bytes=0, refuse_above=0.65)) is None
    assert no_room(tmp_path, Disk(keep_free_bytes=0, refuse_above=0.65), size=10) == "the disk is fuller than 65%"


def test_clock_is_held_against_the_audit_log_without_changing_the_database(start):
    service = start()
    assert look_at_clock(service.config).verdict == "ok"
    assert look_at_clock(Config.model_validate({"appliance": {"data": "/nowhere"}})).verdict == "ok"


def test_port_that_is_taken_or_not_ours_is_found(tmp_path):
    settings = config(tmp_path)
    assert verdicts(look_at_ports(settings)) == {"DICOM port": "ok", "page's port": "ok"}
    with socket.create_server(("127.0.0.1", settings.receive.port)):
        taken = next(look_at_ports(settings))
    assert (taken.verdict, taken.remedy) == ("failed", "Stop what listens there, or choose another port.")
    elsewhere = config(tmp_path, receive={"host": "192.0.2.1"})
    assert next(look_at_ports(elsewhere)).remedy == "Give an address of this machine, or 0.0.0.0."


def test_bundle_that_was_changed_or_lacks_the_joint_is_found(tmp_path, study):
    bundle = write_bundle(tmp_path / "bundle", study)
    settings = config(tmp_path, work={"bundle": bundle})
    assert verdicts(look_at_bundle(settings))["bundle"] == "ok"
    ankle = config(tmp_path, work={"bundle": bundle}, results={"joint": "ankle"})
    assert "nothing for the ankle" in next(look_at_bundle(ankle)).seen
    image = next(bundle.rglob("*.dcm"))
    image.write_bytes(image.read_bytes()[:-1])
    assert "It was changed or cut short" in next(look_at_bundle(settings)).seen


def test_bundle_that_another_signed_or_nobody_is_found_and_not_run(tmp_path, study):
    bundle = write_bundle(tmp_path / "bundle", study)
    for name in ("own", "other"):
        make_keys(tmp_path / f"{name}.pem", tmp_path / f"{name}.pub")
    settings = config(tmp_path, work={"bundle": bundle, "bundle_key": tmp_path / "own.pub"})
    for told in ("is not signed, and a signature by", "the bundle was signed by"):
        look = next(look_at_bundle(settings))
        assert (look.verdict, told in look.seen) == ("failed", True)
        with pytest.raises(InputError, match=told):
            PipelineEvaluator(settings)
        sign(bundle, tmp_path / "other.pem")
    sign(bundle, tmp_path / "own.pem")
    assert verdicts(look_at_bundle(settings))["bundle"] == "ok"
