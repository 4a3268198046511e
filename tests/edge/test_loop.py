"""From a scanner's C-STORE to results in an archive, with dcmtk on both ends."""

from __future__ import annotations

import sys
import time
from datetime import datetime

import pydicom
import pytest
from orthokernels.edge.completeness import examine
from orthokernels.edge.guard import Guard

from tests.edge.kit import (
    ABSTAINING,
    SLICES,
    archive_destination,
    config,
    edit,
    late_image,
    store,
    wait_for,
    write_study,
)


def finished(service, number: int = 1):
    """The jobs, once so many have reached an end."""
    ends = ("sent", "committed", "rejected", "dead")
    return wait_for(lambda: jobs if len(jobs := service.store.jobs(ends)) >= number else None)


def test_study_arrives_in_the_archive_without_waiting_for_quiet(start, study, archive):
    service = start(settle={"quiet_seconds": 3600.0}, destinations=[archive_destination(archive.port)])
    pushed = store(service.config, study)
    assert pushed.returncode == 0, pushed.stderr
    (job,) = finished(service)
    assert job.state == "sent"
    assert len(archive.objects()) == 3
    made = sorted(made.sop_uid for made in service.deliveries.objects(job.id))
    assert archive.objects() == made


def test_every_image_on_disk_is_the_one_that_was_sent(start, study):
    service = start()
    assert store(service.config, study).returncode == 0
    files = service.store.files(finished(service)[0].id)
    sent = {pydicom.dcmread(path).SOPInstanceUID: pydicom.dcmread(path) for path in study}
    kept = [pydicom.dcmread(service.config.appliance.data / file) for file in files]
    assert len(kept) == len(sent) == 3 * SLICES
    for dataset in kept:
        assert dataset == sent[dataset.SOPInstanceUID]


def test_duplicates_are_acknowledged_and_not_worked_on_again(start, study, archive):
    service = start(destinations=[archive_destination(archive.port)])
    assert store(service.config, study).returncode == 0
    finished(service)
    again = store(service.config, study)
    assert again.returncode == 0, again.stderr
    assert len(service.store.jobs()) == 1
    assert len(list(service.config.appliance.data.rglob("images/*/*.dcm"))) == 3 * SLICES


def test_known_uid_with_other_content_is_kept_aside_and_the_first_one_used(start, study, tmp_path):
    service = start()
    assert store(service.config, study).returncode == 0
    other = edit(write_study(tmp_path / "other")[0], PatientName="Other^Name")
    assert store(service.config, [other]).returncode == 0
    with service.store.database.read() as connection:
        (aside,) = connection.execute("SELECT * FROM asides").fetchall()
    assert pydicom.dcmread(service.config.appliance.data / aside["file"]).PatientName == "Other^Name"
    (job,) = service.store.jobs()
    assert aside["file"] not in service.store.files(job.id)


def test_late_image_makes_a_version_that_supersedes(start, study, archive, tmp_path):
    service = start(destinations=[archive_destination(archive.port)])
    assert store(service.config, study).returncode == 0
    finished(service)
    assert store(service.config, [late_image(tmp_path)]).returncode == 0
    second, first = finished(service, 2)
    assert (first.version, second.version) == (1, 2)
    assert first.inputs_digest != second.inputs_digest
    assert len(archive.objects()) == 6  # other inputs, so other identifiers


def test_image_during_the_settling_time_joins_the_same_version(start, study):
    service = start(settle={"quiet_seconds": 2.0})
    half = len(study) // 2
    assert store(service.config, study[:half]).returncode == 0
    assert store(service.config, study[half:]).returncode == 0
    (job,) = finished(service)
    assert (job.state, job.version) == ("sent", 1)
    assert len(service.store.files(job.id)) == len(study)


def test_study_of_one_plane_waits_for_quiet_and_is_evaluated(start, tmp_path):
    service = start(settle={"quiet_seconds": 1.0})
    assert store(service.config, write_study(tmp_path / "one", planes=("sagittal",))).returncode == 0
    (job,) = finished(service)
    assert job.state == "sent"
    assert job.because == "no coronal and no axial volume yet"


