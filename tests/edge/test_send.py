"""Results on their way: destinations that are down, refuse, or confirm that they keep them."""

from __future__ import annotations

import logging
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orthokernels.edge import audit
from orthokernels.edge.config import Tls
from orthokernels.edge.database import Database
from orthokernels.edge.dcmtk import program
from orthokernels.edge.deliveries import Deliveries, Made
from orthokernels.edge.receive.scp import report_status
from orthokernels.edge.store import Image, Job, Store
from orthokernels.edge.tls import client_context
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from pynetdicom import AE, evt

from tests.edge.certificates import Authority
from tests.edge.kit import (
    Archive,
    archive_destination,
    config,
    free_port,
    late_image,
    listens,
    orthanc_objects,
    store,
    wait_for,
)


def test_destination_that_is_down_for_a_while_gets_everything_once_it_is_back(start, study, tmp_path):
    archive = Archive(tmp_path / "archive")
    service = start(destinations=[archive_destination(archive.port, tries=100)])
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("sending",)))
    wait_for(lambda: tries(service, job.id) >= 3)
    archive.start()
    try:
        wait_for(lambda: service.store.job(job.id).state == "sent")
        assert archive.objects() == sorted(made.sop_uid for made in service.deliveries.objects(job.id))
    finally:
        archive.stop()


def test_older_version_that_waits_is_superseded_and_never_arrives_after_the_newer(start, study, tmp_path):
    archive = Archive(tmp_path / "archive")
    service = start(destinations=[archive_destination(archive.port, tries=100)])
    assert store(service.config, study).returncode == 0
    (first,) = wait_for(lambda: service.store.jobs(("sending",)))
    wait_for(lambda: tries(service, first.id) >= 1)
    assert store(service.config, [late_image(tmp_path)]).returncode == 0
    second = wait_for(lambda: next((job for job in service.store.jobs(("sending",)) if job.version == 2), None))
    archive.start()
    try:
        wait_for(lambda: service.store.job(second.id).state == "sent")
    finally:
        archive.stop()
    assert archive.objects() == sorted(made.sop_uid for made in service.deliveries.objects(second.id))
    first = service.store.job(first.id)
    assert (first.state, first.reason) == ("sent", "archive: version 2 of the study goes there instead")
    (delivery,) = service.deliveries.of(first.id)
    assert delivery["state"] == "superseded"


def owed(deliveries: Deliveries, number: int, rejected: str | None = None) -> Job:
    """A further image of the study, and two objects made of the version that it begins."""
    kept = deliveries.store
    kept.add(Image(f"1.2.{number}", "1", "1.9", "1.8", f"{number}", 1, f"images/{number}.dcm", "MR1"), 5)
    (job,) = kept.jobs(("received",))
    kept.move(job.id, "settling", "test")
    kept.move(job.id, "checked", "test")
    leased = kept.lease_to_infer("test", 60.0)
    kept.move(leased.id, "writing", "test")
    made = [Made("1", f"1.3.{number}.{one}", "", f"{number}/{one}.dcm") for one in (1, 2)]
    deliveries.owe(leased, "test", made, rejected)
    return kept.job(leased.id)


def deliveries_to(folder: Path, *names: str) -> Deliveries:
    """What is owed to these destinations, which nobody sends."""
    return Deliveries(Store(Database(folder)), config(folder, destinations=to(*names)).destinations)


def to(*names: str) -> list[dict[str, Any]]:
    return [archive_destination(1, name=name, tries=1) for name in names]


def test_version_that_was_taken_in_part_is_whole_before_the_next_follows(tmp_path):
    deliveries = deliveries_to(tmp_path, "archive")
    first = owed(deliveries, 1)
    begun = deliveries.due("archive")
    deliveries.accepted(begun, begun.open[0])
    with deliveries.database.write() as connection:
        connection.execute("UPDATE deliveries SET next_try_at = 1e12")  # it backs off
    second, third = owed(deliveries, 2), owed(deliveries, 3)
    assert deliveries.due("archive") is None
    with deliveries.database.write() as connection:
        connection.execute("UPDATE deliveries SET next_try_at = 0 WHERE job = ?", (first.id,))
    rest = deliveries.due("archive")
    assert (rest.job, len(rest.open)) == (first.id, 1)
    deliveries.delivered(rest)
    assert deliveries.due("archive").job == third.id
    assert [own["state"] for own in deliveries.of(second.id)] == ["superseded"]


def test_version_that_was_put_aside_is_not_sent_after_a_newer_one_by_a_retry(tmp_path):
    deliveries = deliveries_to(tmp_path, "archive")
    first = owed(deliveries, 1)
    deliveries.refused(deliveries.due("archive"), "it is down")
    second = owed(deliveries, 2)
    due = deliveries.due("archive")
    assert due.job == second.id
    deliveries.delivered(due)
    assert deliveries.retry(first, "test").state == "sending"
    assert deliveries.due("archive") is None
    assert deliveries.store.job(first.id).reason == "archive: version 2 of the study goes there instead"