def test_study_whose_planes_come_one_after_the_other_waits_for_the_last_and_gets_one_report(start, study, archive):
    service = start(
        settle={"quiet_seconds": 0.5, "plane_seconds": 3600.0}, destinations=[archive_destination(archive.port)]
    )
    for first in (0, SLICES):
        assert store(service.config, study[first : first + SLICES]).returncode == 0
        wait_for(lambda: [job.examined for job in service.store.jobs()] == ["partial"])
        time.sleep(1.5)  # three times as long as a study of all planes is waited for
        assert [job.state for job in service.store.jobs()] == ["settling"]
    assert store(service.config, study[2 * SLICES :]).returncode == 0
    (job,) = finished(service)
    assert (job.state, job.version) == ("sent", 1)
    assert len(service.store.files(job.id)) == len(study) == 3 * SLICES


def test_plane_that_never_comes_is_waited_for_as_long_as_was_said(start, tmp_path):
    service = start(settle={"quiet_seconds": 0.5, "plane_seconds": 3.0})
    began = time.time()
    assert store(service.config, write_study(tmp_path / "one", planes=("sagittal",))).returncode == 0
    (job,) = finished(service)
    assert job.state == "sent"
    assert time.time() - began >= 3.0


def test_study_that_lacks_images_is_rejected_with_their_number(start, study, archive):
    service = start(
        settle={"quiet_seconds": 0.5, "give_up_seconds": 2.0}, destinations=[archive_destination(archive.port)]
    )
    assert store(service.config, study[:-2]).returncode == 0
    (job,) = finished(service)
    assert job.state == "rejected"
    assert job.reason == "14 of 16 images of acquisition 1 came"
    wait_for(lambda: len(archive.objects()) == 1)  # the report that says so


def test_study_that_the_model_rejects_is_visible_and_reported(start, archive, tmp_path):
    service = start(destinations=[archive_destination(archive.port)])
    rejected = write_study(tmp_path / "reject", SeriesDescription="reject me")
    assert store(service.config, rejected).returncode == 0
    (job,) = finished(service)
    assert (job.state, job.reason) == ("rejected", "metal near the joint.")
    wait_for(lambda: len(archive.objects()) == 1)


def test_study_without_a_date_that_is_rejected_again_gets_the_same_report_again(start, archive, tmp_path):
    """It bears the moment at which its images came, and does not name itself as what it replaces."""
    service = start(
        work={"command": [sys.executable, str(ABSTAINING)]}, destinations=[archive_destination(archive.port)]
    )
    rejected = write_study(tmp_path / "reject", SeriesDescription="reject me")
    assert "StudyDate" not in pydicom.dcmread(rejected[0])
    assert store(service.config, rejected).returncode == 0
    (job,) = finished(service)
    assert job.reason == "metal near the joint."
    received = datetime.fromtimestamp(service.store.received_at(job.id))
    again = service.deliveries.retry(job, "test")
    wait_for(lambda: service.store.job(again.id).state == "rejected")
    reports = []
    for number in (job.id, again.id):
        (made,) = (made for made in service.deliveries.objects(number) if made.file.endswith("abstention.dcm"))
        reports.append(service.config.appliance.data / made.file)
    assert reports[0].read_bytes() == reports[1].read_bytes()
    report = pydicom.dcmread(reports[1])
    assert report.ContentDate + report.ContentTime == f"{received:%Y%m%d%H%M%S}"
    assert "PredecessorDocumentsSequence" not in report


def test_study_of_two_patients_is_rejected_before_the_model_and_its_report_names_neither(start, archive, tmp_path):
    service = start(
        settle={"quiet_seconds": 0.5},
        work={"command": [sys.executable, str(ABSTAINING)]},
        destinations=[archive_destination(archive.port)],
    )
    images = write_study(tmp_path / "two", PatientID="A", PatientBirthDate="19500102")
    for path in images[SLICES:]:
        edit(path, PatientID="B", PatientName="Other^Name")
    assert store(service.config, images).returncode == 0
    (job,) = finished(service)
    assert job.reason == (
        "its images name more than one patient (by Patient ID), so nothing of it can be filed under one."
    )
    wait_for(lambda: len(archive.objects()) == 2)
    for path in archive.folder.iterdir():
        made = pydicom.dcmread(path)
        assert (made.PatientID, made.PatientName, made.PatientBirthDate) == ("", "", "")
        assert made.StudyInstanceUID == "1.2.3"


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ({"PatientName": "DOE^JANE^^"}, "whole"),
        ({"PatientName": ""}, "whole"),
        ({"PatientName": "Roe^Richard"}, "unfit"),
        ({"PatientBirthDate": "19990101"}, "unfit"),
    ],
)
def test_images_without_an_id_are_of_one_patient_by_name_and_birth_date_alone(tmp_path, other, verdict):
    files = write_study(tmp_path, PatientID="", PatientName="Doe^Jane", PatientBirthDate="19500101")
    edit(files[-1], **other)
    assert examine(files, ("sagittal", "coronal", "axial"))[0] == verdict


def test_pictures_that_are_no_volume_are_rejected_with_the_reason(start, study):
    service = start(settle={"quiet_seconds": 0.5})
    assert store(service.config, study[:3]).returncode == 0
    (job,) = finished(service)
    assert job.state == "rejected"
    assert job.reason.startswith("series 3, sagittal test (24 x 20 x 3): 3 slices; at least 16 are needed")


@pytest.mark.parametrize("behaviour", ["crash", "hang", "greedy"])
def test_study_that_ends_the_worker_twice_is_put_aside_and_the_next_goes_on(start, study, tmp_path, behaviour):
    service = start(work={"study_seconds": 4.0, "memory_bytes": 2**32})
    bad = write_study(tmp_path / "bad", study="1.2.4", SeriesDescription=f"{behaviour} please")
    assert store(service.config, bad).returncode == 0
    assert store(service.config, study).returncode == 0
    states = {job.study_uid: job for job in finished(service, 2)}
    assert states["1.2.3"].state == "sent"
    assert states["1.2.4"].state == "dead"
    told = {"crash": "SIGABRT", "hang": "longer than 4 seconds", "greedy": "more than 4096 MB of memory"}
    assert states["1.2.4"].reason.startswith("put aside after 2 attempts")
    assert told[behaviour] in states["1.2.4"].reason


def test_worker_that_died_idle_costs_the_next_study_no_attempt(start, study):
    service = start(work={"attempts": 1})
    (worker,) = service.workers
    wait_for(lambda: worker.loaded)
    process = worker._guard._process
    process.kill()
    wait_for(lambda: worker.loaded and worker._guard._process is not process)
    assert store(service.config, study).returncode == 0
    (job,) = finished(service)
    assert (job.state, job.attempts) == ("sent", 0)


def test_request_to_a_process_that_died_idle_goes_to_a_new_one(study, tmp_path):
    guard = Guard(config(tmp_path))
    guard.start()
    try:
        guard._process.kill()
        guard._process.wait()
        answer = guard.ask({"do": "examine", "sources": list(map(str, study))}, 60)
        assert answer["verdict"] == "whole"
    finally:
        guard.stop()


def test_worker_that_dies_once_does_not_cost_the_study(start, tmp_path, monkeypatch):
    monkeypatch.setenv("ONCE", str(tmp_path / "once"))
    service = start()
    assert store(service.config, write_study(tmp_path / "s", SeriesDescription="once only")).returncode == 0
    (job,) = finished(service)
    assert (job.state, job.attempts) == ("sent", 1)


def test_disk_that_is_full_of_something_else_costs_no_study_an_attempt(start, tmp_path, monkeypatch):
    (tmp_path / "full").touch()
    monkeypatch.setenv("FULL", str(tmp_path / "full"))
    monkeypatch.setattr("orthokernels.edge.work._UNUSABLE_SECONDS", 0.5)
    service = start(work={"attempts": 1})
    assert store(service.config, write_study(tmp_path / "s", SeriesDescription="full disk")).returncode == 0
    (worker,) = service.workers
    wait_for(lambda: worker.unusable)
    assert "there is no room for results (No space left on device)" in worker.unusable
    (tmp_path / "full").unlink()
    (job,) = finished(service)
    assert (job.state, job.attempts) == ("sent", 0)