def test_retry_of_what_only_a_destination_that_is_gone_did_not_take_makes_nothing_again(tmp_path):
    deliveries = deliveries_to(tmp_path, "a", "b")
    job = owed(deliveries, 1)
    deliveries.delivered(deliveries.due("a"))
    deliveries.refused(deliveries.due("b"), "it is down")
    assert deliveries.retriable(job.id, "dead")
    renamed = Deliveries(deliveries.store, config(tmp_path, destinations=to("a", "c")).destinations)
    dead = renamed.store.job(job.id)
    assert dead.state == "dead"
    assert renamed.retry(dead, "test") == dead
    assert renamed.store.jobs() == [dead]
    assert (renamed.gone(job.id), renamed.retriable(job.id, dead.state)) == (["b"], False)
    assert renamed.discard(dead, "test").state == "discarded"
    assert renamed.gone(job.id) == []


def test_retry_of_a_rejected_version_makes_nothing_again_where_a_later_one_has_its_results(tmp_path):
    """As where images came in two halves: the second version has them all, and was sent."""
    deliveries = deliveries_to(tmp_path, "archive")
    first = owed(deliveries, 1, rejected="half of it is missing")
    assert deliveries.retriable(first.id, "rejected")
    second = owed(deliveries, 2)
    assert not deliveries.retriable(first.id, "rejected")
    assert deliveries.retry(first, "test").id == second.id
    assert len(deliveries.store.jobs()) == 2


def test_second_click_on_retry_finds_what_the_first_has_done(tmp_path):
    """Both read the job while it was dead."""
    deliveries = deliveries_to(tmp_path, "archive")
    job = owed(deliveries, 1)
    deliveries.refused(deliveries.due("archive"), "it is down")
    dead = deliveries.store.job(job.id)
    assert [deliveries.retry(dead, "test").state for _ in range(2)] == ["sending", "sending"]
    assert len(deliveries.store.jobs()) == 1
    assert deliveries.discard(dead, "test").state == "sending"


def tries(service, job_id: int) -> int:
    with service.store.database.read() as connection:
        return connection.execute("SELECT tries FROM deliveries WHERE job = ?", (job_id,)).fetchone()[0]


def test_delivery_is_put_aside_after_its_tries_and_taken_up_by_retry(start, study, tmp_path):
    archive = Archive(tmp_path / "archive")
    service = start(destinations=[archive_destination(archive.port, tries=2)])
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("dead",)))
    assert f"no association, or none of our objects accepted (127.0.0.1:{archive.port}, PACS)" in job.reason
    archive.start()
    try:
        assert service.deliveries.retry(job, "test").state == "sending"
        wait_for(lambda: service.store.job(job.id).state == "sent")
        assert len(archive.objects()) == 3
    finally:
        archive.stop()


def test_destination_that_is_down_holds_up_no_other(start, study, archive):
    down = archive_destination(free_port(), name="down", tries=100)
    service = start(destinations=[down, archive_destination(archive.port)])
    assert store(service.config, study).returncode == 0
    wait_for(lambda: len(archive.objects()) == 3)
    assert service.store.jobs(("sending",))


def test_tries_that_can_not_be_noted_become_rarer_and_are_told_once(start, study, archive, monkeypatch, caplog):
    """As when the database can't be written: nothing is known to be accepted, so all of it is sent again."""
    sent = []

    def not_written(*_):
        sent.append(time.monotonic())
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(Deliveries, "accepted", not_written)
        broken.setattr(Deliveries, "refused", lambda *_: not_written())
        service = start(destinations=[archive_destination(archive.port)])
        assert store(service.config, study).returncode == 0
        wait_for(lambda: sent)
        time.sleep(2.5)
    assert len(sent) <= 6, "two calls for each try: at once, after one second and after three"
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert sum("stumbled" in error for error in errors) == 1
    assert "an unexpected fault in delivering" not in caplog.text
    wait_for(lambda: service.store.jobs(("sent",)))
    wait_for(lambda: "the sender to archive goes on" in caplog.text)


def test_waits_between_tries_grow_threefold_up_to_the_longest(start, study):
    down = archive_destination(free_port(), tries=4, first_wait_seconds=0.2, longest_wait_seconds=0.5)
    service = start(destinations=[down])
    assert store(service.config, study).returncode == 0
    wait_for(lambda: service.store.jobs(("dead",)))
    with service.store.database.read() as connection:
        rows = connection.execute("SELECT at FROM audit WHERE event = 'not delivered' ORDER BY number").fetchall()
    times = [datetime.fromisoformat(row["at"]) for row in rows]
    waits = [(b - a).total_seconds() for a, b in pairwise(times)]
    # 0.2, 0.5 and 0.5 seconds, each less up to a fifth; how much later depends on the machine's load
    assert all(wait > least for wait, least in zip(waits, (0.16, 0.4, 0.4), strict=True))


def test_delivery_over_tls_checks_the_archives_certificate(start, study, tmp_path):
    authority, stranger = Authority(tmp_path), Authority(tmp_path_of(tmp_path, "stranger"))
    certificate, key = authority.sign("archive")
    port = free_port()
    folder = tmp_path_of(tmp_path, "received")
    server = subprocess.Popen(
        [program("storescp"), "+tls", str(key), str(certificate), "-ic", "-od", str(folder), "-uf", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: listens(port))
        trusted = archive_destination(port, tls={"authority": authority.certificate})
        wrong = archive_destination(port, name="wrong", tries=1, tls={"authority": stranger.certificate})
        service = start(destinations=[trusted, wrong])
        assert store(service.config, study).returncode == 0
        (job,) = wait_for(lambda: service.store.jobs(("dead",)))
        assert job.reason.startswith("wrong: ")
        assert len(list(folder.iterdir())) == 3
    finally:
        server.kill()
        server.wait()


def test_with_an_authority_of_its_own_that_alone_is_trusted(tmp_path, monkeypatch):
    authority, system = Authority(tmp_path), Authority(tmp_path_of(tmp_path, "system"))
    monkeypatch.setenv("SSL_CERT_FILE", str(system.certificate))
    for own, trusted in ((authority.certificate, authority), (None, system)):
        (found,) = client_context(Tls(authority=own)).get_ca_certs(binary_form=True)
        assert found == ssl.PEM_cert_to_DER_cert(trusted.certificate.read_text())


def tmp_path_of(tmp_path, name: str):
    folder = tmp_path / name
    folder.mkdir()
    return folder


@contextmanager
def scp_of(keep: Callable[[Any], int]) -> Iterator[int]:
    """The port of an archive that takes objects and answers each as told."""
    entity = AE(ae_title="PACS")
    entity.add_supported_context(SecondaryCaptureImageStorage)
    port = free_port()
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        yield port
    finally:
        server.shutdown()


def test_archive_that_ends_the_association_after_each_object_gets_every_object(start, study):
    """Each try delivers what it can; what was accepted is not sent again."""
    received = []

    def keep(event) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        threading.Timer(0.05, event.assoc.abort).start()
        return 0x0000

    with scp_of(keep) as port:
        service = start(destinations=[archive_destination(port, tries=20)])
        assert store(service.config, study).returncode == 0
        (job,) = wait_for(lambda: service.store.jobs(("sent",)))
        owed = {made.sop_uid for made in service.deliveries.objects(job.id)}
        assert owed <= set(received)


def test_archive_that_takes_nothing_twice_gets_what_it_could_not_answer_for(start, study):
    """It keeps an object, the association breaks before it says so, and the next time it has it already."""
    received = []

    def keep(event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid in received:
            return 0x0111
        received.append(uid)
        event.assoc.abort()
        return 0x0000

    with scp_of(keep) as port:
        service = start(destinations=[archive_destination(port, tries=20)])
        assert store(service.config, study).returncode == 0
        (job,) = wait_for(lambda: service.store.jobs(("sent",)))
        assert sorted(received) == sorted(made.sop_uid for made in service.deliveries.objects(job.id))


def test_orthanc_commits_to_keep_what_it_was_sent(start, study, orthanc):
    port = free_port()
    dicom, http = orthanc(port)
    service = start(
        receive={"port": port, "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]},
        destinations=[archive_destination(dicom, commitment=True)],
    )
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("committed",)))
    assert len(orthanc_objects(http)) == 3
    assert service.store.job(job.id).reason is None


def test_object_that_a_commitment_report_does_not_name_as_kept_is_sent_again(start, study, archive):
    service = start(destinations=[archive_destination(archive.port)])
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("sent",)))
    first, second, third = (made.sop_uid for made in service.deliveries.objects(job.id))
    reports = (
        ([first, second], [], 1),  # one is passed over in silence
        ([first, second, third], [second], 1),  # one is named as both
        ([first, second, third], [], 0),
    )
    for kept, failed, lost in reports:
        with service.store.database.write() as connection:
            connection.execute("UPDATE deliveries SET transaction_uid = '1.2', commit_until = 1e12")
        assert report_status(commitment_report(kept, failed), service.deliveries.commitment_answered) == 0
        outcome = audit.latest(service.store.database, "commitment", "archive")["outcome"]
        assert outcome == ("1 objects were accepted, but are not kept" if lost else "success")
        wait_for(lambda: service.store.jobs(("sent", "committed")))
    assert service.store.job(job.id).state == "committed"


def commitment_report(kept, failed):
    """What pynetdicom hands over of an N-EVENT-REPORT."""
    report = Dataset()
    report.TransactionUID = "1.2"
    for keyword, uids in (("ReferencedSOPSequence", kept), ("FailedSOPSequence", failed)):
        items = []
        for uid in uids:
            items.append(Dataset())
            items[-1].ReferencedSOPInstanceUID = uid
        setattr(report, keyword, items)
    return SimpleNamespace(event_information=report)


def test_archive_that_never_confirms_leaves_the_study_sent_and_says_so(start, study, archive):
    commitment = archive_destination(archive.port, commitment=True, tries=1)
    service = start(destinations=[commitment])
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("dead",)))  # dcmtk's storescp takes no such request
    assert "archive: " in job.reason
    assert len(archive.objects()) == 3
